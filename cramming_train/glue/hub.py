"""GLUE from the Hugging Face hub, or from what an earlier call left in its cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from cramming_train.errors import RunError
from cramming_train.glue.reading import Examples, label_array, parse_label
from cramming_train.glue.tasks import Task

REPOSITORY = "nyu-mll/glue"
PROBE_SECONDS = 5.0


class Hub:
    """The hub's GLUE; of one task after the other, only the present one is kept open."""

    name = f"hub: {REPOSITORY}"

    def __init__(self) -> None:
        self._opened: tuple[str, Any] = ("", None)

    def load(self, task: Task, split: str) -> Examples | None:
        """Read one split; RunError with the remedy where there is neither network nor cache."""
        if self._opened[0] != task.name:
            self._opened = (task.name, self._open(task))
        splits = self._opened[1]
        if split not in splits:
            return None
        rows = splits[split]
        where = f"{self.name}, {task.name} {split}, row "
        labels = [parse_label(label, task, f"{where}{row}") for row, label in enumerate(rows["label"])]
        return Examples(tuple(list(rows[column]) for column in task.columns), label_array(labels, task))

    @cached_property
    def _reachable(self) -> bool:
        """Ask once, with a short patience: ``datasets`` itself retries for half a minute."""
        from huggingface_hub import HfApi

        try:
            HfApi().dataset_info(REPOSITORY, timeout=PROBE_SECONDS)
        except Exception:  # the HTTP client's own kinds, which change with its versions; all mean the same here
            return False
        return True

    def _open(self, task: Task) -> Any:
        import datasets

        try:
            with _cache_only(not self._reachable):
                return datasets.load_dataset(REPOSITORY, task.name)
        except Exception as error:  # likewise
            if not self._reachable:
                raise RunError(f"{task.name}: no network: give --glue-dir DIR with local TSV files") from None
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise RunError(f"{task.name}: the hub did not deliver it ({reason}); give --glue-dir DIR") from None


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
