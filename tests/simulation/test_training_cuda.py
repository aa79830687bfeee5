"""A tiny model trained for several steps with every kernel of the CUDA library executed, beside the reference."""

import torch

from cramming_train.distributed import World
from cramming_train.engine import Trainer
from cramming_train.loader import RowStream
from cramming_train.model import build_model
from cramming_train.precision import Precision
from cramming_train.recipes import Training
from tests.model.cases import small
from tests.simulation.cuda import simulated
from tests.simulation.test_model_cuda import FAMILIES

CPU = torch.device("cpu")
ARCHITECTURE = small("crammed-bert", layers=2, hidden=32, heads=1, ffn_hidden=48, max_length=32)
TRAINING = Training("t", batch_size=4, micro_batch_size=2, grad_clip=0.5, schedule="constant")
STEPS = 3


def trained(small_data, dtype=torch.float32) -> tuple[list[torch.Tensor], torch.Tensor]:
    """(losses, weights) after some steps of two micro-batches; in 16 bits under autocast, as on a GPU."""
    model = build_model(ARCHITECTURE, small_data.vocab_size, seed=0)
    precision = Precision("fp32", CPU)
    precision.dtype = dtype if dtype != torch.float32 else None
    stream = RowStream(small_data.train, 0)
    trainer = Trainer(model, stream, TRAINING, seed=0, device=CPU, precision=precision, world=World())
    losses = [trainer.train_step(trainer.plan(0.5), lambda: None).loss for _ in range(STEPS)]
    return losses, torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def test_steps_are_those_of_the_reference(small_data, proof):
    expected, weights = trained(small_data)
    with simulated(80) as executed:
        losses, own_weights = trained(small_data)
    symbols = executed.symbols()
    proof("CUDA C++ sm_80 executed", symbols)
    assert {"_".join(symbol.split("_")[:2]) for symbol in symbols} == FAMILIES
    assert sum("ck_loss_rows" in symbol for symbol in symbols) == 2 * STEPS
    torch.testing.assert_close(losses, expected, rtol=2e-6, atol=0)
    assert losses[0] != losses[-1]
    # Adam divides a gradient by its own size: where that is rounding alone, a step may go either way
    assert float((own_weights - weights).norm() / weights.norm()) < 1e-4


def test_steps_in_bf16_err_no_more_than_twice_the_references(small_data, proof):
    exact, _ = trained(small_data)
    reference, _ = trained(small_data, torch.bfloat16)
    with simulated(80) as executed:
        losses, _ = trained(small_data, torch.bfloat16)
    proof("CUDA C++ sm_80 executed", executed.symbols())
    errors = [sum(float((x - y).abs()) for x, y in zip(run, exact, strict=True)) for run in (losses, reference)]
    assert 0 < errors[0] <= 2 * errors[1] + STEPS * float(exact[0]) * torch.finfo(torch.bfloat16).eps
