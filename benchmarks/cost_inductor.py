"""torch.compile's Triton kernels without a GPU: inductor lowers fake CUDA tensors, its wrapper runs in the simulator.

The private interfaces of inductor that this needs come and go with versions of torch: whoever asks must be ready for
any exception, and then say that the kernels cannot be had. Nothing can be timed here, so where inductor would try
several launch configurations on the card, the first one stands.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache, partial
from unittest.mock import patch

import torch

from benchmarks.cost_cases import EPS, TRITON, Case, Named, simulation

aten = torch.ops.aten
CAPABILITY = (8, 0)


def call(case: Case, direction: str, inputs: Named, multiprocessors: int) -> Callable[[], Named]:
    """Runs the compiled wrapper on CPU tensors, which is for a simulation of Triton."""
    functions = {
        ("layer_norm", "forward"): (_layer_norm, ["x", "weight", "bias"], ["y", "mean", "rstd"]),
        ("layer_norm", "backward"): (
            _layer_norm_backward,
            ["grad", "x", "weight", "bias", "mean", "rstd"],
            ["dx", "dweight", "dbias"],
        ),
        ("geglu", "forward"): (_geglu, ["x"], ["y"]),
        ("geglu", "backward"): (_geglu_backward, ["grad", "x"], ["dx"]),
    }
    function, arguments, outputs = functions[case.op, direction]
    shapes = tuple((tuple(_column(inputs[name], case.rows).shape), inputs[name].dtype) for name in arguments)
    wrapper = _compiled(function, shapes, case.approximate, multiprocessors)

    def run() -> Named:
        results = wrapper([_column(inputs[name], case.rows) for name in arguments])
        return {name: _flat(x) for name, x in zip(outputs, results, strict=True)}

    return run


def _column(x: torch.Tensor, rows: int) -> torch.Tensor:
    """Statistics are [rows, 1] in aten."""
    return x[:, None] if x.shape == (rows,) else x


def _flat(x: torch.Tensor) -> torch.Tensor:
    return x[:, 0] if x.dim() == 2 and x.shape[1] == 1 else x


def _layer_norm(approximate, x, weight, bias):
    y, mean, rstd = aten.native_layer_norm(x.float(), [x.shape[-1]], weight, bias, EPS)
    return y.to(x.dtype), mean, rstd


def _layer_norm_backward(approximate, grad, x, weight, bias, mean, rstd):
    dx, dweight, dbias = aten.native_layer_norm_backward(
        grad.float(), x.float(), [x.shape[-1]], mean, rstd, weight, bias, [True] * 3
    )
    return dx.to(x.dtype), dweight, dbias


def _geglu(approximate, x):
    linear, gated = x.chunk(2, -1)
    return (linear * aten.gelu(gated, approximate=approximate),)


def _geglu_backward(approximate, grad, x):
    linear, gated = x.chunk(2, -1)
    dgated = aten.gelu_backward(grad * linear, gated, approximate=approximate)
    return (torch.cat([grad * aten.gelu(gated, approximate=approximate), dgated], -1),)


@cache
def _compiled(function: Callable, shapes: tuple, approximate: str, multiprocessors: int) -> Callable:
    """Inductor's wrapper for this function of CUDA tensors, made to run on CPU tensors."""
    from torch._inductor.async_compile import AsyncCompile
    from torch._inductor.runtime import triton_helpers

    with simulation(TRITON)(), _pretended_gpu(multiprocessors):
        source = _source(function, shapes, approximate)
        source = source.replace("empty_strided_cuda(", "empty_strided_cpu(")
        source = source.replace("torch.cuda._DeviceGuard(0)", "_nothing()").replace("torch.cuda.set_device(0)", "pass")
        source = source.replace("get_raw_stream(0)", "0")
        source = "\n".join(line for line in source.splitlines() if "_cuda_getCurrentRawStream" not in line)
        module = types.ModuleType("compiled")
        module.__dict__["_nothing"] = nullcontext
        with (
            patch.object(AsyncCompile, "triton", lambda self, name, text, device_str="cuda": _Kernel(name, text)),
            patch.object(triton_helpers, "set_driver_to_gpu", lambda: None),
        ):
            exec(compile(source, "compiled", "exec"), module.__dict__)
    return module.call


def _source(function: Callable, shapes: tuple, approximate: str) -> str:
    from torch._inductor import config
    from torch._inductor.debug import DebugContext
    from torch._inductor.decomposition import select_decomp_table
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    mode = FakeTensorMode()
    with mode, config.patch(compile_threads=1, fx_graph_cache=False):
        tensors = [torch.empty(shape, dtype=dtype, device="cuda") for shape, dtype in shapes]
        trace = make_fx(lambda *args: function(approximate, *args), decomposition_table=select_decomp_table())
        graph = GraphLowering(trace(*tensors), example_inputs=tensors)
        with V.set_graph_handler(graph), V.set_fake_mode(mode), V.set_debug_handler(DebugContext()):
            graph.run(*tensors)
            wrapper = graph.codegen()[0]
    return getattr(wrapper, "value", wrapper)


class _Kernel:
    """Stands where inductor's autotuner would, and launches the first configuration."""

    def __init__(self, name: str, text: str):
        from torch._inductor.codecache import PyCodeCache

        self.tuner = getattr(PyCodeCache.load(text), name)

    def run(self, *args, stream: int) -> None:
        from torch._inductor.runtime.triton_heuristics import GridExpr

        kernel, config = self.tuner.fn, self.tuner.configs[0]
        meta = {**dict(zip(kernel.arg_names, args, strict=False)), **config.kwargs}
        grid = GridExpr.from_meta(self.tuner.inductor_meta, config).eval_slow(meta)
        kernel[grid](*args, **config.kwargs, num_warps=config.num_warps, num_stages=config.num_stages)


def _answer(answer, *args, **kwargs):
    return answer


@contextmanager
def _pretended_gpu(multiprocessors: int) -> Iterator[None]:
    """What inductor asks of a device before it writes code."""
    from torch._dynamo.device_interface import CudaInterface

    properties = types.SimpleNamespace(
        name="simulated", major=CAPABILITY[0], minor=CAPABILITY[1], multi_processor_count=multiprocessors,
        regs_per_multiprocessor=65536, max_threads_per_multi_processor=1536, max_threads_per_block=1024, warp_size=32,
        total_memory=24 << 30, shared_memory_per_block=48 << 10, shared_memory_per_block_optin=99 << 10,
        L2_cache_size=6 << 20, gcnArchName="",
    )  # fmt: skip
    answers = {
        "is_available": True, "get_device_properties": properties, "get_device_capability": CAPABILITY,
        "current_device": 0, "device_count": 1,
    }  # fmt: skip
    with ExitStack() as stack:
        for owner, is_class in ((torch.cuda, False), (CudaInterface, True), (CudaInterface.Worker, True)):
            for name, answer in answers.items():
                if hasattr(owner, name):
                    stub = partial(_answer, answer)
                    stack.enter_context(patch.object(owner, name, staticmethod(stub) if is_class else stub))
        yield
