"""Philox4x32-10 in Python integers, written from the paper (Salmon et al. 2011), to check the tensor version."""

from __future__ import annotations

from collections.abc import Iterable

MASK = 0xFFFFFFFF


def philox(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    """Ten rounds of four 32-bit words under two key words."""
    for number in range(10):
        key0, key1 = (key[0] + number * 0x9E3779B9) & MASK, (key[1] + number * 0xBB67AE85) & MASK
        high0, low0 = divmod(0xD2511F53 * counter[0], 1 << 32)
        high1, low1 = divmod(0xCD9E8D57 * counter[2], 1 << 32)
        counter = (high1 ^ counter[1] ^ key0, low1, high0 ^ counter[3] ^ key1, low0)
    return counter


def kept(seed: int, head: int, row: int, columns: Iterable[int], stream: int, dropout_p: float) -> list[bool]:
    """Which columns of a row survive: word column % 4 at counter (column // 4, row, head, stream)."""
    key = (seed & MASK, (seed >> 32) & MASK)
    threshold = int(dropout_p * 2**32)
    blocks: dict[int, tuple[int, ...]] = {}
    result = []
    for column in columns:
        block = column // 4
        if block not in blocks:
            blocks[block] = philox((block, row, head, stream), key)
        result.append(blocks[block][column % 4] >= threshold)
    return result
