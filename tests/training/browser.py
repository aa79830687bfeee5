"""A page opened in a headless browser: what it looks like at several widths, and what its document says of itself."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
# Frames, because a headless window has a least width; the page within is as it is, its content policy included
FRAME = '<iframe id="w{width}" style="width:{width}px;height:{height}px" srcdoc="{page}"></iframe>'
STYLE = "<style>body { margin: 0 } iframe { border: 0; display: block }</style>"
SCRIPT = """
<script>
addEventListener('load', () => {
  const found = {};
  for (const frame of document.querySelectorAll('iframe')) {
    const page = frame.contentDocument, view = frame.contentWindow;
    const images = [...page.querySelectorAll('img')].filter(i => i.getBoundingClientRect().width > 0);
    const edge = view.innerWidth + 0.5;
    const wide = [...page.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > edge);
    found[frame.id.slice(1)] = {
      images: images.map(i => [i.alt, i.complete, i.naturalWidth, Math.round(i.getBoundingClientRect().width)]),
      kinds: images.map(i => i.className),
      scroll_width: page.documentElement.scrollWidth,
      overflowing: wide.map(e => e.tagName + '.' + e.className + ': ' + e.textContent.slice(0, 40)),
      requests: view.performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.startsWith('data:')),
      background: view.getComputedStyle(page.body).backgroundColor,
      ink: view.getComputedStyle(page.body).color,
      text_width: page.querySelector('main').getBoundingClientRect().width,
      headings: [...page.querySelectorAll('h1, h2')].map(e => e.textContent),
    };
  }
  const result = document.createElement('pre');
  result.id = 'result';
  result.textContent = JSON.stringify(found);
  document.body.replaceChildren(result);
});
</script>
"""


def chromium() -> str:
    """The browser's program; skips the test where there is none."""
    for name in PROGRAMS:
        if path := shutil.which(name):
            return path
    pytest.skip(f"no browser to open the page in: none of {', '.join(PROGRAMS)} is installed")


def examine(page: Path, widths: tuple[int, ...], *, dark: bool = False) -> dict[int, dict[str, Any]]:
    """What the page's document says at each width in CSS pixels, once everything is loaded."""
    dumped = _browse(_wrapper(page, widths, 900, SCRIPT), "--dump-dom", dark=dark).decode()
    found = re.search(r'<pre id="result">(.*?)</pre>', dumped, re.S)
    assert found, dumped[-2000:]
    return {int(width): content for width, content in json.loads(html.unescape(found[1])).items()}


def screenshot(page: Path, target: Path, width: int, height: int, *, dark: bool = False) -> Path:
    """The top of the page as a PNG."""
    size = f"--window-size={max(width, 500)},{height}"
    _browse(_wrapper(page, (width,), height, ""), f"--screenshot={target}", size, dark=dark)
    return target


def _wrapper(page: Path, widths: tuple[int, ...], height: int, script: str) -> str:
    content = html.escape(page.read_text(encoding="utf-8"))
    frames = "".join(FRAME.format(width=width, height=height, page=content) for width in widths)
    return f"<!doctype html>{STYLE}<body>{frames}{script}</body>"


def _browse(content: str, *options: str, dark: bool) -> bytes:
    program = chromium()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "wrapper.html"
        file.write_text(content, encoding="utf-8")
        theme = ("--force-dark-mode",) if dark else ()
        command = (program, *OPTIONS, *theme, *options, f"--user-data-dir={folder}/profile", file.as_uri())
        done = subprocess.run(command, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-2000:]
    return done.stdout
