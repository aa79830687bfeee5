"""Seeds for every purpose of a run, derived from the one that the user gives."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A 62-bit seed that depends on ``seed`` and on what it is for, the same in every process and release.

    Deriving instead of drawing keeps a run free of generator state: what micro-batch 1000 looks like depends on
    (seed, "masking", 1000) and on nothing that happened before it.
    """
    digest = hashlib.blake2b(repr((seed, *purpose)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 2
