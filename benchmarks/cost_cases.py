"""The calls of the cost table: element-wise and row operations at training shapes, one direction at a time."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch

from cramkernels.dispatch import FAMILIES
from tests.simulation import cuda, triton

EPS = 1e-12
HEAD_DIM, TOKENS = 64, 128  # of rotary: a head, a sequence
DIRECTIONS = ("forward", "backward")
EXECUTED = 80  # the architecture whose PTX is executed
CUDA, TRITON = "CUDA C++", "Triton"
LANGUAGES = (CUDA, TRITON)
Named = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Case:
    """``width``: of a norm's row; of a row of GEGLU's output, that is, half a row of its input; of rotary's queries."""

    op: str
    rows: int
    width: int
    dtype: torch.dtype = torch.bfloat16
    approximate: str = "none"
    linear_bias: bool = False
    dropout_p: float = 0.0

    @property
    def variant(self) -> str:
        """In words."""
        words = ["tanh" if self.approximate == "tanh" else "erf"] if "gelu" in self.op or self.op == "geglu" else []
        words += ["linear bias"] if self.linear_bias else []
        words += ["dropout"] if self.dropout_p else []
        return ", ".join(words)

    @property
    def elements(self) -> int:
        """Of the output."""
        return self.rows * self.width * (3 if self.op == "rotary" else 1)

    def compulsory(self, direction: str) -> int:
        """Bytes of every activation and gradient that has to be read or written, once each."""
        if self.op == "geglu":
            tensors = {"forward": 3, "backward": 5}[direction]
        elif self.op == "rotary":
            tensors = 2
        elif self.op == "add_layer_norm":  # without dropout x and residual have one gradient
            tensors = {"forward": 4, "backward": 5 if self.dropout_p else 4}[direction]
        else:
            tensors = {"forward": 2, "backward": 3}[direction]
        return tensors * self.elements * self.dtype.itemsize

    def inputs(self, direction: str) -> Named:
        """Tensors of the call, activations first; parameters are fp32."""
        generator = torch.Generator().manual_seed(self.rows + self.width)
        columns = self.columns

        def draw(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.randn(*shape, generator=generator).to(dtype)

        if self.op == "rotary":
            angles = draw(TOKENS, HEAD_DIM // 2)
            return {
                "x" if direction == "forward" else "grad": draw(self.rows, 3, self.width // HEAD_DIM, HEAD_DIM).to(
                    self.dtype
                ),
                "cos": angles.cos(),
                "sin": angles.sin(),
                "cu_seqlens": torch.arange(0, self.rows + 1, TOKENS, dtype=torch.int32),
            }
        named = {"x": draw(self.rows, columns, dtype=self.dtype)}
        if self.op == "add_layer_norm":
            named["residual" if direction == "forward" else "grad_residual"] = draw(
                self.rows, columns, dtype=self.dtype
            )
        if direction == "backward":
            named["grad"] = draw(self.rows, self.width, dtype=self.dtype)
        if self.op != "geglu":
            named |= {"weight": draw(columns), "bias": draw(columns)}
            if direction == "backward":
                named |= {"mean": torch.zeros(self.rows), "rstd": torch.ones(self.rows)}
        if self.linear_bias:
            named["linear_bias"] = draw(columns)
        if self.dropout_p:
            named["seed"] = torch.tensor(7)
        return named

    @property
    def columns(self) -> int:
        """Of a row of the input."""
        return self.width * {"geglu": 2, "rotary": 3}.get(self.op, 1)

    def written_in(self, language: str) -> bool:
        """There are kernels in this language."""
        return hasattr(_module(language, self.op), f"{self.op}_forward")

    def call(self, language: str, direction: str, inputs: Named) -> Callable[[], Named]:
        """Runs the backend's own function, launches and all, and returns its tensors by name."""
        module = _module(language, self.op)
        function = getattr(module, f"{self.op}_{direction}")
        arguments = self._arguments(direction, inputs)
        names = self._outputs(direction)

        def run() -> Named:
            results = function(*arguments)
            results = results if isinstance(results, tuple) else (results,)
            return {name: x for name, x in zip(names, results, strict=True) if x.numel()}

        return run

    def _arguments(self, direction: str, n: Named) -> list:
        if self.op == "rotary":
            return list(n.values())
        x, weight, bias, linear_bias = n["x"], n.get("weight"), n.get("bias"), n.get("linear_bias")
        dropout = [self.dropout_p, n.get("seed")]
        if self.op == "geglu":
            incoming = [n["grad"]] if direction == "backward" else []
            return [*incoming, x, linear_bias, self.approximate, "second"]
        if direction == "forward":
            return {
                "layer_norm": [x, weight, bias, EPS],
                "add_layer_norm": [x, n.get("residual"), weight, bias, EPS, *dropout],
                "layer_norm_gelu": [x, weight, bias, EPS, self.approximate],
                "gelu_layer_norm": [x, weight, bias, linear_bias, EPS, self.approximate],
            }[self.op]
        grad, mean, rstd = n["grad"], n["mean"], n["rstd"]
        return {
            "layer_norm": [grad, x, weight, bias, mean, rstd],
            "add_layer_norm": [grad, n.get("grad_residual"), x, weight, bias, mean, rstd, x.dtype, x.dtype, *dropout],
            "layer_norm_gelu": [grad, x, weight, bias, mean, rstd, EPS, self.approximate],
            "gelu_layer_norm": [grad, x, weight, bias, linear_bias, mean, rstd, self.approximate],
        }[self.op]

    def _outputs(self, direction: str) -> list[str]:
        if self.op == "geglu":
            return ["y"] if direction == "forward" else ["dx", "dlinear_bias"]
        if self.op == "rotary":
            return ["y" if direction == "forward" else "dx"]
        more = self.op == "add_layer_norm"
        if direction == "forward":
            return ["y", *(["new_residual"] if more else []), "mean", "rstd"]
        last = ["dlinear_bias"] if self.op == "gelu_layer_norm" else []
        return ["dx", *(["dresidual"] if more else []), "dweight", "dbias", *last]


def _module(language: str, op: str) -> ModuleType:
    return importlib.import_module(f"cramkernels.{'cuda' if language == CUDA else 'triton'}.{FAMILIES[op]}")


def cuda_compiler() -> Path | str | None:
    """The nvcc that makes PTX of csrc/."""
    from native_build import find_nvcc  # csrc/, on the path since tests.simulation.cuda was imported

    return find_nvcc()


def simulation(language: str) -> Callable:
    """A context in which launches in this language execute for sm_80; it yields (kernel, result) of each."""
    module = cuda if language == CUDA else triton
    return lambda: module.simulated(EXECUTED, check="none")


def cases(rows: int, widths: list[int]) -> list[Case]:
    """Every operation and variant of the table. GEGLU's x has four times as many columns, as in a feed-forward."""
    chosen = []
    for width in widths:
        chosen += [
            Case("layer_norm", rows, width),
            Case("layer_norm", rows, width, torch.float32),
            Case("add_layer_norm", rows, width),
            Case("add_layer_norm", rows, width, dropout_p=0.1),
            Case("rotary", rows, width),
        ]
        for approximate in ("none", "tanh"):
            chosen += [
                Case("layer_norm_gelu", rows, width, approximate=approximate),
                Case("gelu_layer_norm", rows, width, approximate=approximate, linear_bias=True),
                Case("geglu", rows, 2 * width, approximate=approximate),
                Case("geglu", rows, 2 * width, approximate=approximate, linear_bias=True),
            ]
    return chosen
