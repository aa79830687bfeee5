"""Results as they are stored, the pages and pictures made of them, and what is said of a folder that has none."""

import json
import struct

import pytest

from benchmarks import report, results
from benchmarks.results import BadFolder, Results

pytest.importorskip("matplotlib")
MACHINE = {
    "name": "A Card", "key": "a-card", "dtype": "bfloat16", "threads": 0, "versions": {"torch": "9.9"},
    "ceilings": {"copy_bytes_per_second": 9.3e11, "gemm_flops_per_second": 1.42e14},
}  # fmt: skip


def row(operation="geglu", family="rows", direction="forward", **more):
    return {
        "kind": "operation", "name": f"{operation}-16384x768", "operation": operation, "family": family,
        "tokens": 16384, "width": 768, "direction": direction, "seconds": {"ours": 1.5e-3, "eager": 3e-3},
        "ratios": {"eager": 0.5, "liger": 0.9}, "share_of_floor": 0.875, **more,
    }  # fmt: skip


TRAINING = {
    "kind": "training", "name": "training crammed-bert", "family": "training", "direction": "step",
    "recipe": "crammed-bert", "seconds": {"ours": 1.0, "plain PyTorch": 1.25}, "ratios": {"plain PyTorch": 0.8},
    "tokens_per_second": {"ours": 250000.0, "plain PyTorch": 200000.0},
    "model_flops_utilization": {"ours": 0.5, "plain PyTorch": 0.4},
}  # fmt: skip
ROWS = [row(), row("mlm_loss", "loss"), row("attention", "attention", "backward"), TRAINING]


def test_pages_and_pictures(tmp_path, capsys):
    results.write(tmp_path, MACHINE, ROWS)
    assert report.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'report.md'}\n"
    page = (tmp_path / "report.md").read_text()
    assert "# A Card" in page and "930.0 GB/s" in page and "142 TFLOP/s" in page
    assert "| geglu | 16384 x 768 | forward | 1.500 | 88 % | 0.500 | 0.900 |" in page
    assert "| ours | 250,000 | 50.0 % |  |" in page and "| plain PyTorch | 200,000 | 40.0 % | 0.800 |" in page
    for family in report.TITLES:
        picture = (tmp_path / f"{family}.png").read_bytes()
        assert picture[:8] == b"\x89PNG\r\n\x1a\n" and f"({family}.png)" in page
        width, height = struct.unpack(">II", picture[16:24])
        assert width > 800 and height > 150


def test_a_family_without_results_has_no_picture(tmp_path):
    results.write(tmp_path, MACHINE, [row()])
    report.main([str(tmp_path)])
    assert [path.name for path in tmp_path.glob("*.png")] == ["rows.png"]


def test_without_matplotlib_the_page_is_made(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    results.write(tmp_path, MACHINE, ROWS)
    assert report.main([str(tmp_path)]) == 0
    assert "no pictures: matplotlib is not installed" in capsys.readouterr().err
    assert "geglu" in (tmp_path / "report.md").read_text() and not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize("text", [
    None, "", "{", "[]\n", '{"kind": "operation"}\n', '{"kind": "machine", "name": "x"}\n{"name": "y"}\n', "\x00",
])  # fmt: skip
def test_a_bad_folder_is_one_line_and_two(text, tmp_path, capsys):
    if text is not None:
        (tmp_path / results.FILE).write_text(text)
    assert report.main([str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"error: {tmp_path}") and said.err.count("\n") == 1 and not said.out
    assert report.main([str(tmp_path / "absent")]) == 2


def test_a_machine_line_without_rates_is_a_bad_folder(tmp_path, capsys):
    (tmp_path / results.FILE).write_text('{"kind": "machine", "name": "x"}\n' + json.dumps(row()) + "\n")
    assert report.main([str(tmp_path)]) == 2 and capsys.readouterr().err.count("\n") == 1


def test_what_did_not_run_this_time_is_kept(tmp_path):
    first = Results(tmp_path)
    first.machine = MACHINE
    first.add(**row())
    first.add(**row("mlm_loss", "loss"))
    first.write()
    second = Results(tmp_path)
    second.machine = MACHINE
    second.add(**row(share_of_floor=0.5))
    assert second.write() == tmp_path / results.FILE
    machine, rows = results.read(tmp_path)
    assert machine == MACHINE and [(r["operation"], r["share_of_floor"]) for r in rows] == [
        ("mlm_loss", 0.875), ("geglu", 0.5),
    ]  # fmt: skip
    assert Results(tmp_path / "none").write() is None and not (tmp_path / "none").exists()
    with pytest.raises(BadFolder, match="pytest benchmarks --benchmark-only"):
        results.read(tmp_path / "none")
