"""The counted cost of attention: everything moves once where a tile holds a sequence; no more than the peers move.

The peers' files are looked for in the folder that CRAMKERNELS_PEERS names.
"""

import os
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from benchmarks import cost, cost_attention, cost_attention_peers, cost_attention_report, cost_count
from benchmarks.cost_attention import SHAPES, Shape
from benchmarks.cost_attention_peers import PEERS
from benchmarks.cost_cases import CUDA, DIRECTIONS, LANGUAGES, TRITON
from benchmarks.cost_targets import SLACK

pytest.importorskip("triton", reason="triton is not installed")
SMALL = Shape(3, 128, heads=2)
every_language = pytest.mark.parametrize("language", LANGUAGES, ids=["cuda", "triton"])
every_peer = pytest.mark.parametrize("peer", PEERS, ids=["tutorial", "flash_attn_triton"])


@pytest.fixture(scope="module", autouse=True)
def _simulator():
    if (missing := cost.obstacle()) is not None:
        pytest.skip(missing)


@pytest.fixture
def folder():
    if not os.environ.get("CRAMKERNELS_PEERS"):
        pytest.skip("CRAMKERNELS_PEERS names no folder with the peers' files")
    return Path(os.environ["CRAMKERNELS_PEERS"])


@cache
def measured(language, shape=SMALL, folder=None):
    return dict(zip(DIRECTIONS, cost_attention.measure(language, shape, folder), strict=True))


@pytest.mark.parametrize("direction", DIRECTIONS)
@every_language
def test_every_byte_moves_once(language, direction):
    row = measured(language)[direction]
    named = {"forward": {"q", "k", "v", "out", "lse"}, "backward": {"q", "k", "v", "dout", "lse", "dq", "dk", "dv"}}
    assert row["tensors"].keys() == named[direction]
    for name, (loaded, stored, footprint) in row["tensors"].items():
        assert footprint == 1.0 and max(loaded, stored) <= SLACK, name
    assert row["footprint_ratio"] <= SLACK and row["torch_bytes"] == row["bank_conflicts"] == 0


@every_language
def test_heads_do_not_differ(language, monkeypatch):
    """So the table may count two of them."""
    shape = Shape(1, 128, heads=4)
    two = measured(language, shape)
    monkeypatch.setattr(cost_attention, "COUNTED_HEADS", 4)
    assert dict(zip(DIRECTIONS, cost_attention.measure(language, shape), strict=True)) == two


@every_peer
def test_no_more_bytes_than_a_peer(peer, folder):
    theirs = measured(peer.name, SMALL, folder)
    if "absent" in theirs["forward"]:
        pytest.skip(f"{peer.name}: {theirs['forward']['absent']}")
    for language in LANGUAGES:
        forward, backward = (measured(language)[direction] for direction in DIRECTIONS)
        for key in ("requested_bytes", "dram_bytes"):
            assert forward[key] <= theirs["forward"][key] and backward[key] < theirs["backward"][key]


@every_peer
def test_a_peer_computes_attention(peer, folder):
    """Otherwise its counts would say nothing."""
    made = cost_attention_peers.calls(peer.name, SMALL, folder)
    with cost_attention.simulation(peer.name)():
        (forward, inputs), (backward, _) = made.values()
        out, gradients = forward()["out"], backward()
    if "qkv" in inputs:
        packed = inputs["qkv"].detach().float().requires_grad_()
        q, k, v = (x.transpose(1, 2) for x in packed.unbind(2))
        want = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        wanted = [packed]
    else:
        wanted = [inputs[name].detach().float().requires_grad_() for name in ("q", "k", "v")]
        want = torch.nn.functional.scaled_dot_product_attention(*wanted)
    torch.testing.assert_close(out.float(), want, rtol=0.02, atol=0.02)
    dout = made["backward"][1]["dout"].float()
    for got, expected in zip(gradients.values(), torch.autograd.grad(want, wanted, dout), strict=True):
        torch.testing.assert_close(got.float(), expected, rtol=0.02, atol=0.02)


