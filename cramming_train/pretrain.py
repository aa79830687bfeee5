"""``python -m cramming_train.pretrain --hours 24``: train a model from scratch within a budget of time."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cramming_train import report
from cramming_train.allocator import keep_freed_memory
from cramming_train.budget import Budget
from cramming_train.calibration import gemm_flops_per_second
from cramming_train.certificate import STATES, contamination, rules, write_certificate
from cramming_train.checkpoint import latest_checkpoint, list_checkpoints, load_checkpoint
from cramming_train.compilation import compile_checked, wants_compilation
from cramming_train.data import PreparedData
from cramming_train.data.prepare import AUTO
from cramming_train.display import Display, duration, fitted, shown_path
from cramming_train.distributed import World, join_world
from cramming_train.engine import Trainer
from cramming_train.errors import Interrupted, UsageError, command
from cramming_train.graph import Pace, graph_that_fits
from cramming_train.initial_weights import load_initial_weights
from cramming_train.loader import RowStream
from cramming_train.loop import Loop
from cramming_train.machine import device_name, hardware, software
from cramming_train.model import MaskedLM, build_model, flops_per_token, parameter_count, start_at_unigram
from cramming_train.plan import in_a_line, this_machine
from cramming_train.precision import Precision
from cramming_train.prediction import agreed_micro_rows, predict
from cramming_train.runs import DEFAULT_RUNS_DIR, Run
from cramming_train.signals import StopRequest, terminate_by_exception
from cramming_train.starting import Settings, new_settings, open_run
from cramming_train.summary import kernels_used, write_summary
from cramming_train.trackers import TRACKERS, check_trackers, open_trackers
from cramming_train.tracking import RunLog, seconds_used
from cramming_train.validation import held_out_loss
from cramming_train.verify import verify

FINAL_VALIDATION_ROWS = 2048


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments. What a resumed run takes from its folder has no default here."""
    parser = argparse.ArgumentParser(prog="python -m cramming_train.pretrain", description=__doc__)
    parser.add_argument("--hours", type=float, help="wall-clock budget in hours (default 24)")
    parser.add_argument(
        "--tokens", type=int, help="budget in tokens instead; --hours still stops the run if it comes first"
    )
    parser.add_argument("--recipe", help="bundle of recipes (default: cram, sized by the budget)")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", dest="overrides",
                        help="change the recipe, such as training=bert-izsak or training.batch_size=64")  # fmt: skip
    parser.add_argument("--data", nargs="+", metavar="SOURCE", help=f"as in cramming_train.prepare (default {AUTO})")
    parser.add_argument("--text-column", help="column of .jsonl, .csv, .parquet and hub sources (default text)")
    parser.add_argument("--init-from", metavar="RUN", help="start from that run's weights: outside the rules")
    parser.add_argument("--name", help="the run's name (default: recipe and time)")
    parser.add_argument("--out", type=Path, default=DEFAULT_RUNS_DIR, help="folder of runs (default ./runs)")
    parser.add_argument("--resume", action="store_true", help="continue the named run, or the latest")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: a GPU where there is one)")
    parser.add_argument("--seed", type=int, help="seed of weights, masks and orders (default 0)")
    parser.add_argument("--track", nargs="+", default=[], choices=tuple(TRACKERS), help="log there as well")
    parser.add_argument(
        "--verify", action="store_true", help="prove the operations against plain PyTorch; a GPU's always are"
    )
    parser.add_argument("--dry-run", action="store_true", help="show what would be done, and stop")
    return parser


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    arguments = build_parser().parse_args(argv)
    device = choose_device(arguments.device)
    if arguments.dry_run:
        show_plan(new_settings(arguments, device), device)
        return 0
    check_trackers(arguments.track)
    keep_freed_memory()
    world = join_world(device.type)
    try:
        with terminate_by_exception():
            run, settings, prepared = open_run(arguments, device, world)
        pretrain(run, settings, prepared, device, world, arguments.track, prove=arguments.verify)
    finally:
        world.close()
    return 0


