"""Muon: momentum, orthogonalised, for the matrices of the blocks (Jordan 2024, kellerjordan.github.io/posts/muon).

PyTorch's ``torch.optim.Muon`` computes the same, one matrix at a time and always in bf16, which CPUs without such
units do some hundred times slower than fp32, and it waits for the device under a gradient scaler. Here matrices of one
shape go through the iteration together, in fp32 on a CPU, and nothing waits.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan's quintic: singular values end within about 0.7 and 1.2
ITERATIONS = 5
EPS = 1e-7


def orthogonalised(x_BMN: torch.Tensor) -> torch.Tensor:
    """Each matrix of a batch [B, M, N] with all its singular values moved to about one.

    Newton-Schulz iteration, in bf16 on a GPU and in fp32 elsewhere; the result is fp32.
    """
    a, b, c = COEFFICIENTS
    tall = x_BMN.shape[1] > x_BMN.shape[2]
    x = x_BMN.mT if tall else x_BMN
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=EPS)
    if x.is_cuda:
        x = x.bfloat16()
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(x_BMN.dtype)


class Muon(torch.optim.Optimizer):
    """x <- (1 - lr wd) x - lr sqrt(max(1, M / N)) orthogonalised(Nesterov momentum of the gradient), for each block.

    Args:
        blocks: (parameter [P * M, N], P) pairs: the P blocks of rows are matrices in their own right, such as those of
            queries, keys and values that one parameter holds.
        lr: spectral norm of a step, about, so that one value serves all widths.

    Raises:
        ValueError: a parameter is not a matrix of P blocks.
    """

    def __init__(
        self, blocks: Iterable[tuple[torch.nn.Parameter, int]], *, lr: float, momentum: float, weight_decay: float
    ):
        blocks = list(blocks)
        for parameter, count in blocks:
            if parameter.dim() != 2 or parameter.shape[0] % count:
                raise ValueError(f"blocks: got a parameter of shape {tuple(parameter.shape)} in {count} blocks of rows")
        by_shape: dict[tuple[int, int], list[torch.nn.Parameter]] = {}
        for parameter, count in blocks:
            by_shape.setdefault((parameter.shape[0] // count, parameter.shape[1]), []).append(parameter)
        groups = [{"params": parameters, "matrix": matrix} for matrix, parameters in by_shape.items()]
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.found_inf: torch.Tensor | None = None  # by a gradient scaler: not zero where the step is to be left out

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """One step of every matrix that has a gradient."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._step(parameters, group)

    def _step(self, parameters: list[torch.Tensor], group: dict) -> None:
        momentum, (rows, columns) = group["momentum"], group["matrix"]
        gradients = [p.grad for p in parameters]
        buffers = [self._buffer(p) for p in parameters]
        rate, decay = group["lr"], 1 - group["lr"] * group["weight_decay"]
        if self.found_inf is not None:
            skip = self.found_inf > 0
            gradients = [torch.where(skip, m, g) for m, g in zip(buffers, gradients, strict=True)]
            rate, decay = torch.where(skip, 0.0, rate), torch.where(skip, 1.0, decay)
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        updates = torch._foreach_lerp(gradients, buffers, momentum)
        steps_BMN = orthogonalised(torch.cat([update.view(-1, rows, columns) for update in updates]))
        steps_BMN *= -rate * max(1.0, rows / columns) ** 0.5
        torch._foreach_mul_(parameters, decay)
        counts = [p.shape[0] // rows for p in parameters]
        for parameter, step in zip(parameters, steps_BMN.split(counts), strict=True):
            parameter += step.reshape(parameter.shape)

    def _buffer(self, parameter: torch.Tensor) -> torch.Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        return state["momentum_buffer"]
