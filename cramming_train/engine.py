"""One optimizer step: micro-batches through masking, model and loss, then clipping and AdamW.

The trainer knows nothing of clocks, files or logs. What a step does is a function of its plan, of the weights and
optimizer state, and of the number of rows consumed before it; so a checkpoint at a step's end is all there is to save.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from cramming_train.backoff import within_memory
from cramming_train.distributed import World
from cramming_train.loader import RowStream
from cramming_train.masking import MaskingCounts, mask_rows, masking_counts
from cramming_train.model import MaskedLM, sequence_boundaries
from cramming_train.optim.averaging import average, newest_weight, use_average
from cramming_train.optim.optimizer import build_optimizer, set_learning_rate
from cramming_train.optim.schedules import (
    batch_size_at,
    learning_rate_factor,
    masking_rate_at,
    micro_batches_at,
    window_at,
)
from cramming_train.precision import Precision
from cramming_train.prefetch import BatchRows, Prefetch, SideStream
from cramming_train.recipes import Training
from cramming_train.seeds import derive_seed

MicroStep = Callable[[tuple, dict, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class StepPlan:
    """What the schedules ask of one optimizer step."""

    learning_rate: float
    masking_rate: float
    masking: MaskingCounts
    micro_rows: int  # rows of one micro-batch in one process
    micro_batches: int  # per process
    window: int | None = None  # |i - j| that attention reaches
    newest_weight: float = 0.0  # what the weights of this step count in the mean of the last ones

    def rows(self, world: World) -> int:
        """Rows of the whole step over all processes."""
        return self.micro_rows * self.micro_batches * world.size


@dataclass(frozen=True)
class StepResult:
    """Device scalars of one finished step, not yet read, and what it consumed."""

    loss: torch.Tensor
    accuracy: torch.Tensor
    gradient_norm: torch.Tensor
    rows: int

    def is_finite(self, *, check_gradient: bool) -> bool:
        """Reads the device. A scaler skips steps with infinite gradients by itself; then only the loss counts."""
        finite = torch.isfinite(self.loss)
        if check_gradient:
            finite = finite & torch.isfinite(self.gradient_norm)
        return bool(finite)


class Trainer:
    """Model, optimizer and data stream of one run."""

    def __init__(
        self,
        model: MaskedLM,
        stream: RowStream,
        training: Training,
        *,
        seed: int,
        device: torch.device,
        precision: Precision,
        world: World,
    ):
        self.model = model.train()
        self.forward: Callable[..., tuple[torch.Tensor, ...]] = model  # a compiled one may take its place
        self.micro_step: MicroStep = self.eager_micro_step  # and a graph that one's
        self.static_shapes = device.type != "cpu"  # which depend on the masking rate alone, never on the text
        self.pace: Callable[[], None] | None = None  # called after each micro-batch
        self.stream = stream
        self.training = training
        self.seed = seed
        self.device = device
        self.precision = precision
        self.world = world
        self.optimizer = build_optimizer(model, training)
        self._rows = self._read_rows if device.type == "cpu" else Prefetch(self._read_rows, SideStream(device))
        # Rows that this machine takes at a time: the recipe's, or a divisor of them that fits its memory
        self.micro_rows = min(training.micro_batch_size, training.batch_size)
        self.step = 0
        self.averaged = 0  # steps in the mean of the weights
        self.rows = 0  # rows of the stream consumed by finished steps, over all processes

    @property
    def row_length(self) -> int:
        """Tokens in a row."""
        return self.stream.rows.row_length

    @property
    def tokens(self) -> int:
        """Tokens consumed by finished steps."""
        return self.rows * self.row_length

    def plan(self, fraction: float, tokens_left: int | None = None) -> StepPlan:
        """The next step's plan at the given fraction of the budget; no more micro-batches than the tokens left need."""
        t = self.training
        unit, micro_rows = min(t.micro_batch_size, t.batch_size), self.micro_rows
        rows = batch_size_at(fraction, ceiling=t.batch_size, ramp=t.batch_ramp, micro_batch=unit)
        micro_batches = micro_batches_at(rows, unit, micro_rows, self.world.size)
        if tokens_left is not None:
            tokens_a_micro_batch = micro_rows * self.row_length * self.world.size
            micro_batches = min(micro_batches, max(-(-tokens_left // tokens_a_micro_batch), 1))
        rate = masking_rate_at(fraction, t.masking_rate, t.masking_rate_final)
        return StepPlan(
            learning_rate=t.peak_lr * learning_rate_factor(t.schedule, fraction, t.warmup, t.cooldown),
            masking_rate=rate,
            masking=masking_counts(self.row_length, rate, t.random_share, t.keep_share),
            micro_rows=micro_rows,
            micro_batches=micro_batches,
            window=window_at(fraction, first=t.first_window, growth=t.window_growth, row_length=self.row_length),
            newest_weight=newest_weight(
                t.averaging, t.averaging_share, fraction=fraction, step=self.step, averaged=self.averaged
            ),
        )

    def train_step(self, plan: StepPlan, stop: Callable[[], str | None]) -> StepResult | None:
        """Run one optimizer step.

        Args:
            plan: from :meth:`plan`.
            stop: asked between micro-batches: "budget" ends the accumulation and takes the step with the gradient
                so far; "interrupt" gives the step up, leaving weights and counters as they were.

        Returns:
            The result, or None where the step was given up.

        Raises:
            MicroBatchTooLarge: out of memory; weights and counters are as they were, gradients are not.
        """
        loss = torch.zeros((), device=self.device)
        correct = torch.zeros((), device=self.device)
        done = 0
        while done < plan.micro_batches:
            if done > 0 and (reason := stop()) is not None:
                if reason == "interrupt":
                    self.optimizer.zero_grad(set_to_none=True)
                    return None
                break
            micro_loss, micro_correct = within_memory(partial(self._micro_batch, plan, done), self.world, self.device)
            loss += micro_loss
            correct += micro_correct
            done += 1
        gradient_norm = self._update(plan, rescale=plan.micro_batches / done)
        rows = plan.micro_rows * done * self.world.size
        predicted = plan.micro_rows * plan.masking.masked * done
        self.step += 1
        self.rows += rows
        metrics = torch.stack([loss / done, correct / predicted])
        self.world.average([metrics])
        return StepResult(metrics[0], metrics[1], gradient_norm, rows)

    def state(self) -> dict:
        """Counters and scaler state for a checkpoint; weights and optimizer are saved beside them."""
        return {
            "rows": self.rows,
            "tokens": self.tokens,
            "micro_rows": self.micro_rows,
            "averaged": self.averaged,
            "vocab_size": self.model.vocab_size,
            "scaler": self.precision.state(),
        }

    def restore(self, state: dict) -> None:
        """The inverse of :meth:`state`, after weights and optimizer were loaded."""
        self.step, self.rows = state["step"], state["rows"]
        self.averaged = state.get("averaged", 0)
        # a checkpoint from before memory ran out does not bring the larger ones back
        self.micro_rows = min(self.micro_rows, state.get("micro_rows", self.micro_rows))
        self.precision.restore(state["scaler"])

    def micro_batch_inputs(self, plan: StepPlan, number: int) -> tuple[tuple, dict]:
        """Positional and keyword arguments of the model for micro-batch ``number`` of the next step."""
        first_row = self.rows + (number * self.world.size + self.world.rank) * plan.micro_rows
        next_row = first_row + plan.micro_rows * self.world.size
        ids_BS, cu_seqlens, max_seqlen = self._rows(first_row, plan.micro_rows, next_row)
        batch = mask_rows(ids_BS, plan.masking, self.model.vocab_size, seed=self.seed, index=first_row)
        dropout_seed = None
        if self.training.dropout:
            # a tensor, so that neither compiler nor graph takes each seed for a new constant
            seed = derive_seed(self.seed, "dropout", first_row)
            dropout_seed = torch.full((), seed, dtype=torch.int64, device=self.device)
        arguments = (batch.ids_T, batch.labels_M, batch.positions_M, cu_seqlens, max_seqlen)
        options = {"dropout_seed": dropout_seed, "grad_scale": self.precision.scale}
        if plan.window is not None:
            options["window"] = plan.window
        return arguments, options

    def _read_rows(self, first_row: int, count: int, _next_row: int | None = None) -> BatchRows:
        """On the host."""
        ids_BS = self.stream.batch(first_row, count)
        cu_seqlens, max_seqlen = sequence_boundaries(
            ids_BS, document_attention=self.model.architecture.document_attention
        )
        if self.static_shapes and self.model.architecture.document_attention:
            # as many as there can be, the rest of no tokens
            cu_seqlens = nn.functional.pad(cu_seqlens, (0, ids_BS.numel() + 1 - len(cu_seqlens)), value=ids_BS.numel())
        return BatchRows(ids_BS, cu_seqlens, max_seqlen)

    def _micro_batch(self, plan: StepPlan, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        arguments, options = self.micro_batch_inputs(plan, number)
        divisor = torch.full((), float(plan.micro_batches), device=self.device)
        results = self.micro_step(arguments, options, divisor)
        if self.pace is not None:
            self.pace()
        return results

    def eager_micro_step(
        self, arguments: tuple, options: dict, divisor: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Forward and backward of one micro-batch, whose gradients are divided by ``divisor``: (loss, hits)."""
        with self.precision.autocast():
            result = self.forward(*arguments, **options)
        self.precision.scaled(result.loss / divisor).backward()
        return result.loss.detach(), result.num_correct

    def _update(self, plan: StepPlan, rescale: float) -> torch.Tensor:
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        self.world.average(gradients)
        self.precision.unscale(self.optimizer)
        if rescale != 1.0:  # the budget ended the accumulation early: the mean is over fewer micro-batches
            torch._foreach_mul_(gradients, rescale)
        limit = self.training.grad_clip if self.training.grad_clip is not None else float("inf")
        gradient_norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        set_learning_rate(self.optimizer, plan.learning_rate, self.step)
        self.precision.step(self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)
        if plan.newest_weight:
            average(self.model, self.optimizer, plan.newest_weight)
            self.averaged += 1
        return gradient_norm

    def finish(self) -> bool:
        """End with the mean of the last weights, where there is one; whether that changed them."""
        if not self.averaged:
            return False
        use_average(self.model, self.optimizer)
        self.averaged = 0
        return True
