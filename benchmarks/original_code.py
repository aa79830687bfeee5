"""The original project's own code, trained on rows of ours: what a recipe has to beat.

    python -m benchmarks.original_code train --peer-path cramming/ --rows ROWS --out FOLDER
    python -m benchmarks.original_code judge --rows ROWS --out FOLDER

``train`` runs in an environment of its own, with torch, datasets, safetensors, einops, hydra-core, omegaconf, evaluate
and transformers 4.57, on a checkout of github.com/JonasGeiping/cramming at 196c991. Model, masking, loader, engine,
optimizer and schedule are built by its functions from its configuration (arch=crammed-bert, train=bert-o4); OVERRIDES
says what is set otherwise. The rows are those of a prepared folder, in their order. ``judge`` runs in ours: it imports
the weights and judges them as a run of ``compare`` is judged. Nothing of that project is kept here but figures.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROW_LENGTH = 128
OVERRIDES = [
    "arch=crammed-bert", "train=bert-o4", "impl=torch-default", "name=original",
    # the shape of crammed-bert-mini: 1024 before the gate
    "arch.num_transformer_layers=4", "arch.hidden_size=256", "arch.intermed_size=1024",
    "arch.attention.num_attention_heads=4",
    # triangle2 is its budget-triangle2 over steps instead of hours
    "train.scheduler=triangle2",
    # it refuses a CPU but in a dry run
    "dryrun=True", "impl.threads=0", "impl.pin_memory=False", "impl.prefetch_factor=null", "impl.compile_torch=True",
]  # fmt: skip
SPECIAL_TOKENS = dict(
    pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>", cls_token="<cls>", sep_token="<sep>",
    mask_token="<mask>",
)  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("train", "judge"))
    parser.add_argument("--peer-path", type=Path, help="the original's checkout")
    parser.add_argument("--rows", type=Path, required=True, help="a folder made by cramming_train.prepare --out")
    parser.add_argument("--out", type=Path, required=True, help="folder of weights and figures; new for train")
    parser.add_argument("--tokens", type=int, default=2_000_000)
    parser.add_argument("--batch-size", type=int, default=32, help="rows")
    parser.add_argument("--peak-lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    arguments = build_parser().parse_args(argv)
    if arguments.action == "judge":
        if not (arguments.out / "run.json").is_file():
            print(f"error: --out {arguments.out}: no run.json there; run train first", file=sys.stderr)
            return 2
        judge(arguments.rows, arguments.out)
        return 0
    if arguments.peer_path is None or not (arguments.peer_path / "cramming" / "config").is_dir():
        print("error: --peer-path: want a checkout of github.com/JonasGeiping/cramming", file=sys.stderr)
        return 2
    try:
        arguments.out.mkdir(parents=True)
    except FileExistsError:
        print(f"error: --out {arguments.out}: the folder is there already; name a new one", file=sys.stderr)
        return 2
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # no workers, so that this process has all the processor time
    train(arguments)
    return 0


def train(arguments: argparse.Namespace) -> None:
    """Steps as in the loop of the original's pretrain.py; steps.jsonl, run.json, and the weights at the end."""
    sys.path.insert(0, str(arguments.peer_path))
    import cramming
    import datasets
    import hydra
    import torch
    import transformers

    rows = arguments.batch_size
    steps = -(-arguments.tokens // (rows * ROW_LENGTH))
    set_otherwise = [
        *OVERRIDES, f"seed={arguments.seed}", f"train.batch_size={rows}", f"impl.microbatch_size={rows}",
        f"train.optim.lr={arguments.peak_lr}", f"train.steps={steps}",
    ]  # fmt: skip
    configuration = str((arguments.peer_path / "cramming" / "config").resolve())
    with hydra.initialize_config_dir(configuration, version_base="1.1"):
        settings = hydra.compose("cfg_pretrain", overrides=set_otherwise)
    settings.base_dir = str(arguments.out)
    setup, _ = cramming.utils.system_startup(settings)
    data = datasets.load_from_disk(str(arguments.rows / "train")).with_format("torch")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(arguments.rows / "tokenizer.json"), model_max_length=ROW_LENGTH, **SPECIAL_TOKENS
    )
    model = cramming.construct_model(settings.arch, len(tokenizer))
    engine, _, _, loader = cramming.load_backend(
        model, data, tokenizer, settings.train, settings.impl, 0.0, setup=setup
    )
    engine.train(settings.train.pretrain_in_train_mode)
    spent, compilation = {"wall": 0.0, "processor": 0.0}, {}
    with open(arguments.out / "steps.jsonl", "w", encoding="utf-8") as log:
        for step in range(1, steps + 1):
            started, started_processor = time.perf_counter(), time.process_time()
            loss = engine.step(engine.to_device(next(loader)))
            taken = {
                "wall": round(time.perf_counter() - started, 4),
                "processor": round(time.process_time() - started_processor, 4),
            }
            if step == 1:
                compilation = taken  # and a step
            else:
                spent = {clock: spent[clock] + taken[clock] for clock in spent}
            line = {"step": step, "tokens": step * rows * ROW_LENGTH, "loss": loss.item(), **taken}
            print(json.dumps(line), file=log, flush=True)
            if step % 20 == 0:
                print(json.dumps(line), file=sys.stderr)
    engine.save_final_model(str(arguments.out), "final", tokenizer, settings.arch)
    commit = subprocess.run(
        ["git", "-C", str(arguments.peer_path), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    figures = {
        "label": f"original code, batch {rows}, {arguments.peak_lr:g}",
        "tokens": steps * rows * ROW_LENGTH, "optimizer_steps": steps, "seed": arguments.seed,
        "parameters": sum(p.numel() for p in model.parameters()), "threads": torch.get_num_threads(),
        "step_seconds": round(spent["wall"], 1), "processor_seconds": round(spent["processor"], 1),
        "compilation": compilation,
        "commit": commit, "overrides": set_otherwise,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__,
                     "python": platform.python_version()},
    }  # fmt: skip
    (arguments.out / "run.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def judge(rows: Path, out: Path) -> None:
    """The weights in ``out``, imported; loss and accuracy are printed, and put into run.json."""
    import torch

    from cramming_train.data import open_prepared
    from cramming_train.import_checkpoint import import_checkpoint
    from cramming_train.pretrain import FINAL_VALIDATION_ROWS
    from cramming_train.runs import Run
    from cramming_train.validation import held_out_loss

    prepared, imported = open_prepared(rows), out / "imported"
    if not imported.exists():
        import_checkpoint(out / "checkpoints" / "final", imported)
    model = Run(imported.resolve()).load_model()
    found = held_out_loss(model, prepared.validation, device=torch.device("cpu"), max_rows=FINAL_VALIDATION_ROWS)
    figures = json.loads((out / "run.json").read_text(encoding="utf-8"))
    figures |= {"loss": found["loss"], "accuracy": found["accuracy"], "validation_rows": found["rows"],
                "held_out": prepared.metadata["sha256"]["validation"][:12]}  # fmt: skip
    (out / "run.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    sys.exit(main())
