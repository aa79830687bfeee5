"""The CUDA kernels without a GPU: the real launchers call a hook, which executes the very PTX in a simulator.

PTX is made from the same sources as the library, for the architecture asked for, and kept until a source changes.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
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
from cramkernels.cuda.arguments import BLOCKS

ROOT = Path(__file__).resolve().parents[2]
SIMULATOR = ROOT / ".." / "shared" / "tools" / "ptxsim"
POINTERS = {block.size: pointers for block, pointers in BLOCKS.values()}  # by the size of the argument block

sys.path.insert(0, str(ROOT / "csrc"))


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
def module_with(symbol: str, architecture: int, defines: tuple[str, ...] = ()):
    """The PTX module that holds a kernel."""
    for source in sorted((ROOT / "csrc").rglob("*.cu")):
        module = _module(source, architecture, defines)
        if module is not None and symbol in module.kernels:
            return module
    raise LookupError(symbol)


@cache
def _module(source: Path, architecture: int, defines: tuple[str, ...]):
    import ptxsim

    text = _ptx(source, architecture, defines)
    return ptxsim.Module(text) if ".entry" in text else None


def _ptx(source: Path, architecture: int, defines: tuple[str, ...]) -> str:
    from native_build import find_nvcc

    digest = hashlib.sha256(repr((architecture, defines)).encode())
    for path in sorted((ROOT / "csrc").rglob("*.[ch]*")):
        digest.update(path.read_bytes())
    kept = Path(tempfile.gettempdir()) / f"cramkernels-ptx-{digest.hexdigest()[:16]}"
    path = kept / f"{source.stem}.ptx"
    if not path.exists():
        kept.mkdir(exist_ok=True)
        command = [find_nvcc(), "-ptx", "-std=c++17", "-O3", "-lineinfo", f"-arch=compute_{architecture}",
                   '-DCK_ARCHITECTURES="simulated"', *defines, source, "-o", path.with_suffix(".new")]  # fmt: skip
        subprocess.run([str(word) for word in command], check=True, capture_output=True)
        path.with_suffix(".new").rename(path)
    return path.read_text()


class Executed(list):
    """(symbol, ptxsim's result) of each launch."""

    def symbols(self) -> list[str]:
        """The kernels that ran, in order."""
        return [symbol for symbol, _ in self]


@contextmanager
def simulated(architecture: int, check: str = "full", defines: tuple[str, ...] = ()) -> Iterator[Executed]:
    """Within this context launches of the library execute in the simulator, with ``check`` and the race check on."""
    ptxsim = simulator()
    executed = Executed()

    def hook(launch: library.Launch) -> None:
        symbol = launch.symbol.decode()
        raw = ctypes.string_at(launch.arguments, launch.argument_bytes)
        memory = ptxsim.GlobalMemory()
        result = module_with(symbol, architecture, defines).launch(
            symbol, grid=tuple(launch.grid), block=tuple(launch.block), args=[_translated(raw, memory)],
            shared_bytes=launch.shared_bytes, check=check, global_races=check == "full", memory=memory,
        )  # fmt: skip
        executed.append((symbol, result))

    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # fills fresh tensors with NaN: what is not written shows
    try:
        with library.launch_hook(hook):
            yield executed
    finally:
        torch.use_deterministic_algorithms(deterministic)


def _translated(raw: bytes, memory) -> bytes:
    """The argument block with simulated addresses: each pointer is that of a tensor alive now, with its bounds."""
    count = POINTERS[len(raw)]
    pointers = struct.unpack_from(f"={count}Q", raw)
    smallest: dict[int, torch.Tensor] = {}
    for x in gc.get_objects():
        if isinstance(x, torch.Tensor) and type(x) in (torch.Tensor, torch.nn.Parameter) and x.device.type == "cpu":
            address = x.data_ptr()
            if address in pointers and (address not in smallest or x.numel() < smallest[address].numel()):
                smallest[address] = x
    missing = [p for p in pointers if p and p not in smallest]
    assert not missing, "a pointer that belongs to no tensor"
    distinct = [p for p in dict.fromkeys(pointers) if p]
    addresses = dict(zip(distinct, memory.register_all([("tensor", smallest[p]) for p in distinct]), strict=True))
    return struct.pack(f"={count}Q", *(addresses.get(p, 0) for p in pointers)) + raw[8 * count :]
