"""Muon: momentum, orthogonalised, for the matrices of the blocks (Jordan 2024, kellerjordan.github.io/posts/muon).

PyTorch's ``torch.optim.Muon`` does the same with five iterations, one matrix at a time and always in bf16, which CPUs
without such units do some hundred times slower than fp32, and it waits for the device under a gradient scaler. Here
matrices of one shape go through the iteration together, in fp32 on a CPU, and nothing waits. Three iterations, each
with the best quintic for what the one before leaves (Amsel et al. 2025, arXiv 2505.16932), do what five with the same
quintic did.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

# x -> a x + b x^3 + c x^5, one after the other: the minimax quintics for [0.01, 1] and what becomes of it, so that
# singular values above a hundredth of the norm end within 0.71 and 1.28; all but the last, and the norm, leave a room
# of MARGIN, since beyond its interval a quintic soon diverges and bf16 rounds
COEFFICIENTS = ((8.0132, -22.9258, 16.5994), (3.6006, -2.6419, 0.5105), (2.6613, -1.9772, 0.4526))
MARGIN = 1.01
EPS = 1e-7


def orthogonalised(x_BMN: torch.Tensor) -> torch.Tensor:
    """Each matrix of a batch [B, M, N] with all its singular values moved to about one.

    Newton-Schulz iteration, in bf16 on a GPU and in fp32 elsewhere; the result is fp32.
    """
    tall = x_BMN.shape[1] > x_BMN.shape[2]
    x = x_BMN.mT if tall else x_BMN
    x = x / (MARGIN * x.norm(dim=(1, 2), keepdim=True)).clamp(min=EPS)
    x = iterated(x.bfloat16() if x.is_cuda else x)
    return (x.mT if tall else x).to(x_BMN.dtype)


def iterated(x_BMN: torch.Tensor) -> torch.Tensor:
    """The quintics, of matrices [B, M, N] with M <= N and a spectral norm of at most 1 / MARGIN."""
    for a, b, c in COEFFICIENTS:
        gram_BMM = x_BMN @ x_BMN.mT
        x_BMN = torch.baddbmm(x_BMN, torch.baddbmm(gram_BMM, gram_BMM, gram_BMM, beta=b, alpha=c), x_BMN, beta=a)
    return x_BMN


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
        if group["lr"] == 0:  # the momentum has taken it in, and nothing is to move
            return
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