def choose_device(name: str | None) -> torch.device:
    """The asked device, or a GPU where there is one. UsageError where it is not there."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device {name}: no such device; want cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {name}: want cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices (torch {torch.__version__})"
        )
    return device


def show_plan(settings: Settings, device: torch.device) -> None:
    """What a run with these settings would be; prepares and writes nothing."""
    recipe = settings.recipe
    with torch.device("meta"):
        model = MaskedLM(recipe.architecture, recipe.data.vocab_size)
    rate = flops_per_token(
        recipe.architecture, recipe.data.vocab_size, recipe.data.row_length, recipe.training.masking_rate
    )
    print(json.dumps(recipe.to_dict(), indent=2))
    budget = f"{settings.tokens:,} tokens" if settings.tokens else f"{settings.hours:g} hours"
    print(f"device      {device_name(device)}")
    print(f"budget      {budget}")
    print(f"data        {' '.join(settings.sources)}")
    if settings.sizing is not None:
        print(f"sized       {settings.sizing}")
    print(f"parameters  {parameter_count(model):,}")
    print(f"FLOPs       {rate / 1e6:.1f} M a token")
    micro_rows = recipe.training.micro_batch_size if settings.micro_batch_given else None
    print(f"predicted   {in_a_line(predict(recipe, this_machine(device), settings.hours, micro_rows))}")


def pretrain(
    run: Run,
    settings: Settings,
    prepared: PreparedData,
    device: torch.device,
    world: World,
    track: Sequence[str] = (),
    prove: bool = False,
) -> dict[str, Any]:
    """Train the run to the end of its budget and write its summary and report; returns the summary.

    Raises:
        Interrupted: SIGINT or SIGTERM came; everything is saved. RunError: as :class:`Loop` says.
    """
    # --- the budget's clock starts: the data is ready
    budget = Budget(settings.hours * 3600, tokens=settings.tokens, used=seconds_used(run.log))
    display = Display(world.is_leader)
    trackers = open_trackers(track, run.path, run.name, run.settings) if world.is_leader else ()
    log_path = run.log if world.is_leader else run.path / f"log-{world.rank}.jsonl"
    log = RunLog(log_path, lambda: budget.elapsed, trackers)
    try:
        with StopRequest() as stop_request:
            loop = start(run, settings, prepared, device, world, budget, log, display, stop_request, prove)
            reason = loop.run()
        train_seconds = budget.stop()
        if reason == "interrupt":
            name = f"--out {run.path.parent} --name {run.name}"
            raise Interrupted(
                stop_request.received or 15,
                f"stopped at step {loop.trainer.step}, everything saved; continue with "
                f"python -m cramming_train.pretrain --resume {name}",
            )
        if not world.is_leader:
            return {}
        return finish(run, settings, prepared, loop, world, train_seconds, log)
    finally:
        log.close()


def start(run, settings, prepared, device, world, budget, log, display, stop_request, prove) -> Loop:
    """Build model and trainer, restore a checkpoint where there is one, calibrate, prove, compile, capture."""
    training = settings.recipe.training
    precision = Precision(training.precision, device)
    model = build_model(settings.recipe.architecture, prepared.vocab_size, seed=settings.seed)
    if settings.init_from is not None and not list_checkpoints(run.checkpoints):
        load_initial_weights(model, settings.init_from)
    if settings.init_from is None and training.unigram_bias:
        start_at_unigram(model, prepared.train)
    model.to(device)
    trainer = Trainer(
        model, RowStream(prepared.train, settings.seed), training,
        seed=settings.seed, device=device, precision=precision, world=world,
    )  # fmt: skip
    gemm_rate = gemm_flops_per_second(device, precision.gemm_dtype)
    state: dict[str, Any] = {}
    if (run.path / "checkpoints").is_dir() and any((run.path / "checkpoints").glob("step-*")):
        checkpoint = latest_checkpoint(run.checkpoints)
        state = load_checkpoint(checkpoint, model, trainer.optimizer)
        trainer.restore(state)
        budget.tokens_used = trainer.tokens
        log.write("resume", step=trainer.step, path=checkpoint.name)
        display.message(f"resumed from {checkpoint.name}: {trainer.tokens:,} tokens, {duration(budget.elapsed)} used")
    elif device.type == "cuda" and not settings.micro_batch_given:
        trainer.micro_rows = agreed_micro_rows(settings.recipe, precision, device, world)
    execution, notices = prepare_execution(trainer, prove)
    for message in filter(None, [settings.sizing, precision.notice, *notices]):
        log.write("notice", message=message)
        display.message(message)
    loop = Loop(
        trainer=trainer, budget=budget, log=log, display=display, checkpoints=run.checkpoints,
        validation=prepared.validation, stop_request=stop_request, gemm_rate=gemm_rate, execution=execution,
        step_seconds=state.get("step_seconds", 0.0), processor_seconds=state.get("processor_seconds", 0.0),
    )  # fmt: skip
    log.write(
        "start",
        recipe=settings.recipe.name,
        device=device_name(device),
        parameters=parameter_count(model),
        micro_batch_rows=trainer.micro_rows,
        budget_seconds=budget.seconds,
        budget_tokens=budget.tokens,
        gemm_flops_per_second=gemm_rate,
        flops_per_token=_nominal_flops(trainer),
        precision=precision.name,
        kernels=kernels_used(device, precision.gemm_dtype),
        **execution,
    )
    return loop


def prepare_execution(trainer: Trainer, prove: bool) -> tuple[dict[str, Any], list[str]]:
    """Prove the operations, then compile and capture where that is wanted: (how steps are executed, notices)."""
    device, training = trainer.device, trainer.training
    on_gpu = device.type == "cuda"
    execution: dict[str, Any] = {"verification": None, "compiled": False, "cuda_graph": False}
    notices = []
    if prove or on_gpu:
        verification = verify(trainer)
        execution["verification"] = verification.as_dict()
        notices.append(str(verification))
    if wants_compilation(training.compile, device):
        execution["compiled"], reason = compile_checked(trainer)
        notices.append(reason)
    if on_gpu:
        trainer.pace = Pace()
        if training.cuda_graph:
            execution["cuda_graph"], reasons = graph_that_fits(trainer)
            notices += reasons
    return execution, notices


def finish(run, settings, prepared, loop: Loop, world: World, train_seconds: float, log: RunLog) -> dict[str, Any]:
    """Final validation, summary and report: outside the budget."""
    trainer = loop.trainer
    validation = held_out_loss(
        trainer.model, prepared.validation, device=trainer.device, max_rows=FINAL_VALIDATION_ROWS,
        autocast_dtype=trainer.precision.dtype,
    )  # fmt: skip
    log.write("validation", step=trainer.step, **{**validation, "tokens": trainer.tokens}, **loop.spent())
    tokens_per_second = trainer.tokens / train_seconds
    metadata = prepared.metadata
    summary = {
        "name": run.name,
        "recipe": settings.recipe.name,
        "device": device_name(trainer.device),
        "processes": world.size,
        "seed": settings.seed,
        "init_from": settings.init_from and str(settings.init_from),
        "budget_seconds": loop.budget.seconds,
        "budget_tokens": loop.budget.tokens,
        "train_seconds": round(train_seconds, 3),
        **loop.spent(),
        "tokens": trainer.tokens,
        "epochs": round(trainer.rows / len(prepared.train), 4),
        "optimizer_steps": trainer.step,
        "micro_batch_rows": trainer.micro_rows,
        "tokens_per_second": round(tokens_per_second, 1),
        "model_flops_utilization": round(tokens_per_second * _nominal_flops(trainer) / loop.gemm_rate, 4),
        "gemm_flops_per_second": loop.gemm_rate,
        "parameters": parameter_count(trainer.model),
        "train_loss": loop.last_metrics.get("loss"),
        "validation_loss": validation["loss"],
        "validation_accuracy": validation["accuracy"],
        "validation_rows": validation["rows"],
        "data": {
            **{key: metadata[key] for key in ("source", "source_kind", "fingerprint", "rows", "notices")},
            "unigram_loss": metadata["unigram_loss"],
            "sha256": metadata.get("sha256"),
            "contamination": contamination(run, prepared.path),
        },
        "kernels": kernels_used(trainer.device, trainer.precision.gemm_dtype),
        **loop.execution,
        "hardware": hardware(trainer.device),
        "versions": software(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    summary["rules"] = rules(summary)
    write_summary(run, summary)
    write_certificate(run)
    log.write("summary", step=trainer.step)
    show_summary(summary, report.write_report(run))
    return summary


def show_summary(summary: dict[str, Any], report_path: Path | None) -> None:
    """The end of a run in a few lines."""
    loss = summary["validation_loss"]
    took = duration(summary["train_seconds"])
    lines = [
        f"\n{summary['name']}: {summary['tokens']:,} tokens in {took} on {summary['device']}",
        f"  validation loss      {loss:.4f} nats (perplexity {math.exp(min(loss, 50)):,.1f}), "
        f"unigram model {summary['data']['unigram_loss']:.4f}",
        f"  validation accuracy  {100 * summary['validation_accuracy']:.2f} %",
        f"  throughput           {summary['tokens_per_second']:,.0f} tokens/s, "
        f"{100 * summary['model_flops_utilization']:.1f} % of the measured GEMM rate",
    ]
    for number, rule in enumerate(summary["rules"], start=1):
        lines.append(f"  rule {number} {STATES[rule['kept']]:6} {rule['rule']}: {rule['why']}")
    lines += [f"  NOTICE: {notice}" for notice in summary["data"]["notices"]]
    if report_path is not None:
        lines.append(f"  report: {shown_path(report_path)}")
    for line in lines:
        print(fitted(line, sys.stdout, indent=" " * 16))


def _nominal_flops(trainer: Trainer) -> float:
    t = trainer.training
    mean_rate = (t.masking_rate + t.masking_rate_final) / 2
    return flops_per_token(trainer.model.architecture, trainer.model.vocab_size, trainer.row_length, mean_rate)


if __name__ == "__main__":
    sys.exit(main())
