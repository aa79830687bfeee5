"""From memory-mapped rows to micro-batches: which rows come when is a pure function of how many came before."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from cramming_train.seeds import derive_seed


class RowSource(Protocol):
    """What the stream needs of a row store."""

    row_length: int

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> np.ndarray: ...

    def take(self, indices: np.ndarray) -> np.ndarray: ...


class RowStream:
    """An endless stream of rows: the stored (curriculum) order first, then a new seeded order for every epoch.

    It keeps no position. ``batch(first_row, count)`` gives the rows number ``first_row`` onward of the stream, so
    a resumed run asks for the next number and gets what an uninterrupted one would have got.
    """

    def __init__(self, rows: RowSource, seed: int):
        if len(rows) == 0:
            raise ValueError("rows: got none, want at least one")
        self.rows = rows
        self.seed = seed
        self._order: tuple[int, np.ndarray] | None = None

    def epoch_of(self, first_row: int) -> int:
        """The epoch, from 0, that the given row of the stream belongs to."""
        return first_row // len(self.rows)

    def batch(self, first_row: int, count: int) -> torch.Tensor:
        """Token ids int64 [count, S] on the CPU."""
        parts = []
        while count > 0:
            epoch, offset = divmod(first_row, len(self.rows))
            taken = min(count, len(self.rows) - offset)
            parts.append(self._read(epoch, offset, taken))
            first_row += taken
            count -= taken
        ids = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return torch.from_numpy(ids.astype(np.int64))

    def _read(self, epoch: int, offset: int, count: int) -> np.ndarray:
        if epoch == 0:
            return self.rows.read(offset, offset + count)
        if self._order is None or self._order[0] != epoch:
            generator = np.random.Generator(np.random.Philox(derive_seed(self.seed, "row order", epoch)))
            self._order = (epoch, generator.permutation(len(self.rows)))
        return self.rows.take(self._order[1][offset : offset + count])
