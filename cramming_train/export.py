"""``python -m cramming_train.export --run R --to DIR``: a folder that stock transformers loads.

The architectures of the family ``cram`` become ModernBERT, ``bert-base`` and ``bert-tiny`` BERT; others have no stock
class and are written with their code by ``--custom-code``. What is written is loaded again and proven before it is
kept. A run that has ended brings its model card.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from safetensors.torch import save_file

from cramming_train.card import model_card
from cramming_train.errors import UsageError, command
from cramming_train.exchange import bert, custom, modernbert
from cramming_train.exchange.proof import prove, stock_library
from cramming_train.exchange.vocabulary import write_tokenizer
from cramming_train.recipes import Architecture
from cramming_train.runs import DEFAULT_RUNS_DIR, Run, find_run

STOCK = (modernbert, bert)


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(prog="python -m cramming_train.export", description=__doc__.partition(": ")[2])
    parser.add_argument("--run", default="latest", help="latest, a run's name, or its path")
    parser.add_argument("--out", type=Path, default=DEFAULT_RUNS_DIR, help="folder of runs (default ./runs)")
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="the folder to write: new, or empty")
    parser.add_argument("--custom-code", action="store_true",
                        help="write the model's code too, to be loaded with trust_remote_code=True")  # fmt: skip
    return parser


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    arguments = build_parser().parse_args(argv)
    kind, difference = export(find_run(arguments.run, arguments.out), arguments.to, arguments.custom_code)
    loading = "with trust_remote_code=True" if kind is custom else f"as {kind.STOCK_CLASS}"
    print(f"{arguments.to}: transformers loads it {loading}; logits differ by at most {difference:.1e}")
    return 0


def export(run: Run, target: Path, custom_code: bool = False) -> tuple[ModuleType, float]:
    """Write the run's newest weights and its tokenizer to the new folder ``target``.

    Returns:
        the format (a module of :mod:`cramming_train.exchange`), and by how much logits differ in fp32.

    Raises:
        UsageError: no stock class fits, the folder is not empty, or transformers is not installed.
        RunError: what was written does not give the same logits.
    """
    kind = choose(run.recipe.architecture, custom_code)
    stock_library()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"--to {target}: exists already and is not an empty folder; choose another")
    model = run.load_model("cpu")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=target.parent) as temporary:
        folder = Path(temporary) / "export"
        folder.mkdir()
        architecture = model.architecture
        config = {**kind.config_of(architecture, model.vocab_size), "dtype": "float32"}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        weights = {
            name: tensor.contiguous() for name, tensor in kind.exported(architecture, model.state_dict()).items()
        }
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        write_tokenizer(run.tokenizer(), run.recipe.data.clean, architecture.max_length, folder)
        if kind is custom:
            shutil.copyfile(custom.CODE, folder / custom.CODE.name)
        if run.summary is not None:
            (folder / "README.md").write_text(model_card(run), encoding="utf-8")
        difference = prove(folder, model, kind is custom)
        folder.rename(target)
    return kind, difference


def choose(architecture: Architecture, custom_code: bool) -> ModuleType:
    """The format for an architecture; UsageError where no stock class fits and custom code is not asked for."""
    if custom_code:
        return custom
    obstacles = {}
    for kind in STOCK:
        obstacles[kind.STOCK_CLASS] = kind.obstacle(architecture)
        if obstacles[kind.STOCK_CLASS] is None:
            return kind
    why = "; ".join(f"{name}: {obstacle}" for name, obstacle in obstacles.items())
    raise UsageError(
        f"no stock class of transformers has the architecture {architecture.name} ({why}); "
        "give --custom-code to write its code too, for trust_remote_code=True"
    )


if __name__ == "__main__":
    sys.exit(main())
