"""The call from Python into the library: status codes, and the launch hook."""

import pytest
import torch

from cramkernels import library
from cramkernels.cuda.arguments import ATTENTION, GEGLU, LOSS, NORM, REDUCE, ROTARY

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _library():
    if isinstance(library.load(), str):
        pytest.skip(library.load())


def norm(rows=5, width=64, op=0, dtype=0, residual_dtype=None, ctas=2) -> bytes:
    """An argument block without tensors: nothing here reaches a device."""
    residual_dtype = dtype if residual_dtype is None else residual_dtype
    return NORM.pack(*[0] * 15, rows, width, op, dtype, residual_dtype, 0, 0, ctas, 0, 1e-5, 1.0, 0, 0)


def geglu(rows=5, width=64, dtype=0, ctas=2) -> bytes:
    """Likewise."""
    return GEGLU.pack(*[0] * 6, rows, width, dtype, 0, 0, 1, ctas)


def reduce(count=1, ctas=2, width=64, dtype=0) -> bytes:
    """Likewise."""
    return REDUCE.pack(*[0] * 4, count, ctas, width, dtype)


def attention(tokens=5, sequences=1, heads=2, head_dim=64, dtype=1, warps=8) -> bytes:
    """Likewise."""
    return ATTENTION.pack(*[0] * 11, tokens, sequences, heads, head_dim, dtype, -1, warps, 0.1, 1.0, 0, 0)


def rotary(tokens=5, sequences=1, heads=2, head_dim=64, dtype=1) -> bytes:
    """Likewise."""
    return ROTARY.pack(*[0] * 5, tokens, sequences, heads, head_dim, dtype, 0, 0)


def loss(total=5, rows=5, stride=64, vocabulary=60, width=16, columns=60, dtype=1, splits=1) -> bytes:
    """Likewise."""
    return LOSS.pack(
        *[0] * 15, total, rows, 0, stride, -100, vocabulary, width, 0, columns, dtype, 0, splits, 0, *[0.0] * 3, 8
    )


NO_LOSS = [{"total": 0}, {"vocabulary": 0}, {"width": 0}]
NO_ATTENTION = [{"tokens": 0}, {"tokens": 2**31}, {"sequences": -1}, {"heads": 0}]
CASES = {
    "ck_norm_forward": (norm, [{"rows": 0}, {"rows": -1}, {"width": 0}, {"width": 8193}, {"op": 4}, {"ctas": 0}]),
    "ck_norm_backward": (norm, [{"rows": 0}, {"width": -8}, {"width": 8193}, {"op": -1}, {"ctas": 0}]),
    "ck_norm_reduce": (reduce, [{"count": 0}, {"count": 4}, {"ctas": 0}, {"width": 0}]),
    "ck_geglu_forward": (geglu, [{"rows": 0}, {"width": 0}, {"ctas": 0}, {"ctas": 65536}]),
    "ck_geglu_backward": (geglu, [{"rows": 0}, {"width": -1}, {"ctas": 0}, {"ctas": 65536}]),
    "ck_loss_count": (loss, NO_LOSS),
    "ck_loss_rows": (loss, [*NO_LOSS, {"rows": 0}, {"stride": 63}, {"stride": 56}]),
    "ck_loss_tiles": (loss, [*NO_LOSS, {"splits": 0}, {"splits": 9}]),
    "ck_loss_combine": (loss, [*NO_LOSS, {"splits": 0}]),
    "ck_loss_slice": (loss, [*NO_LOSS, {"rows": 0}, {"columns": 0}, {"columns": 65}, {"stride": 60}]),
    "ck_loss_finish": (loss, NO_LOSS),
    "ck_attention_short_backward": (attention, NO_ATTENTION),
    "ck_attention_short_forward": (attention, [*NO_ATTENTION, {"warps": 0}, {"warps": 9}]),
    "ck_attention_long_forward": (attention, NO_ATTENTION),
    "ck_attention_long_backward": (attention, NO_ATTENTION),
    "ck_attention_mid_backward": (attention, [*NO_ATTENTION, {"heads": -1}]),
    "ck_attention_fp32_forward": (attention, NO_ATTENTION),
    "ck_attention_fp32_backward": (attention, NO_ATTENTION),
    "ck_rotary": (rotary, [*NO_ATTENTION, {"head_dim": 0}, {"head_dim": 20}]),
}
HALF = (
    "ck_attention_short_forward", "ck_attention_short_backward", "ck_attention_long_forward",
    "ck_attention_long_backward", "ck_attention_mid_backward", "ck_loss_tiles", "ck_loss_slice",
)  # fmt: skip
SINGLE = ("ck_attention_fp32_forward", "ck_attention_fp32_backward")
TWO_KERNELS = ("ck_attention_long_backward", "ck_attention_fp32_backward")


