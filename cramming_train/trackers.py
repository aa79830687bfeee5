"""Where the numbers of a run go besides its log: TensorBoard, Weights & Biases, Trackio; optional packages all."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

from cramming_train.errors import RunError, UsageError

PROJECT = "cramming_train"


class Tracker(Protocol):
    """One of them, opened for one run. A resumed run goes on under the same name; its steps may go back."""

    name: str

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Numbers of one step, named as ``train/loss``."""

    def close(self) -> None:
        """Deliver what is still on the way."""


class TensorBoard:
    """Event files in RUN/tensorboard, for ``tensorboard --logdir runs``."""

    name = "tensorboard"

    def __init__(self, folder: Path, run_name: str, config: dict[str, Any]):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(folder / "tensorboard")

    def scalars(self, values: dict[str, float], step: int) -> None:
        """See :class:`Tracker`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """See :class:`Tracker`."""
        self._writer.close()


class WandB:
    """A run of wandb, offline with WANDB_MODE=offline."""

    name = "wandb"

    def __init__(self, folder: Path, run_name: str, config: dict[str, Any]):
        import wandb

        self._run = wandb.init(
            project=PROJECT, name=run_name, id=run_name, resume="allow", dir=str(folder), config=config
        )
        # an axis of its own: wandb drops what is logged at a step before its last, as after a resume
        self._run.define_metric("*", step_metric="step")

    def scalars(self, values: dict[str, float], step: int) -> None:
        """See :class:`Tracker`."""
        self._run.log({**values, "step": step})

    def close(self) -> None:
        """See :class:`Tracker`."""
        self._run.finish()


class Trackio:
    """A run of trackio, on this machine, for ``trackio show``."""

    name = "trackio"

    def __init__(self, folder: Path, run_name: str, config: dict[str, Any]):
        import trackio

        self._run = trackio.init(project=PROJECT, name=run_name, resume="allow", config=config, embed=False)

    def scalars(self, values: dict[str, float], step: int) -> None:
        """See :class:`Tracker`."""
        self._run.log(values, step=step)

    def close(self) -> None:
        """See :class:`Tracker`."""
        self._run.finish()


TRACKERS: dict[str, Callable[[Path, str, dict[str, Any]], Tracker]] = {
    kind.name: kind for kind in (TensorBoard, WandB, Trackio)
}


def check_trackers(names: Iterable[str]) -> None:
    """UsageError where the package of one is not installed; nothing is opened yet."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UsageError(f"--track {name}: not installed; run pip install {name}")


def open_trackers(names: Iterable[str], folder: Path, run_name: str, config: dict[str, Any]) -> tuple[Tracker, ...]:
    """Trackers by name, each once.

    Args:
        folder: the run's.
        config: what the run was started with, for those that show it.

    Raises:
        RunError: one of them does not open: no login, no network, no disk.
    """
    opened = []
    for name in dict.fromkeys(names):
        try:
            opened.append(TRACKERS[name](folder, run_name, config))
        except Exception as error:  # their errors share no base class
            what = (str(error).splitlines() or [""])[0]
            raise RunError(f"--track {name}: {type(error).__name__}: {what}; resume without it, or mend it") from None
    return tuple(opened)
