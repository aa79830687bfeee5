"""Cleaning: the same text for the tokenizer, for pretraining and for fine-tuning.

``ascii`` is the original's rule: quotes and dashes unified, lower case, accents stripped, what is still not ASCII
dropped, spaces collapsed. ``unicode`` keeps every script: NFKC, lower case, control characters dropped, spaces
collapsed. ``none`` is for foreign weights, whose tokenizer does it all: text stays as it is, and cannot be prepared so.

Each rule exists twice by necessity: as a Python function, which is fast on whole documents, and as a normaliser inside
tokenizer.json, so that the tokenizer alone treats new text as it was treated in training. A test holds them equal.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable

from tokenizers import Regex, normalizers

_UNIFIED = {
    "‘": "'", "’": "'", "‚": "'", "‛": "'", "′": "'", "`": "'", "´": "'",
    "“": '"', "”": '"', "„": '"', "‟": '"', "″": '"', "«": '"', "»": '"',
    "‐": "-", "‑": "-", "‒": "-", "–": "-", "—": "-", "―": "-", "−": "-", "…": "...",
}  # fmt: skip
_UNIFY = str.maketrans(_UNIFIED)
_COMBINING = re.compile("[\u0300-\u036f]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROL = re.compile("[\x00-\x08\x0e-\x1b\x7f\x80-\x84\x86-\x9f]")
_CONTROL_CLASS = r"[\x{00}-\x{08}\x{0e}-\x{1b}\x{7f}\x{80}-\x{84}\x{86}-\x{9f}]"
_SPACE_CLASS = (
    r"[\x{09}-\x{0d}\x{1c}-\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}]+"
)
RULES = ("ascii", "unicode")


def clean_text(text: str, rule: str) -> str:
    """The cleaned text: one line, except by the rule "none"."""
    return clean_counted(text, rule)[0]


def _lower(text: str) -> str:
    """Lower case character by character as ``tokenizers`` does it: Python alone has a form for the last sigma."""
    return text.replace("Σ", "σ").lower()


def cleaner(rule: str) -> Callable[[str], str]:
    """The cleaning of one rule as a function of the text alone."""
    return functools.partial(clean_text, rule=rule)


def clean_counted(text: str, rule: str) -> tuple[str, int]:
    """The cleaned text, and how many characters the rule had to drop (accents and control characters not counted)."""
    dropped = 0
    text = _SURROGATE.sub("", text)  # halves of pairs are no characters, and cannot be encoded
    if rule == "none":
        return text, 0
    if rule == "ascii":
        if not text.isascii():
            text = _COMBINING.sub("", unicodedata.normalize("NFD", text.translate(_UNIFY).lower()))
            text = " ".join(text.split())  # before characters go: Unicode spaces separate words too
            ascii_text = text.encode("ascii", "ignore").decode("ascii")
            dropped = len(text) - len(ascii_text)
            text = ascii_text
        text = text.translate(_UNIFY).lower()
    else:
        text = _lower(unicodedata.normalize("NFKC", text))
    return " ".join(_CONTROL.sub("", text).split()), dropped


def normalizer(rule: str) -> normalizers.Normalizer:
    """The same rule, one of ``RULES``, as a ``tokenizers`` normaliser."""
    if rule == "ascii":
        steps = [normalizers.Replace(old, new) for old, new in _UNIFIED.items()]
        steps += [
            normalizers.Lowercase(),
            normalizers.NFD(),
            normalizers.Replace(Regex(r"[\x{300}-\x{36f}]"), ""),
            normalizers.Replace("`", "'"),  # again: U+1FEF becomes one by NFD
        ]
        steps += [
            normalizers.Replace(Regex(_SPACE_CLASS), " "),
            normalizers.Replace(Regex(r"[^\x{00}-\x{7f}]"), ""),
        ]
    else:
        steps = [normalizers.NFKC(), normalizers.Lowercase()]
    steps += [normalizers.Replace(Regex(_CONTROL_CLASS), ""), normalizers.Replace(Regex(_SPACE_CLASS), " ")]
    return normalizers.Sequence([*steps, normalizers.Strip()])
