"""The training loop: steps until the budget is used up, with everything that happens between them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cramming_train.backoff import REMEDY, MicroBatchTooLarge, back_off
from cramming_train.budget import Budget
from cramming_train.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from cramming_train.data import Rows
from cramming_train.display import Display
from cramming_train.engine import StepPlan, StepResult, Trainer
from cramming_train.errors import RunError, describe_os_error
from cramming_train.model import flops_per_token
from cramming_train.signals import StopRequest
from cramming_train.tracking import RunLog
from cramming_train.validation import held_out_loss

MAX_RECOVERIES = 3  # without a new checkpoint between them
CHECKPOINT_SHARE = 0.01  # of the time, at most, goes into saving
MIN_CHECKPOINT_SECONDS = 20.0
LOG_SECONDS = 1.0
VALIDATION_EVERY = 0.1  # of the budget
VALIDATION_ROWS = {"cpu": 128, "cuda": 2048}


@dataclass
class Loop:
    """Everything a run's training needs; :meth:`run` does it."""

    trainer: Trainer
    budget: Budget
    log: RunLog
    display: Display
    checkpoints: Path
    validation: Rows
    stop_request: StopRequest
    gemm_rate: float
    execution: dict[str, Any] = field(default_factory=dict)  # how steps are executed, for the summary
    step_seconds: float = 0.0  # spent in optimizer steps so far, of earlier parts of the run too; and of processors
    processor_seconds: float = 0.0
    save_seconds: float = 0.0
    micro_seconds: float = 0.0
    recoveries: int = 0
    last_metrics: dict[str, Any] = field(default_factory=dict)
    _last_saved: float = field(default=0.0, init=False)
    _saved_step: int = field(default=-1, init=False)
    _next_validation: float = field(default=0.0, init=False)
    _window: tuple[float, int] = field(default=(0.0, 0), init=False)

    def run(self) -> str:
        """Train until the end; returns "budget" or "interrupt". The state at the end is saved.

        Raises:
            RunError: the loss stays non-finite, memory does not hold one row, or the final checkpoint cannot be
                written.
        """
        trainer = self.trainer
        if trainer.step == 0:
            self._save()  # so that there is always something to resume from or to recover to
        self._last_saved = time.monotonic()
        self._window = (time.monotonic(), trainer.rows)
        self._next_validation = self._validation_mark(self.budget.fraction())
        reason = self._stop()
        while reason is None:
            fraction = self._agreed_fraction()
            plan = trainer.plan(fraction, self._tokens_left())
            started, started_processor = time.monotonic(), time.process_time()
            try:
                result = trainer.train_step(plan, self._stop)
            except MicroBatchTooLarge:
                self._notice(back_off(trainer))
                reason = self._stop()
                continue
            except torch.OutOfMemoryError:
                raise RunError(f"out of memory in the update of step {trainer.step + 1}: {REMEDY}") from None
            if result is None:
                reason = "interrupt"
                break
            self.budget.tokens_used = trainer.tokens
            is_bad = self._is_bad(result)
            self.step_seconds += time.monotonic() - started
            self.processor_seconds += time.process_time() - started_processor
            self.micro_seconds = max((time.monotonic() - started) / plan.micro_batches, 0.9 * self.micro_seconds)
            if is_bad:
                self._recover(result)
            else:
                self._after_step(plan, result, fraction)
            reason = self._stop()
        self.display.finish()
        self._finish(reason)
        return reason

    def spent(self) -> dict[str, float]:
        """Seconds in optimizer steps alone, without validations and checkpoints: by the clock, and of processors.

        On a GPU the host's clock: steps are not waited for one by one.
        """
        return {"step_seconds": round(self.step_seconds, 3), "processor_seconds": round(self.processor_seconds, 3)}

    # --- deciding

    def _stop(self) -> str | None:
        """The reason to stop now, the same in every process."""
        interrupted = self.trainer.world.any(self.stop_request.received is not None, self.trainer.device)
        if interrupted:
            return "interrupt"
        reserve = 1.2 * self.micro_seconds + 2.0 * self.save_seconds
        used_up = self.budget.is_used_up(reserve=min(reserve, 0.5 * self.budget.seconds))
        (decision,) = self.trainer.world.from_leader([float(used_up)], self.trainer.device)
        return "budget" if decision else None

    def _agreed_fraction(self) -> float:
        return self.trainer.world.from_leader([self.budget.fraction()], self.trainer.device)[0]

    def _tokens_left(self) -> int | None:
        return None if self.budget.tokens is None else self.budget.tokens - self.budget.tokens_used

    # --- after a step

    def _after_step(self, plan: StepPlan, result: StepResult, fraction: float) -> None:
        trainer = self.trainer
        now = time.monotonic()
        if now - self._window[0] >= LOG_SECONDS or trainer.step == 1:
            self._log_step(plan, result, fraction, now)
        else:
            self.log.heartbeat()
        interval = max(MIN_CHECKPOINT_SECONDS, self.save_seconds / CHECKPOINT_SHARE)
        due = [
            self.budget.fraction() >= self._next_validation,
            time.monotonic() - self._last_saved >= interval,
        ]
        validate, save = trainer.world.from_leader([float(flag) for flag in due], trainer.device)
        if validate:
            self._validate()
        if save:
            self._save_or_warn()

    def _log_step(self, plan: StepPlan, result: StepResult, fraction: float, now: float) -> None:
        trainer = self.trainer
        rate = flops_per_token(
            trainer.model.architecture, trainer.model.vocab_size, trainer.row_length, plan.masking_rate
        )
        seconds = max(now - self._window[0], 1e-9)
        tokens_per_second = (trainer.rows - self._window[1]) * trainer.row_length / seconds
        self._window = (now, trainer.rows)
        self.last_metrics = {
            "step": trainer.step,
            "tokens": trainer.tokens,
            "rows": trainer.rows,
            "epoch": trainer.stream.epoch_of(max(trainer.rows - 1, 0)),
            "loss": float(result.loss),
            "accuracy": float(result.accuracy),
            "grad_norm": float(result.gradient_norm),
            "learning_rate": plan.learning_rate,
            "batch_rows": result.rows,
            "masking_rate": plan.masking_rate,
            "attention_window": plan.window,
            "fraction": fraction,
            "tokens_per_second": tokens_per_second,
            "model_flops_utilization": tokens_per_second * rate / self.gemm_rate,
            **self.spent(),
        }
        self.log.write("step", **self.last_metrics)
        self.display.step(self.last_metrics, self.budget.elapsed, self.budget.seconds_to_go(tokens_per_second))

    def _validate(self) -> None:
        trainer = self.trainer
        self._next_validation = self._validation_mark(self.budget.fraction())
        if trainer.world.is_leader:
            result = held_out_loss(
                trainer.model,
                self.validation,
                device=trainer.device,
                max_rows=VALIDATION_ROWS.get(trainer.device.type, 128),
                autocast_dtype=trainer.precision.dtype,
                window=trainer.plan(self.budget.fraction()).window,
            )
            self.log.write("validation", step=trainer.step, **{**result, "tokens": trainer.tokens}, **self.spent())
            self.display.message(
                f"validation at step {trainer.step}: "
                f"loss {result['loss']:.3f}, accuracy {100 * result['accuracy']:.1f} %"
            )
        trainer.world.barrier()
        self._window = (time.monotonic(), trainer.rows)

    @staticmethod
    def _validation_mark(fraction: float) -> float:
        """The next multiple of the interval; the end has a validation of its own, outside the budget."""
        mark = (int(fraction / VALIDATION_EVERY + 1e-9) + 1) * VALIDATION_EVERY
        return mark if mark < 1 - 1e-9 else float("inf")

    # --- saving and recovering

    def _save(self) -> None:
        if self.trainer.world.is_leader and self._saved_step != self.trainer.step:
            started = time.monotonic()
            state = {**self.trainer.state(), "elapsed": self.budget.elapsed, **self.spent()}
            path = save_checkpoint(
                self.checkpoints, self.trainer.step, self.trainer.model, self.trainer.optimizer, state
            )
            self.save_seconds = max(time.monotonic() - started, 0.8 * self.save_seconds)
            self._saved_step = self.trainer.step
            self.recoveries = 0
            self.log.write("checkpoint", step=self.trainer.step, path=path.name, seconds=round(self.save_seconds, 3))
        self.trainer.world.barrier()
        self._last_saved = time.monotonic()

    def _save_or_warn(self) -> None:
        """A checkpoint that cannot be written now is no reason to stop: the one before is there, and space may come."""
        try:
            self._save()
        except OSError as error:
            self._last_saved = time.monotonic()
            self._notice(f"checkpoint at step {self.trainer.step} not written: {describe_os_error(error)}")

    def _notice(self, message: str) -> None:
        self.display.message(f"WARNING: {message}")
        self.log.write("notice", message=message)

    def _finish(self, reason: str) -> None:
        if reason == "budget" and self.trainer.finish():
            self._saved_step = -1  # what was saved at this step were other weights
        try:
            self._save()
        except OSError as error:
            raise RunError(
                f"the last checkpoint was not written: {describe_os_error(error)}; earlier ones stand"
            ) from None
        self.log.write("end" if reason == "budget" else "interrupt", reason=reason, step=self.trainer.step)

    def _is_bad(self, result: StepResult) -> bool:
        """Is loss or gradient not finite? A GPU is only asked when the step is logged, so as not to wait for it."""
        trainer = self.trainer
        waits_anyway = trainer.device.type == "cpu" or trainer.world.size > 1  # all processes must decide alike
        if not waits_anyway and time.monotonic() - self._window[0] < LOG_SECONDS:
            return False
        return not result.is_finite(check_gradient=trainer.precision.scaler is None)

    def _recover(self, result: StepResult) -> None:
        """Go back to the last checkpoint's weights and on with the rows that come next; the budget runs on."""
        trainer = self.trainer
        culprit = _first_non_finite(trainer)
        what = f"loss {float(result.loss)}, gradient norm {float(result.gradient_norm)}"
        self.log.write("non_finite", step=trainer.step, message=what, first=culprit)
        self.recoveries += 1
        if self.recoveries > MAX_RECOVERIES:
            raise RunError(
                f"training diverged at step {trainer.step} ({what}; first non-finite: {culprit}), "
                f"{MAX_RECOVERIES} recoveries did not help; the last good checkpoint stands; "
                f"try --set training.peak_lr={trainer.training.peak_lr / 2:g}"
            )
        rows = trainer.rows
        checkpoint = latest_checkpoint(self.checkpoints)
        trainer.restore(load_checkpoint(checkpoint, trainer.model, trainer.optimizer))
        trainer.rows = rows
        self._saved_step = -1
        self.display.message(f"non-finite at step {trainer.step}: {what}; first {culprit}; back to {checkpoint.name}")
        self.log.write("recovery", step=trainer.step, path=checkpoint.name)


def _first_non_finite(trainer: Trainer) -> str:
    for name, parameter in trainer.model.named_parameters():
        if not torch.isfinite(parameter).all():
            return f"weights of {name}"
    return "the loss (weights are finite)"