@every_peer
def test_a_peer_that_cannot_be_had_is_a_row_that_says_why(peer, tmp_path):
    assert measured(peer.name)["backward"]["absent"] == "no --peer-path"
    assert peer.file in measured(peer.name, SMALL, tmp_path)["forward"]["absent"]
    (tmp_path / peer.file).write_text("import triton.of.another.day")
    row = measured(peer.name, replace(SMALL, sequences=1), tmp_path)["forward"]
    assert "cannot be run" in row["absent"] and f"{peer.name} | {row['absent']}" in table([row])


def table(rows):
    return cost_attention_report.markdown(cost_attention_report.header(False, {}), rows)


def test_spills_take_time_and_are_a_miss():
    from ptxsim.stats import Stats

    stats = Stats(ctas=3, threads_per_cta=64)  # six warps, ten words of a thread
    before = cost_count.Counted([], 0, 0.0, 0, [("kernel", stats)])
    ((_, after),) = cost_count.with_spills(before, [40]).launches
    assert after.pipe_cycles == {"lsu": 60, "issue": 60} and not stats.pipe_cycles
    row = measured(CUDA)["forward"]
    assert row["spilled_bytes"] == measured(TRITON)["forward"]["spilled_bytes"] == 0
    assert "8 bytes spilled" in cost_attention_report.misses([row | {"spilled_bytes": 8}])[0]


def test_misses_are_named():
    row = measured(CUDA)["backward"]
    bounds = {part: bound | {"of_floor": 1.0} for part, bound in row["bounds"].items()}  # the grid is small for a part
    row = row | {"bounds": bounds, "warps": {"a100": 16}}
    peer = row | {"language": PEERS[0].name, "requested_bytes": row["requested_bytes"] + 1, "torch_bytes": 0}
    peer |= {"dram_bytes": row["dram_bytes"] + 1}
    assert cost_attention_report.misses([row, peer]) == []
    worse = row | {
        "tensors": {"dq": [0, 1.5, 1.0]}, "footprint_ratio": 1.5, "bank_conflicts": 3, "warps": {"a100": 4},
        "bounds": {part: bound | {"of_floor": 1.5, "microseconds": 1e9} for part, bound in bounds.items()},
    }  # fmt: skip
    (line,) = cost_attention_report.misses([worse, peer | {"dram_bytes": row["dram_bytes"]}])
    named = ("dq is requested 1.5 x", "footprint 1.5 x", "3 bank conflicts", "4 resident", "1.5 x the floor on a100")
    for text in (*named, "MB of DRAM, Triton", "on h100"):
        assert text in line


def test_the_committed_table():
    """All rows, of the peers too, made with known commits, and the page says what the figures say."""
    head, rows = cost_attention_report.committed()
    assert set(head["peers"]) == {peer.file for peer in PEERS}
    names = [(row["language"], row["length"], row["direction"]) for row in rows]
    languages = [*LANGUAGES, *(peer.name for peer in PEERS)]
    assert sorted(names) == sorted((x, s.length, d) for x in languages for s in SHAPES for d in DIRECTIONS)
    assert not [row for row in rows if "absent" in row]
    page = cost_attention_report.RESULTS.joinpath("attention.md").read_text()
    assert page == cost_attention_report.markdown(head, rows)


def test_without_a_path_the_peers_rows_stay():
    head, rows = cost_attention_report.committed()
    peers = [peer.name for peer in PEERS]
    kept = cost_attention_report.with_stored(head | {"peers": {}}, peers)
    assert kept == (head, [row for row in rows if row["language"] in peers])
    for other in (head | {"versions": {"triton": "1.0"}}, cost_attention_report.header(False, {})):
        assert cost_attention_report.with_stored(other, peers) == (other, [])


@pytest.mark.parametrize("direction", DIRECTIONS)
@every_language
def test_the_committed_table_is_of_these_kernels(language, direction):
    """Of its row for sequences of 128 tokens, what hardly depends on how many there are."""
    (stored,) = [row for row in cost_attention_report.committed()[1] if row["length"] == 128
                 and (row["language"], row["direction"]) == (language, direction)]  # fmt: skip
    row = measured(language)[direction]
    assert row["tensors"] == stored["tensors"]
    assert row["instructions_per_element"] == pytest.approx(stored["instructions_per_element"], rel=0.2)


def test_without_the_simulator(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(cost_attention.cost_count, "SIMULATOR", tmp_path / "absent")
    assert cost_attention.main([]) == 2
    assert capsys.readouterr().err.count("\n") == 1
