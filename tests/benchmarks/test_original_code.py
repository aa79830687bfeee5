"""The race against the original's code, as far as it goes without that code."""

import pytest

from benchmarks.original_code import main


@pytest.fixture(name="peer")
def _peer(tmp_path):
    (tmp_path / "peer" / "cramming" / "config").mkdir(parents=True)
    return tmp_path / "peer"


@pytest.mark.parametrize("peer_path", [[], ["--peer-path", "nowhere"]])
def test_without_the_checkout(tmp_path, capsys, peer_path):
    assert main(["train", "--rows", "rows", "--out", str(tmp_path / "out"), *peer_path]) == 2
    assert "want a checkout of github.com/JonasGeiping/cramming" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_nothing_to_judge(tmp_path, capsys):
    assert main(["judge", "--rows", "rows", "--out", str(tmp_path)]) == 2
    assert "run train first" in capsys.readouterr().err


def test_an_earlier_run_is_not_overwritten(tmp_path, capsys, peer):
    assert main(["train", "--rows", "rows", "--out", str(tmp_path), "--peer-path", str(peer)]) == 2
    assert "the folder is there already" in capsys.readouterr().err
