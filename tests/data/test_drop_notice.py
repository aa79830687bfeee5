"""The loud notice when cleaning would drop more than 5 % of the characters, and the way out that it names."""

import pytest

from cramming_train.data.pipeline import drop_notice
from tests.data.helpers import Writer, prepare, small, write

CYRILLIC = str.maketrans("abcdefghijklmnopqrstuvwxyz", "".join(chr(code) for code in range(0x430, 0x44A)))


def mixed(share: float, count: int = 120) -> list[str]:
    """Documents of which about ``share`` are in another script; the digits keep none of them empty."""
    writer = Writer(31)
    return [
        text.lower().translate(CYRILLIC) + " 123" if writer.random.random() < share else text
        for text in writer.documents(count)
    ]


def test_threshold():
    assert drop_notice({"characters_read": 1000, "characters_dropped": 50}, "ascii") is None
    notice = drop_notice({"characters_read": 1000, "characters_dropped": 51}, "ascii")
    assert "5%" in notice and "data.clean=unicode" in notice
    assert drop_notice({"characters_read": 0, "characters_dropped": 0}, "ascii") is None


def test_text_in_two_scripts(tmp_path, capsys):
    prepared = prepare(write(tmp_path / "a.jsonl", mixed(0.3)), small(vocab_size=256), tmp_path)
    shown = capsys.readouterr().err
    notice = next(line for line in shown.splitlines() if line.startswith("NOTICE: "))
    assert "dropped" in notice and "--set data.clean=unicode" in notice
    assert [notice.removeprefix("NOTICE: ")] == prepared.metadata["notices"], "and it is on record"
    share = prepared.metadata["characters_dropped"] / prepared.metadata["characters_read"]
    assert 0.15 < share < 0.4


@pytest.mark.parametrize(("share", "clean"), [(0.02, "ascii"), (0.3, "unicode")])
def test_no_notice(share, clean, tmp_path, capsys):
    prepared = prepare(write(tmp_path / "a.jsonl", mixed(share)), small(clean=clean), tmp_path)
    assert "NOTICE" not in capsys.readouterr().err and prepared.metadata["notices"] == []


def test_unicode_keeps_the_other_script(tmp_path):
    documents = mixed(0.5)
    source = write(tmp_path / "a.jsonl", documents)
    kept = prepare(source, small(clean="unicode", vocab_size=384), tmp_path)
    assert kept.metadata["characters_dropped"] == 0
    cyrillic = [token for token in kept.tokenizer.get_vocab() if any("\u0400" <= c < "\u0500" for c in token)]
    assert len(cyrillic) > 50
    lost = prepare(source, small(vocab_size=256), tmp_path)
    assert all(token.isascii() for token in lost.tokenizer.get_vocab())
    assert lost.metadata["tokens"] < kept.metadata["tokens"]
