"""The peers of attention's cost table, from a folder outside the repository: nothing of their text is kept here.

The folder holds their files as they are published, and COMMITS: a line each, ``file repository commit``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from unittest import mock

import torch

from benchmarks.cost_cases import TRITON, Named, simulation
from benchmarks.cost_peers import Absent


@dataclass(frozen=True)
class Peer:
    """A file that has a fused attention in Triton."""

    name: str
    file: str
    dtype: torch.dtype
    configuration: str


TUTORIAL = Peer(
    "Triton's tutorial", "06-fused-attention.py", torch.float16,
    "fp16, which is all it has; the one forward configuration that the file keeps for reproducible runs: 128 queries, "
    "64 keys, 2 stages, 4 warps",
)  # fmt: skip
DAO = Peer(
    "flash_attn_triton", "flash_attn_triton.py", torch.bfloat16,
    "bf16, packed q, k, v; the first of its two backward configurations: no atomics, dq summed in fp32 in memory",
)  # fmt: skip
PEERS = (TUTORIAL, DAO)


def described(language: str) -> dict[str, str]:
    """dtype and configuration of a row."""
    peer = next((peer for peer in PEERS if peer.name == language), None)
    if peer is None:
        return {"dtype": "bfloat16", "configuration": ""}
    return {"dtype": str(peer.dtype).removeprefix("torch."), "configuration": peer.configuration}


def commits(folder: Path | None) -> dict[str, str]:
    """File -> repository and commit."""
    path = folder and folder / "COMMITS"
    if not path or not path.is_file():
        return {}
    lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
    return {name: f"{repository} at {commit}" for name, repository, commit in lines}


def calls(name: str, shape, folder: Path | None) -> dict[str, tuple[Callable[[], Named], Named]]:
    """Direction -> (call, its inputs); the backward is of what the forward kept."""
    peer = next(peer for peer in PEERS if peer.name == name)
    if folder is None:
        raise Absent("no --peer-path")
    if not (folder / peer.file).is_file():
        raise Absent(f"no {peer.file} in --peer-path")
    with _or_absent():
        module = load(folder.resolve() / peer.file)
    directions = (_tutorial if peer is TUTORIAL else _dao)(module, shape)
    return {direction: (_patched(call), inputs) for direction, (call, inputs) in directions.items()}


def _tutorial(module: ModuleType, shape) -> dict:
    sizes = shape.sequences, shape.heads, shape.length, shape.head_dim
    generator = torch.Generator().manual_seed(1)
    q, k, v, dout = (torch.randn(sizes, generator=generator).to(TUTORIAL.dtype) for _ in range(4))
    for x in (q, k, v):
        x.requires_grad_()
    kept: Named = {"q": q, "k": k, "v": v, "dout": dout}

    def forward() -> Named:
        kept["out"] = module.attention(q, k, v, False, shape.head_dim**-0.5, False)
        kept["lse"] = kept["out"].grad_fn.saved_tensors[4]
        return {"out": kept["out"], "lse": kept["lse"]}

    def backward() -> Named:
        return dict(zip(("dq", "dk", "dv"), torch.autograd.grad(kept["out"], (q, k, v), dout), strict=True))

    return {"forward": (forward, {"q": q, "k": k, "v": v}), "backward": (backward, kept)}


def _dao(module: ModuleType, shape) -> dict:
    generator = torch.Generator().manual_seed(1)
    sizes = shape.sequences, shape.length, 3, shape.heads, shape.head_dim
    qkv = torch.randn(sizes, generator=generator).to(DAO.dtype).requires_grad_()
    dout = torch.randn(qkv[:, :, 0].shape, generator=generator).to(DAO.dtype)
    kept: Named = {"qkv": qkv, "dout": dout}

    def forward() -> Named:
        kept["out"] = module.flash_attn_qkvpacked_func(qkv, None, False, None)
        kept["lse"] = kept["out"].grad_fn.saved_tensors[2]
        return {"out": kept["out"], "lse": kept["lse"]}

    def backward() -> Named:
        return {"dqkv": torch.autograd.grad(kept["out"], qkv, dout)[0]}

    return {"forward": (forward, {"qkv": qkv}), "backward": (backward, kept)}


@cache
def load(path: Path) -> ModuleType:
    """The file as a module; without its assertions, which want tensors of a GPU."""
    module = ModuleType(f"peer_{path.stem.replace('-', '_')}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # Triton looks for the globals of a kernel there
    # PYTEST_VERSION is how the tutorial is told to have one configuration
    with _a_gpu_of_sm_80(), mock.patch.dict(os.environ, PYTEST_VERSION="1"), simulation(TRITON)():
        exec(compile(path.read_text(), path, "exec", dont_inherit=True, optimize=1), module.__dict__)
    return module


def _patched(call: Callable[[], Named]) -> Callable[[], Named]:
    def run() -> Named:
        with _or_absent(), _a_gpu_of_sm_80(), _former_dot():
            return call()

    return run


@contextmanager
def _or_absent() -> Iterator[None]:
    """Whatever it is that another version of Triton, or of the file, cannot do: then there is no row."""
    try:
        yield
    except Exception as error:
        text = (str(error).strip().splitlines() or [""])[-1][:100]
        raise Absent(f"cannot be run by this Triton: {type(error).__name__}: {text}") from error


def _a_gpu_of_sm_80():
    """Launchers ask torch what the GPU is."""
    return mock.patch.object(torch.cuda, "get_device_capability", lambda *_: (8, 0))


@contextmanager
def _former_dot() -> Iterator[None]:
    """tl.dot as it was until Triton 2.1, with ``trans_a`` and ``trans_b``."""
    import triton.language as tl

    present = tl.dot

    @tl.core.builtin
    def dot(input, other, acc=None, trans_a=False, trans_b=False, _semantic=None, **options):
        first = tl.trans(input, _semantic=_semantic) if trans_a else input
        second = tl.trans(other, _semantic=_semantic) if trans_b else other
        return present(first, second, acc, _semantic=_semantic, **options)

    with mock.patch.object(tl, "dot", dot):
        yield