@pytest.mark.parametrize("name", library.ENTRY_POINTS)
def test_statuses_are_exceptions_with_words(name):
    """A bad dtype, each bad shape; nothing is launched. Good ones launch."""
    pack, bad_shapes = CASES[name]
    launched = []
    with library.launch_hook(lambda launch: launched.append(launch.symbol.decode())):
        good = (1, 2) if name in HALF else (0,) if name in SINGLE else (0, 1, 2)
        for dtype in {-1, 0, 1, 2, 3, 99} - set(good):
            with pytest.raises(library.KernelError, match=rf"^{name}: a dtype .*does not serve \(status -1\)$"):
                library.call(name, pack(dtype=dtype), CPU)
        for bad in bad_shapes:
            with pytest.raises(library.KernelError, match=rf"^{name}: a shape .*does not serve \(status -2\)$"):
                library.call(name, pack(**{"dtype": good[0], **bad}), CPU)
        assert not launched
        for count, dtype in enumerate(good, start=1):
            library.call(name, pack(dtype=dtype), CPU)
            assert len(launched) == count * (2 if name in TWO_KERNELS else 1)
    assert all(symbol.startswith("ck_") for symbol in launched)


def test_mixed_dtypes_only_where_the_family_has_them():
    """An fp32 residual under 16-bit x is for add_layer_norm alone."""
    with library.launch_hook(lambda launch: None):
        library.call("ck_norm_forward", norm(op=1, dtype=2, residual_dtype=0), CPU)
        for wrong in ({"op": 1, "dtype": 0, "residual_dtype": 2}, {"op": 0, "dtype": 2, "residual_dtype": 0}):
            with pytest.raises(library.KernelError, match="a dtype"):
                library.call("ck_norm_forward", norm(**wrong), CPU)


def test_cudas_own_words_for_positive_statuses():
    """Through the runtime that is linked in."""
    assert library.load().handle.ck_error_string(1) == b"invalid argument"


def test_what_a_hook_is_told():
    """Symbol, grid, block, and the argument block as it was packed."""
    import ctypes

    told = []

    def hook(launch):
        raw = ctypes.string_at(launch.arguments, launch.argument_bytes)
        told.append((launch.symbol, tuple(launch.grid), tuple(launch.block), launch.shared_bytes, raw))

    arguments = reduce(count=3, ctas=7, width=100)
    with library.launch_hook(hook):
        library.call("ck_norm_reduce", arguments, CPU)
    assert told == [(b"ck_reduce_partials", (4, 3, 1), (32, 8, 1), 0, arguments)]


@pytest.mark.parametrize("error", [ValueError("of the hook"), KeyboardInterrupt()])
def test_a_hooks_exception_is_raised_by_the_call(error):
    """Once: the next call is as if nothing had been."""
    calls = []

    def hook(launch):
        calls.append(launch.symbol)
        if len(calls) == 1:
            raise error

    with library.launch_hook(hook):
        with pytest.raises(type(error)) as raised:
            library.call("ck_norm_reduce", reduce(), CPU)
        assert raised.value is error
        library.call("ck_norm_reduce", reduce(), CPU)
    assert len(calls) == 2 and not library.hook_installed()


def test_a_hooks_exception_on_a_cuda_device(monkeypatch):
    """Likewise, and it is not left for a later call."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: 0, raising=False)

    def hook(launch):
        raise ValueError("of the hook")

    try:
        with library.launch_hook(hook), pytest.raises(ValueError, match="of the hook"):
            library.call("ck_norm_reduce", reduce(), torch.device("cuda", 0))
    finally:
        library._failures.clear()


def test_nested_hooks():
    """The inner one alone is told; the outer one is back after it, also after an exception."""
    outer, inner = [], []
    with library.launch_hook(outer.append):
        with library.launch_hook(inner.append):
            library.call("ck_norm_reduce", reduce(), CPU)
        assert (len(outer), len(inner)) == (0, 1)
        with pytest.raises(RuntimeError, match="of the body"), library.launch_hook(inner.append):
            raise RuntimeError("of the body")
        assert library.hook_installed()
        library.call("ck_norm_reduce", reduce(), CPU)
        assert (len(outer), len(inner)) == (1, 1)
    assert not library.hook_installed()


def test_after_the_last_hook():
    """CPU tensors are refused, and the library itself asks CUDA again: an error where there is no device."""
    with library.launch_hook(lambda launch: None):
        pass
    if torch.cuda.is_available():
        pytest.skip("there is a device: the simulated arguments would reach it")
    with pytest.raises(RuntimeError, match="no launch hook"):
        library.call("ck_norm_reduce", reduce(), CPU)
    status = library.load().calls["ck_norm_reduce"](reduce(), None)
    assert status > 0, "CUDA's own errors are positive"
