"""Tasks from the Hugging Face hub, or from what an earlier call left in its cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from cramming_train.errors import RunError
from cramming_train.evaluation.sources import Rows
from cramming_train.evaluation.tasks import Suite, Task

PROBE_SECONDS = 5.0
BATCH = 1000  # rows read at once


class Hub:
    """The hub's data set of a suite; of one task after the other, only the present one is kept open."""

    def __init__(self, suite: Suite) -> None:
        self._suite = suite
        self.name = f"hub: {suite.repository}"
        self._opened: tuple[str, Any] = ("", None)

    def rows(self, task: Task, config: str | None, split: str) -> Rows | None:
        """(where, row) of a split, or None; RunError with the remedy where there is neither network nor cache."""
        config = config or task.config or task.name
        if self._opened[0] != config:
            self._opened = (config, self._open(config))
        splits = self._opened[1]
        return self._numbered(splits[split], f"{self.name}, {config} {split}") if split in splits else None

    def _numbered(self, rows: Any, where: str) -> Rows:
        number = 0
        for batch in rows.iter(batch_size=BATCH):
            for values in zip(*batch.values(), strict=True):
                yield f"{where}, row {number}", dict(zip(batch, values, strict=True))
                number += 1

    @cached_property
    def _reachable(self) -> bool:
        """Ask once, with a short patience: ``datasets`` itself retries for half a minute."""
        from huggingface_hub import HfApi

        try:
            HfApi().dataset_info(self._suite.repository, timeout=PROBE_SECONDS)
        except Exception:  # the HTTP client's own kinds, which change with its versions; all mean the same here
            return False
        return True

    def _open(self, config: str) -> Any:
        import datasets

        try:
            with _cache_only(not self._reachable):
                return datasets.load_dataset(self._suite.repository, config, revision=self._suite.revision)
        except Exception as error:  # likewise
            if not self._reachable:
                raise RunError(f"{config}: no network: give --task-dir DIR with local files") from None
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise RunError(f"{config}: the hub did not deliver it ({reason}); give --task-dir DIR") from None


@contextmanager
def _cache_only(active: bool) -> Iterator[None]:
    """Keep ``datasets`` off the network: it then uses its cache, or fails at once."""
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or active
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before
