"""Demonstration text that every machine has: the documentation inside the installed Python packages.

Enough to see everything work with no network and no files; far too narrow and too little for a good model.
"""

from __future__ import annotations

import re
import site
import sysconfig
from collections.abc import Iterator
from pathlib import Path

SOURCE = "embedded"
NOTICE = (
    "DEMONSTRATION DATA: training on the documentation text of the Python packages on this machine. "
    "Give --data PATH (text files) or a network connection for a model of any use."
)
_DOCSTRING = re.compile(r'^[ \t]*[rRuU]?("""|\'\'\')(.+?)\1', re.MULTILINE | re.DOTALL)
_MIN_DOCSTRING, _MIN_DOCUMENT = 80, 400
_MAX_FILE_BYTES = 4 << 20


def read_embedded() -> Iterator[str]:
    """Documents: the docstrings of one module each, and documentation files."""
    for root in _roots():
        for path in sorted(root.rglob("*")):
            if path.suffix in (".py", ".rst", ".md") or path.name == "METADATA":
                text = _document(path)
                if len(text) >= _MIN_DOCUMENT:
                    yield text


def _roots() -> list[Path]:
    candidates = [sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    candidates += site.getsitepackages() if hasattr(site, "getsitepackages") else []
    roots: list[Path] = []
    for path in sorted({Path(p).resolve() for p in candidates if p}, key=lambda p: len(p.parts)):
        if path.is_dir() and not any(parent in roots for parent in path.parents):
            roots.append(path)
    return roots


def _document(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            return ""
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""  # one unreadable file of thousands is no reason to stop
    if path.suffix != ".py":
        return text
    docstrings = (match.group(2).strip() for match in _DOCSTRING.finditer(text))
    return "\n\n".join(text for text in docstrings if len(text) >= _MIN_DOCSTRING)
