"""How the kernels of attention are launched on each part: one table, which is data.

The rows were chosen without a card, by what benchmarks/tilings.py counts: of what compiles, fits and spills least, the
least time of the resource that binds it, and within a twentieth of that the most resident warps. On a card
``python -m cramkernels.tune`` times the candidates and stores its choices (cramkernels/tuned.py), which then go before
the table. Kernels in CUDA C++ have their tiles from the compiler: a row of theirs says only what is chosen at run time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

import torch

SHARED_BYTES = {75: 64 << 10, 80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 120: 99 << 10}  # of a CTA
SIMULATED_PART = 80  # where there is no device


class Key(NamedTuple):
    """What a configuration is for."""

    kernel: str  # backend and function
    bits: int  # of a number
    head_dim: int
    longest: int  # sequence, in tokens; 0: any


class Tiling(NamedTuple):
    """How a kernel is launched. What is zero has no meaning for the kernel, or was fixed when it was compiled."""

    tile: int = 0  # tokens that a program owns
    chunk: int = 0  # keys that stream past queries, at a time
    slice: int = 0  # queries that stream past keys, at a time
    stages: int = 0  # of the pipeline that loads them
    warps: int = 0
    whole: bool = False  # a tile holds whole sequences


FIELDS = (*Key._fields, *Tiling._fields)
FORWARD, BACKWARD = "triton.attention_forward", "triton.attention_backward"
MID_BACKWARD = "triton.attention_mid_backward"  # of sequences that a few tiles hold
# Of a name: rows for calls of one kind, where those for all calls are not the best of it, or spill
PLAIN = "_plain"  # without rotation, mask and dropout: of fewer registers
MASKED = "_masked"  # with a mask of keys or dropout: of more
CUDA_SHORT_FORWARD = "cuda.attention_short_forward"
AMPERE_ON = (80, 86, 89, 90, 120)
#            kernel, bits, D, longest      parts      tile, chunk, slice, stages, warps, whole
TABLE: tuple[tuple[Key, tuple[int, ...], Tiling], ...] = (
    (Key(FORWARD, 16, 32, 64), AMPERE_ON, Tiling(64, 64, 0, 2, 4, True)),
    (Key(FORWARD + PLAIN, 16, 32, 64), (80, 86, 89), Tiling(64, 32, 0, 2, 4, True)),
    (Key(FORWARD + PLAIN, 16, 32, 64), (90, 120), Tiling(64, 64, 0, 2, 4, True)),
    (Key(FORWARD + MASKED, 16, 32, 64), AMPERE_ON, Tiling(64, 16, 0, 2, 4, True)),
    (Key(FORWARD, 16, 32, 128), (80, 90), Tiling(128, 32, 0, 2, 4, True)),
    (Key(FORWARD, 16, 32, 128), (86, 89, 120), Tiling(128, 16, 0, 2, 4, True)),
    (Key(FORWARD, 16, 32, 0), (80,), Tiling(128, 32, 0, 2, 4)),
    (Key(FORWARD, 16, 32, 0), (86, 89, 120), Tiling(128, 32, 0, 2, 8)),
    (Key(FORWARD, 16, 32, 0), (90,), Tiling(128, 64, 0, 2, 8)),
    (Key(FORWARD, 16, 64, 64), (86, 89, 90, 120), Tiling(64, 64, 0, 2, 4, True)),
    (Key(FORWARD, 16, 64, 64), (80,), Tiling(64, 32, 0, 2, 4, True)),
    (Key(FORWARD, 16, 64, 128), (90,), Tiling(128, 32, 0, 2, 4, True)),
    (Key(FORWARD, 16, 64, 128), (80, 86, 89, 120), Tiling(128, 16, 0, 2, 4, True)),
    (Key(FORWARD, 16, 64, 0), AMPERE_ON, Tiling(128, 32, 0, 2, 4)),
    (Key(FORWARD + PLAIN, 16, 64, 0), AMPERE_ON, Tiling(128, 64, 0, 2, 4)),
    # a tile of fewer rows than the head has columns is laid out along these: each warp would hold all of its queries
    (Key(FORWARD, 16, 128, 128), AMPERE_ON, Tiling(128, 16, 0, 2, 8, True)),
    (Key(FORWARD, 16, 128, 0), AMPERE_ON, Tiling(128, 16, 0, 2, 8)),
    # fp32 takes twice the registers, and as many again for the two tf32 terms; where a tile has fewer rows than its
    # warps could hold, they exchange more, with some bank conflicts
    (Key(FORWARD, 32, 32, 0), AMPERE_ON, Tiling(64, 32, 0, 2, 4)),
    (Key(FORWARD, 32, 64, 0), AMPERE_ON, Tiling(64, 16, 0, 2, 4)),
    (Key(FORWARD, 32, 128, 0), AMPERE_ON, Tiling(16, 16, 0, 2, 8)),
    (Key(BACKWARD, 16, 32, 64), AMPERE_ON, Tiling(64, 0, 16, 2, 4, True)),
    (Key(BACKWARD, 16, 32, 128), AMPERE_ON, Tiling(128, 0, 32, 2, 8, True)),
    (Key(BACKWARD, 16, 32, 0), (80,), Tiling(128, 64, 16, 2, 8)),
    (Key(BACKWARD, 16, 32, 0), (86, 89, 90), Tiling(128, 32, 16, 2, 8)),
    (Key(BACKWARD, 16, 32, 0), (120,), Tiling(128, 16, 16, 2, 8)),
    (Key(BACKWARD + MASKED, 16, 32, 0), (80, 86, 89), Tiling(128, 64, 16, 2, 8)),
    (Key(BACKWARD + MASKED, 16, 32, 0), (90,), Tiling(128, 32, 16, 2, 8)),
    (Key(BACKWARD + MASKED, 16, 32, 0), (120,), Tiling(128, 16, 16, 2, 8)),
    (Key(BACKWARD, 16, 64, 64), AMPERE_ON, Tiling(64, 0, 16, 2, 4, True)),
    # four warps load half of what eight do, which binds where tensor cores are fast; with more to do they spill on most
    (Key(BACKWARD, 16, 64, 128), (90,), Tiling(128, 0, 16, 2, 4, True)),
    (Key(BACKWARD, 16, 64, 128), (80, 86, 89, 120), Tiling(128, 0, 16, 2, 8, True)),
    (Key(BACKWARD + PLAIN, 16, 64, 128), (80, 86, 89, 120), Tiling(128, 0, 16, 2, 4, True)),
    (Key(BACKWARD + PLAIN, 16, 64, 128), (90,), Tiling(128, 0, 16, 1, 4, True)),
    (Key(BACKWARD + MASKED, 16, 64, 128), AMPERE_ON, Tiling(128, 0, 16, 2, 8, True)),
    (Key(BACKWARD, 16, 64, 0), AMPERE_ON, Tiling(128, 32, 16, 2, 8)),
    # with 128 columns dK, dV and dQ of a tile are more than registers hold: sequences are cut whatever their length
    (Key(BACKWARD, 16, 128, 0), AMPERE_ON, Tiling(128, 16, 16, 2, 8)),
    (Key(BACKWARD + PLAIN, 16, 128, 0), (80, 86, 89, 120), Tiling(128, 16, 16, 1, 8)),
    (Key(BACKWARD + PLAIN, 16, 128, 0), (90,), Tiling(128, 16, 16, 2, 8)),
    (Key(BACKWARD + MASKED, 16, 128, 0), (80,), Tiling(32, 16, 16, 1, 8)),
    (Key(BACKWARD + MASKED, 16, 128, 0), (86, 89, 120), Tiling(128, 16, 16, 1, 8)),
    (Key(BACKWARD + MASKED, 16, 128, 0), (90,), Tiling(128, 16, 16, 2, 8)),
    (Key(MID_BACKWARD, 16, 32, 0), AMPERE_ON, Tiling(128, 0, 16, 2, 4)),
    (Key(MID_BACKWARD + MASKED, 16, 32, 0), AMPERE_ON, Tiling(128, 0, 16, 2, 8)),
    (Key(MID_BACKWARD, 16, 64, 0), AMPERE_ON, Tiling(128, 0, 16, 2, 8)),
    (Key(MID_BACKWARD + PLAIN, 16, 64, 0), (80, 86, 89), Tiling(128, 0, 16, 2, 4)),
    (Key(MID_BACKWARD + PLAIN, 16, 64, 0), (90, 120), Tiling(128, 0, 16, 1, 4)),
    (Key(BACKWARD, 32, 32, 0), AMPERE_ON, Tiling(64, 32, 16, 2, 4)),
    (Key(BACKWARD, 32, 64, 0), AMPERE_ON, Tiling(16, 32, 16, 2, 4)),
    (Key(BACKWARD + MASKED, 32, 64, 0), (80, 86, 89, 90), Tiling(16, 32, 16, 1, 4)),
    (Key(BACKWARD + MASKED, 32, 64, 0), (120,), Tiling(16, 32, 32, 2, 4)),
    (Key(BACKWARD, 32, 128, 0), (80, 86, 89, 120), Tiling(16, 32, 16, 1, 8)),
    (Key(BACKWARD, 32, 128, 0), (90,), Tiling(16, 32, 16, 2, 8)),
    # a warp for each 16 rows of the tile: fewer take turns
    (Key(CUDA_SHORT_FORWARD, 16, 32, 128), (75, *AMPERE_ON), Tiling(128, warps=8, whole=True)),
    (Key(CUDA_SHORT_FORWARD, 16, 64, 128), (75, *AMPERE_ON), Tiling(128, warps=8, whole=True)),
    (Key(CUDA_SHORT_FORWARD, 16, 128, 128), AMPERE_ON, Tiling(128, warps=8, whole=True)),
)
ROWS = {(key, part): tiling for key, parts, tiling in TABLE for part in parts}
KEYS = tuple(dict.fromkeys(key for key, _, _ in TABLE))
LENGTHS = (64, 128)  # at which the table makes a difference
_overrides: dict[Key, Tiling] = {}


def keys_of(part: int) -> list[Key]:
    """What the table has for a part."""
    return [key for key in KEYS if (key, part) in ROWS]


def tiling_for(kernel: str, x: torch.Tensor, max_seqlen: int, kind: str = "") -> Tiling:
    """The configuration for tensors like ``x`` [.., D], sequences of at most ``max_seqlen`` tokens, calls of a kind."""
    longest = next((length for length in LENGTHS if max_seqlen <= length), 0)
    # what may change while a program runs is part of what the choice is remembered by
    now = (SIMULATED_PART, *_overrides.items())
    return _tiling(kernel, x.dtype.itemsize * 8, x.shape[-1], longest, kind, x.device, now)


def kernel_of(key: Key) -> str:
    """What a row launches, whatever kind of calls it is for."""
    return key.kernel.removesuffix(PLAIN).removesuffix(MASKED)


def key_for(kernel: str, bits: int, head_dim: int, longest: int, kind: str = "") -> Key:
    """The row that serves sequences of this length: one for whole sequences, else that for any."""
    names = dict.fromkeys((kernel + kind, kernel))
    for length in (*(length for length in LENGTHS if longest and length >= longest), 0):
        for name in names:
            if (key := Key(name, bits, head_dim, length)) in KEYS:
                return key
    raise KeyError(f"no row for {kernel}, {bits} bits, head dim {head_dim}")


def part_of(device: torch.device) -> int:
    """The part of the table for a device: its own architecture, else the nearest before it."""
    if device.type != "cuda":
        return SIMULATED_PART
    major, minor = torch.cuda.get_device_capability(device)
    return max(part for part in SHARED_BYTES if part <= max(10 * major + minor, min(SHARED_BYTES)))


def candidates(key: Key, part: int) -> list[Tiling]:
    """What the tuner times, the table's own first."""
    own = ROWS[key, part]
    found = dict.fromkeys([own])
    if key.kernel == CUDA_SHORT_FORWARD:
        return list(found | dict.fromkeys(own._replace(warps=warps) for warps in (8, 4, 2, 1)))
    tiles = (key.longest,) if own.whole else (64, 128) if key.bits == 16 else (16, 32, 64)
    steps = ((16, 2), (32, 1), (32, 2), (64, 2)) if key.bits == 16 else ((16, 1), (16, 2), (32, 2))
    for tile in tiles:
        for warps in (4, 8):
            for step, stages in steps:
                if kernel_of(key) == FORWARD:
                    found[Tiling(tile, step, 0, stages, warps, own.whole)] = None
                elif step < 64:
                    chunk = max(step, 32) if own.chunk else 0
                    found[Tiling(tile, chunk, step, stages, warps, own.whole)] = None
    return list(found)


