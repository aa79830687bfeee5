"""A training step for a GPU that is not there: fake tensors on device cuda, through the CUDA backend's own functions.

Fake tensors have no data, so that whatever would wait for the device fails here. A CPU build of PyTorch cannot run
autograd on them: the backwards are called directly, with the arguments of a real step on the CPU.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

import cramkernels.cuda
import cramming_train.masking as masking
from cramkernels import configurations, decoder, dispatch, library, operator
from cramkernels.cuda import arguments as cuda_arguments
from cramming_train.masking import mask_rows, masking_counts
from cramming_train.model import MaskedLM, build_model, sequence_boundaries
from tests.model.cases import small

ROWS, LENGTH, VOCABULARY = 3, 16, 80
SHAPE = {"layers": 2, "hidden": 64, "heads": 2, "ffn_hidden": 64, "max_length": LENGTH}
MODELS = {
    "crammed-bert": small("crammed-bert", **SHAPE),
    "rope": small("crammed-bert", **SHAPE, positions="rope"),
    "bert-base": small("bert-base", **SHAPE),
}
COUNTS = masking_counts(LENGTH, 0.25, 0.1, 0.1)
MASKED = ROWS * COUNTS.masked


@pytest.fixture
def launches(monkeypatch):
    """Names of the library's functions that are called, which do nothing."""
    called = []
    monkeypatch.setattr(library, "call", lambda name, arguments, device: called.append(name))
    monkeypatch.setattr(cramkernels.cuda, "obstacle", lambda *_: None)
    monkeypatch.setattr(cuda_arguments, "_multiprocessors", lambda index: 82)
    monkeypatch.setattr(cuda_arguments, "_capability", lambda index: (8, 6))
    monkeypatch.setattr(configurations, "part_of", lambda device: 86)
    monkeypatch.setattr(configurations, "_tuned", lambda device: {})
    monkeypatch.setattr(torch.Tensor, "data_ptr", lambda self: 4096)
    monkeypatch.setattr(decoder, "multiply", multiply)
    monkeypatch.setattr(operator, "_is_fake", lambda x: False)  # into the backend, not its registered shapes
    monkeypatch.setattr(masking, "_generator", lambda device, seed: None)
    monkeypatch.setattr(torch.Tensor, "__getitem__", indexed)
    dispatch._implementation.cache_clear()
    yield called
    dispatch._implementation.cache_clear()


def indexed(x, key):
    """``x[key]`` by the operators that Python's brackets call: in a CPU build those ask for a CUDA device first."""
    keys = key if isinstance(key, tuple) else (key,)
    if isinstance(key, torch.Tensor):
        return torch.ops.aten.index.Tensor(x, [key])
    for dim, part in reversed(list(enumerate(keys))):
        if isinstance(part, slice):
            x = torch.ops.aten.slice.Tensor(x, dim, part.start, part.stop, part.step or 1)
        else:
            x = torch.ops.aten.select.int(x, dim, part)
    return x


def multiply(a, b, out, add):
    """torch's products of 16-bit matrices with an fp32 result want a CUDA build."""
    assert out.shape == (a.shape[0], b.shape[1]) and a.shape[1] == b.shape[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_masking_and_forward(name, dtype, launches):
    architecture = MODELS[name]
    model = MaskedLM(architecture, VOCABULARY)
    with FakeTensorMode(), torch.no_grad():
        tensors = {name: on_gpu(x, dtype) for name, x in model.named_parameters()}
        tensors.update({name: on_gpu(x) for name, x in model.named_buffers() if "rope" in name})
        tensors.update({name: on_gpu(x, dtype) for name, x in model.named_buffers() if "rope" not in name})
        ids_BS = torch.empty(ROWS, LENGTH, dtype=torch.int64, device="cuda")
        cu_seqlens = torch.empty(ROWS + 1, dtype=torch.int32, device="cuda")
        batch = mask_rows(ids_BS, COUNTS, VOCABULARY, seed=0, index=0)
        assert (batch.ids_T.shape, batch.labels_M.shape, batch.positions_M.shape) == ((48,), (MASKED,), (MASKED,))
        result = functional_call(model, tensors, (*batch, cu_seqlens, LENGTH))
    assert {x.device.type for x in (*batch, *result)} == {"cuda"}
    assert [x.dtype for x in result] == [torch.float32, torch.float32, torch.int64, torch.int64]
    is_post = architecture.norm == "post"
    assert launches.count("ck_attention_short_forward") == 2
    # embedding, two a block, and the first block's own or the head transform's
    assert launches.count("ck_norm_forward") == 6
    assert launches.count("ck_geglu_forward") == (0 if is_post else 2)
    assert [x for x in launches if "loss" in x] == ["ck_loss_count", "ck_loss_rows", "ck_loss_finish"]
    assert not [x for x in launches if "backward" in x]


BACKWARDS = {"attention": "attention", "layer_norm": "norm", "add_layer_norm": "norm", "gelu_layer_norm": "norm",
             "geglu": "geglu"}  # fmt: skip


@pytest.mark.parametrize("op", BACKWARDS)
def test_backwards(op, monkeypatch, request):
    """Shapes, dtypes and device of every gradient are those of a real step in bf16 on the CPU."""
    name = "bert-base" if op == "gelu_layer_norm" else "crammed-bert"
    calls = spied(monkeypatch, op)
    model = build_model(MODELS[name], VOCABULARY, seed=0).bfloat16()
    ids_BS = torch.randint(0, VOCABULARY, (ROWS, LENGTH))
    batch = mask_rows(ids_BS, COUNTS, VOCABULARY, seed=0, index=0)
    cu_seqlens, longest = sequence_boundaries(ids_BS, document_attention=False)
    model(*batch, cu_seqlens, longest).loss.backward()
    monkeypatch.undo()
    launches = request.getfixturevalue("launches")
    function = getattr(cuda_module(op), f"{op}_backward")
    assert calls
    for arguments, real in calls:
        launches.clear()
        with FakeTensorMode():
            gradients = function(*(on_gpu(x) for x in arguments))
        pairs = list(zip(as_tuple(gradients), as_tuple(real), strict=True))
        assert [(x.shape, x.dtype) for x, y in pairs if y is not None] == [
            (y.shape, y.dtype) for _, y in pairs if y is not None
        ]
        assert {x.device.type for x, y in pairs if y is not None and y.numel()} == {"cuda"}
        assert any(f"ck_{BACKWARDS[op]}_" in x and "backward" in x for x in launches)


def as_tuple(x):
    return x if isinstance(x, tuple) else (x,)


def on_gpu(x, dtype=None):
    if not isinstance(x, torch.Tensor):
        return x
    return torch.empty_strided(x.shape, x.stride(), dtype=dtype or x.dtype, device="cuda")


def cuda_module(op):
    return dispatch._module("cuda", op)


def spied(monkeypatch, op):
    """(arguments, results) of each call of the reference's backward."""
    calls = []
    module = dispatch._module("reference", op)
    right = getattr(module, f"{op}_backward")

    def spy(*arguments):
        results = right(*arguments)
        calls.append((arguments, results))
        return results

    monkeypatch.setattr(module, f"{op}_backward", spy)
    dispatch._implementation.cache_clear()
    return calls
