"""torch.compile(fullgraph=True) equals eager, with at most two compiles while the numbers of tokens change."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from cramkernels import add_layer_norm, attention, geglu, gelu_layer_norm, layer_norm, layer_norm_gelu, mlm_loss, rotary
from tests.cramkernels.cases import cumulative, rope_tables
from tests.cramkernels.strategies import random

FP32 = torch.float32
COS, SIN = rope_tables(16, 8, torch.Generator().manual_seed(1))
LENGTHS = [(5, 3), (7, 0, 4), (2, 9, 6, 1)]
ROWS = [6, 11, 17]
NORM = dict(weight=random(12, seed=1, dtype=FP32), bias=random(12, seed=2, dtype=FP32), eps=1e-5)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(function, backend="aot_eager"):
    """(compiled function, counter). AOT autograd traces forward and backward with fake tensors; no C++ compiler."""
    counter = CompileCounterWithBackend(backend)
    return torch.compile(function, backend=counter, fullgraph=True), counter


def results(function, leaves, *rest):
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    outputs = function(*leaves, *rest)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    differentiable = [output for output in outputs if output.requires_grad]
    grads = [random(*output.shape, seed=5, dtype=output.dtype) for output in differentiable]
    return *(output.detach() for output in outputs), *torch.autograd.grad(differentiable, leaves, grads)


def assert_compiles_to_the_same(function, batches, backend="aot_eager"):
    fast, counter = compiled(function, backend)
    for batch in batches:
        want, got = results(function, *batch), results(fast, *batch)
        for one, other in zip(got, want, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    assert counter.frame_count <= 2


@pytest.mark.parametrize("dropout", [dict(), dict(dropout_p=0.3, seed=4)], ids=["no dropout", "dropout"])
def test_attention(dropout):
    def step(qkv, cu_seqlens, longest):
        return attention(qkv, cu_seqlens, longest, rope=(COS, SIN), window=4, **dropout)

    batches = [([random(sum(n), 3, 2, 8, seed=1, dtype=FP32)], cumulative(n), max(n)) for n in LENGTHS]
    assert_compiles_to_the_same(step, batches)


def test_rotary():
    batches = [([random(sum(n), 3, 2, 8, seed=1, dtype=FP32)], cumulative(n)) for n in LENGTHS]
    assert_compiles_to_the_same(lambda qkv, cu_seqlens: rotary(qkv, COS, SIN, cu_seqlens), batches)


ROW_OPERATIONS = {
    "layer_norm": lambda x: layer_norm(x, **NORM),
    "add_layer_norm": lambda x: add_layer_norm(x, x.sin(), **NORM, dropout_p=0.2, seed=9),
    "add_layer_norm y alone": lambda x: add_layer_norm(x, x.sin(), **NORM)[0],
    "add_layer_norm residual alone": lambda x: add_layer_norm(x, x.sin(), **NORM)[1],
    "layer_norm_gelu": lambda x: layer_norm_gelu(x, **NORM, approximate="tanh"),
    "gelu_layer_norm": lambda x: gelu_layer_norm(x, **NORM, linear_bias=NORM["bias"]),
    "geglu": lambda x: geglu(x, linear_bias=NORM["bias"]),
}


@pytest.mark.parametrize("name", ROW_OPERATIONS)
def test_row_operations(name):
    assert_compiles_to_the_same(ROW_OPERATIONS[name], [([random(rows, 12, seed=1, dtype=FP32)],) for rows in ROWS])


@pytest.mark.parametrize("mode", ["chunked", "recompute"])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_mlm_loss_while_the_number_of_ignored_rows_changes(mode, backend):
    """A compiled chunked loss that divided by a stale number of counted rows would differ here."""

    def step(hidden, weight, labels, positions):
        return mlm_loss(
            hidden, weight, labels, positions_M=positions, z_loss=0.1, label_smoothing=0.1, logits_bytes=80, mode=mode
        )

    batches = []
    for tokens, masked, ignored in [(9, 4, 0), (9, 4, 3), (9, 4, 4), (14, 7, 2), (12, 5, 0), (12, 5, 4)]:
        labels = torch.randint(0, 10, (masked,), generator=torch.Generator().manual_seed(tokens))
        labels[:ignored] = -100
        leaves = [random(tokens, 8, seed=tokens, dtype=FP32), random(10, 8, seed=2, dtype=FP32)]
        batches.append((leaves, labels, torch.arange(masked) * 2 % tokens))
    assert_compiles_to_the_same(step, batches, backend)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_mlm_loss_under_autocast_with_a_changing_scale(dtype):
    """The scale of a loss scaler is a tensor: it changes without a compile."""

    def step(hidden, weight, labels, scale):
        with torch.autocast("cpu", dtype=dtype):
            return mlm_loss(hidden, weight, labels, grad_scale=scale).loss * scale

    leaves = [random(6, 8, seed=1, dtype=FP32), random(10, 8, seed=2, dtype=FP32)]
    batches = [(leaves, torch.arange(6), torch.tensor(scale)) for scale in (1.0, 1024.0)]
    fast, counter = compiled(step)
    for batch in batches:
        for one, other in zip(results(fast, *batch), results(step, *batch), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    assert counter.frame_count == 1


def test_without_gradients():
    fast, _ = compiled(lambda x: geglu(layer_norm(x, **NORM)))
    with torch.no_grad():
        x = random(4, 12, seed=1, dtype=FP32)
        torch.testing.assert_close(fast(x), geglu(layer_norm(x, **NORM)))


def test_the_graph_holds_our_operator_and_not_its_insides():
    """So that a GPU's kernel is called from compiled code, too."""
    seen = []

    def backend(graph, _):
        seen.extend(node.target for node in graph.graph.nodes if node.op == "call_function")
        return graph

    torch.compile(lambda x: layer_norm(x, **NORM), backend=backend, fullgraph=True)(random(4, 12, seed=1, dtype=FP32))
    assert any("cramkernels" in str(target) and "layer_norm" in str(target) for target in seen), seen