def known(key: Key, tiling: Tiling) -> tuple[Key, Tiling] | None:
    """The same from the table and its candidates, or None: a damaged file cannot launch anything else."""
    for own, part in ROWS:
        if own == key:
            for candidate in candidates(own, part):
                if candidate == tiling:
                    return own, candidate
    return None


@contextmanager
def override(key: Key, tiling: Tiling) -> Iterator[None]:
    """Within this context launches for ``key`` take this configuration: for the tuner and for tests."""
    before = _overrides.get(key)
    _overrides[key] = tiling
    try:
        yield
    finally:
        del _overrides[key]
        if before is not None:
            _overrides[key] = before


@cache
def _tiling(kernel: str, bits: int, head_dim: int, longest: int, kind: str, device: torch.device, now: tuple) -> Tiling:
    key = key_for(kernel, bits, head_dim, longest, kind)
    return _overrides.get(key) or _tuned(device).get(key) or ROWS[key, part_of(device)]


@cache
def _tuned(device: torch.device) -> dict[Key, Tiling]:
    from cramkernels import tuned

    if device.type != "cuda":
        return {}
    major, minor = torch.cuda.get_device_capability(device)
    return tuned.load(tuned.Card(torch.cuda.get_device_name(device), 10 * major + minor, tuned.library_version()))
