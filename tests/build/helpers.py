"""A stand-in for nvcc that records how it was called, and copies of the tree to build in."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "csrc"))

import build_backend  # noqa: E402
import native_build  # noqa: E402

__all__ = ["ROOT", "StandIn", "build_backend", "copy_tree", "native_build", "program", "run_setup"]

NVCC = """
import json, os, re, sys
from pathlib import Path

home, words = Path(__file__).parent, sys.argv[1:]
settings = json.loads((home / "settings.json").read_text())
if words == ["--version"]:
    print("Cuda compilation tools, release 13.0, " + settings["release"])
elif words == ["--list-gpu-arch"]:
    print("\\n".join(f"compute_{n}" for n in settings["architectures"]))
else:
    with open(home / "calls.jsonl", "a") as log:
        log.write(json.dumps(words) + "\\n")
    out = Path(words[words.index("-o") + 1])
    if "-shared" in words:
        text = "".join(Path(word).read_text() for word in words if word.endswith(".o") and word != str(out))
        out.write_text("linked\\n" + text)
    else:
        source = Path(words[words.index("-c") + 1])
        if source.name == settings["breaks"]:
            out.write_text("half an object")
            sys.exit(source.name + "(7): error: identifier \\"foo\\" is undefined")
        if source.name == settings["slow"]:
            (source.parent / "shared.h").touch()
        headers = [source.parent / name for name in re.findall('#include "(.*)"', source.read_text())]
        escaped = [str(path).replace(" ", "\\\\ ") for path in [source, *headers]]
        Path(words[words.index("-MF") + 1]).write_text(f"{out.name} : " + " \\\\\\n    ".join(escaped) + "\\n")
        out.write_text(f"{source.name}\\n")
"""


def program(path: Path, code: str) -> Path:
    """A small Python program that can be executed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{sys.executable} -ISs\n{code}")
    path.chmod(0o755)
    return path


class StandIn:
    """An nvcc that compiles nothing: objects and libraries are small texts that say what they were made of."""

    def __init__(self, folder: Path):
        self.path = program(folder / "nvcc", NVCC)
        self.settings = {"release": "V13.0.88", "architectures": [70, *native_build.ARCHITECTURES, 121]}
        self.set(breaks=None, slow=None)

    def set(self, **settings) -> None:
        """``breaks``, ``slow``: the source that fails; the one during whose compilation shared.h is changed."""
        self.settings.update(settings)
        (self.path.parent / "settings.json").write_text(json.dumps(self.settings))

    def calls(self) -> list[list[str]]:
        """The compilations and links since this was last asked."""
        log = self.path.parent / "calls.jsonl"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return [json.loads(line) for line in lines]

    def compiled(self) -> list[str]:
        """The sources compiled since this was last asked, and "linked" if there was a link."""
        calls = self.calls()
        return sorted(Path(words[words.index("-c") + 1]).name if "-c" in words else "linked" for words in calls)


def copy_tree(folder: Path) -> Path:
    """What a build needs, without what earlier ones have made."""
    tree = folder / "tree"
    tree.mkdir(parents=True)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, tree)
    for name in ("csrc", "cramkernels", "cramming_train"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("*.so", "*.new", "__pycache__"))
    return tree


def run_setup(tree: Path, *command: str, path: Path | None = None, **environment: str) -> subprocess.CompletedProcess:
    """``python COMMAND`` in the tree; with ``path`` as all of PATH."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("CRAMKERNELS_CUDA") and k not in _OF_NVCC}
    kept |= environment | ({"PATH": str(path)} if path else {})
    return subprocess.run(
        [sys.executable, *command], cwd=tree, env=kept, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


_OF_NVCC = ("CUDACXX", "CUDA_HOME")
