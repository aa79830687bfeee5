"""The CUDA kernels without a GPU: the real launchers call a hook, which executes the very PTX in a simulator.

PTX is made from the same sources as the library, for the architecture asked for, and kept until a source changes.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
import torch

from cramkernels import library
from cramkernels.cuda import arguments
from cramkernels.dispatch import simulate_backend

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "csrc"
FAMILIES = ("layer_norm_gelu", "layer_norm", "add_layer_norm", "gelu_layer_norm", "geglu")  # the longest prefix first
FAMILY_FILES = {
    "ck_reduce_partials": "reduce",
    "ck_loss_rows": "loss_rows", "ck_loss_count": "loss_sums", "ck_loss_finish": "loss_sums",
    "ck_attention_short_forward": "attention_short_forward", "ck_attention_short_backward": "attention_short_backward",
    "ck_attention_long_forward": "attention_long_forward", "ck_attention_long_backward": "attention_long_backward",
    "ck_attention_mid_backward": "attention_mid_backward", "ck_attention_delta": "attention_delta",
    "ck_attention_fp32": "attention_fp32", "ck_rotary": "rotary",
    "ck_loss_tiles": "loss_recompute", "ck_loss_slice": "loss_recompute", "ck_loss_combine": "loss_recompute",
}  # by the beginning of the kernel's name  # fmt: skip
SIMULATOR = ROOT / ".." / "shared" / "tools" / "ptxsim"
POINTERS = {block.size: pointers for block, pointers in arguments.BLOCKS.values()}  # by the size of the argument block

sys.path.insert(0, str(SOURCES))


def simulator():
    """The ptxsim package; skips where it or nvcc or the built library is absent."""
    if not SIMULATOR.is_dir():
        pytest.skip("ptxsim: no ../shared/tools/ptxsim beside the checkout")
    from native_build import find_nvcc

    if find_nvcc() is None:
        pytest.skip("nvcc is not installed")
    if isinstance(library.load(), str):
        pytest.skip(library.load())
    sys.path.insert(0, str(SIMULATOR.resolve()))
    import ptxsim

    return ptxsim


@cache
def module_with(symbol: str, architecture: int, sources: Path = SOURCES):
    """The PTX module that holds a kernel."""
    starts = FAMILY_FILES | {f"ck_{stem}_": stem for stem in FAMILIES}
    stem = next(stem for start, stem in starts.items() if symbol.startswith(start))
    return _module(next(sources.rglob(f"{stem}.cu")), architecture)


def all_kernels(architecture: int) -> list[str]:
    """Every kernel of csrc."""
    stems = dict.fromkeys([*FAMILIES, *FAMILY_FILES.values()])
    texts = (ptx(next(SOURCES.rglob(f"{stem}.cu")), architecture) for stem in stems)
    return [name for text in texts for name in re.findall(r"^\.visible \.entry (\w+)\(", text, re.MULTILINE)]


@cache
def _module(source: Path, architecture: int):
    import ptxsim

    return ptxsim.Module(ptx(source, architecture))


def ptx(source: Path, architecture: int) -> str:
    """PTX of one source file."""
    from native_build import FLAGS, find_nvcc

    digest = hashlib.sha256(f"{source.name} {architecture}".encode())
    folder = source.parents[1]
    for path in sorted(folder.rglob("*.[ch]*")):
        digest.update(path.read_bytes())
    path = Path(tempfile.gettempdir()) / "cramkernels-ptx" / f"{source.stem}-{digest.hexdigest()[:16]}.ptx"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        fresh = path.with_suffix(f".{os.getpid()}")
        command = [find_nvcc(), "-ptx", *FLAGS, "-lineinfo", f"-arch=compute_{architecture}", source, "-o", fresh]
        subprocess.run([str(word) for word in command], check=True, capture_output=True)
        fresh.rename(path)
    return path.read_text()


def planted(folder: Path, file: str, there: str, instead: str) -> Path:
    """A copy of csrc with one change."""
    sources = folder / "csrc"
    shutil.copytree(SOURCES, sources)
    text = (sources / file).read_text()
    assert there in text, f"{file} has changed: {there}"
    (sources / file).write_text(text.replace(there, instead, 1))
    return sources


class Executed(list):
    """(symbol, ptxsim's result) of each launch; of the CUDA library's also what the launcher asked for."""

    def __init__(self):
        super().__init__()
        self.launches: list[library.Launch] = []

    def symbols(self) -> list[str]:
        """The kernels that ran, in order."""
        return [symbol for symbol, _ in self]


@contextmanager
def simulated(architecture: int, check: str = "full", sources: Path = SOURCES) -> Iterator[Executed]:
    """Within this context launches of the library execute in the simulator, with ``check`` and the race check on."""
    ptxsim = simulator()
    executed = Executed()

    def hook(launch: library.Launch) -> None:
        symbol = launch.symbol.decode()
        raw = ctypes.string_at(launch.arguments, launch.argument_bytes)
        memory = ptxsim.GlobalMemory()
        result = module_with(symbol, architecture, sources).launch(
            symbol, grid=tuple(launch.grid), block=tuple(launch.block), args=[_translated(raw, memory)],
            shared_bytes=launch.shared_bytes, check=check, global_races=check == "full", memory=memory,
        )  # fmt: skip
        executed.append((symbol, result))
        executed.launches.append(library.Launch.from_buffer_copy(launch))

    before, arguments.SIMULATED_CAPABILITY = arguments.SIMULATED_CAPABILITY, divmod(architecture, 10)
    try:
        with library.launch_hook(hook), simulate_backend("cuda"):
            yield executed
    finally:
        arguments.SIMULATED_CAPABILITY = before


def _translated(raw: bytes, memory) -> bytes:
    """The argument block with simulated addresses: each pointer is that of a tensor of the caller, with its bounds."""
    count = POINTERS[len(raw)]
    pointers = struct.unpack_from(f"={count}Q", raw)
    smallest: dict[int, torch.Tensor] = {}
    for x in _tensors_of_callers():
        address = x.data_ptr()
        if address not in smallest or x.numel() < smallest[address].numel():
            smallest[address] = x
    missing = [p for p in pointers if p and p not in smallest]
    assert not missing, "a pointer that belongs to no tensor"
    distinct = [p for p in dict.fromkeys(pointers) if p]
    addresses = dict(zip(distinct, memory.register_all([("tensor", smallest[p]) for p in distinct]), strict=True))
    return struct.pack(f"={count}Q", *(addresses.get(p, 0) for p in pointers)) + raw[8 * count :]


def _tensors_of_callers() -> Iterator[torch.Tensor]:
    """The local tensors of the functions that led to ``library.call``."""
    frame = sys._getframe()
    while frame.f_code is not library.call.__code__:
        frame = frame.f_back
    for _ in range(3):
        frame = frame.f_back
        for value in frame.f_locals.values():
            for x in value if isinstance(value, list | tuple) else [value]:
                if isinstance(x, torch.Tensor):
                    yield x
