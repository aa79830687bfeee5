"""Pretrain a BERT-class model from scratch within a day, and use what came of it: ``cramming_train.load``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from cramming_train.language_model import LanguageModel

__all__ = ["load"]


def load(
    run: str | Path = "latest", *, runs_dir: str | Path = "runs", device: torch.device | str = "cpu"
) -> LanguageModel:
    """The model of a run with its tokenizer: ``embed(texts)``, ``logits(ids)``, ``fill(text)``, ``tokenizer``.

    Args:
        run: ``latest``, the name of a run in ``runs_dir``, or the path of a run's folder.

    Raises:
        UsageError: no such run. RunError: its files are missing or damaged.
    """
    from pathlib import Path

    from cramming_train.language_model import LanguageModel
    from cramming_train.runs import find_run

    return LanguageModel(find_run(str(run), Path(runs_dir)), device)
