"""Attention over packed sequences, and rotary position embedding."""

from __future__ import annotations

import torch
from torch import Tensor

from cramkernels.checks import check_dropout, check_integers, check_tensor
from cramkernels.dispatch import implementation
from cramkernels.operator import autocast_cast, make_operator


def attention(
    qkv_T3HD: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    rope: tuple[Tensor, Tensor] | None = None,
    window: int | None = None,
    key_mask: Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    seed: int | Tensor | None = None,
    deterministic: bool = True,
) -> Tensor:
    """Bidirectional attention; tokens see their own sequence only.

    Args:
        qkv_T3HD: queries, keys and values [T, 3, H, D] of T packed tokens; fp32, fp16, bf16 or fp64. Under autocast it
            is cast to the autocast dtype.
        cu_seqlens: int32 [B + 1], ascending, cumulative sequence lengths within [0, T]. Empty sequences are legal.
        max_seqlen: the longest sequence's length, or more, as a Python int.
        rope: (cos, sin), fp32 [S >= max_seqlen, D / 2]; queries and keys are rotated (rotate-half), positions restart
            in each sequence (Su et al. 2021).
        window: keeps |i - j| <= window.
        key_mask: bool [T], true for tokens that may be attended to: the padding mask of a padded batch, flattened. A
            query that sees no key gives zeros.
        scale: factor on the scores, 1 / sqrt(D) by default.
        dropout_p, seed: dropout on the probabilities; the mask depends on (seed, head, query row, key row).
        deterministic: the same bits twice. Every backend always is: there is no faster way that is not.

    Returns:
        out [T, H, D] in the dtype of qkv; zeros for tokens outside every sequence.

    Raises:
        ValueError: a wrong shape, dtype, device or value.
    """
    return attention_with_lse(
        qkv_T3HD,
        cu_seqlens,
        max_seqlen,
        rope=rope,
        window=window,
        key_mask=key_mask,
        scale=scale,
        dropout_p=dropout_p,
        seed=seed,
    )[0]


def attention_with_lse(
    qkv_T3HD: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    rope: tuple[Tensor, Tensor] | None = None,
    window: int | None = None,
    key_mask: Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    seed: int | Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As :func:`attention`, with the log-sum-exp of the scores lse_HT (fp32, not differentiable), for tests."""
    qkv_T3HD = _check(qkv_T3HD, cu_seqlens, max_seqlen)
    cos, sin = _check_rope(rope, qkv_T3HD, max_seqlen)
    if window is not None and (not isinstance(window, int) or window < 0):
        raise ValueError(f"window: got {window!r}, want an int >= 0 or None")
    _check_key_mask(key_mask, qkv_T3HD)
    seed = check_dropout(dropout_p, seed, qkv_T3HD.device)
    scale = qkv_T3HD.shape[-1] ** -0.5 if scale is None else float(scale)
    return _attention(
        autocast_cast(qkv_T3HD), cu_seqlens, max_seqlen, cos, sin, key_mask, window, scale, dropout_p, seed
    )


def rotary(qkv_T3HD: Tensor, cos: Tensor, sin: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Rotate queries and keys (rotate-half, positions restarting in each sequence); values pass unchanged.

    Args:
        qkv_T3HD: [T, 3, H, D].
        cos, sin: fp32 [S, D / 2], S at least the longest sequence.
        cu_seqlens: int32 [B + 1].

    Raises:
        ValueError: a wrong shape, dtype or device.
    """
    qkv_T3HD = _check(qkv_T3HD, cu_seqlens, None)
    _check_rope((cos, sin), qkv_T3HD, _longest(cu_seqlens))
    return _rotary(qkv_T3HD, cos, sin, cu_seqlens)


def _check(qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int | None) -> Tensor:
    check_tensor("qkv_T3HD", qkv, dims=4)
    if qkv.shape[1] != 3 or qkv.shape[3] % 2:
        raise ValueError(f"qkv_T3HD: got shape {tuple(qkv.shape)}, want [T, 3, H, D] with even D")
    if qkv.stride(-1) != 1 and qkv.numel():
        raise ValueError(f"qkv_T3HD: got strides {qkv.stride()}, want the last dimension contiguous")
    check_integers("cu_seqlens", cu_seqlens, qkv, (torch.int32,))
    if cu_seqlens.shape[0] < 1:
        raise ValueError("cu_seqlens: got no elements, want [B + 1]")
    if max_seqlen is not None and (not isinstance(max_seqlen, int | torch.SymInt) or max_seqlen < 0):
        raise ValueError(f"max_seqlen: got {max_seqlen!r}, want a Python int >= 0")
    if _is_readable(cu_seqlens):
        _check_values(cu_seqlens, qkv.shape[0], max_seqlen)
    return qkv


def _is_readable(x: Tensor) -> bool:
    """On the CPU values cost nothing to look at."""
    fake = isinstance(x, torch._subclasses.FakeTensor)
    return x.device.type == "cpu" and not fake and not torch.compiler.is_compiling()


def _longest(cu_seqlens: Tensor) -> int:
    """The longest sequence where that can be read, else 0."""
    return int(cu_seqlens.diff().max()) if _is_readable(cu_seqlens) and cu_seqlens.shape[0] > 1 else 0


def _check_values(cu_seqlens: Tensor, tokens: int, max_seqlen: int | None) -> None:
    lengths = cu_seqlens.diff()
    if int(cu_seqlens[0]) < 0 or int(cu_seqlens[-1]) > tokens or (lengths.numel() and int(lengths.min()) < 0):
        raise ValueError(f"cu_seqlens: want ascending values within [0, T = {tokens}]")
    if max_seqlen is not None and lengths.numel() and int(lengths.max()) > max_seqlen:
        raise ValueError(f"max_seqlen: got {max_seqlen}, but a sequence has {int(lengths.max())} tokens")


def _check_rope(rope, qkv: Tensor, max_seqlen: int) -> tuple[Tensor | None, Tensor | None]:
    if rope is None:
        return None, None
    cos, sin = rope
    for name, table in (("cos", cos), ("sin", sin)):
        check_tensor(name, table, dims=2, like=qkv)
        if table.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"{name}: got dtype {table.dtype}, want float32")
        if table.shape[1] != qkv.shape[3] // 2 or table.shape[0] < max_seqlen:
            raise ValueError(f"{name}: got shape {tuple(table.shape)}, want [>= {max_seqlen}, {qkv.shape[3] // 2}]")
    return cos, sin


def _check_key_mask(key_mask: Tensor | None, qkv: Tensor) -> None:
    if key_mask is None:
        return
    check_integers("key_mask", key_mask, qkv, (torch.bool,))
    if key_mask.shape[0] != qkv.shape[0]:
        raise ValueError(f"key_mask: got {key_mask.shape[0]} elements, want {qkv.shape[0]}, one a token")


def _attention_forward(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    cos: Tensor | None,
    sin: Tensor | None,
    key_mask: Tensor | None,
    window: int | None,
    scale: float,
    dropout_p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    forward = implementation("attention", "forward", qkv)
    return forward(qkv, cu_seqlens, max_seqlen, cos, sin, key_mask, window, scale, dropout_p, seed)


def _attention_forward_fake(qkv, cu_seqlens, max_seqlen, cos, sin, key_mask, window, scale, dropout_p, seed):
    tokens, _, heads, head_dim = qkv.shape
    lse_dtype = torch.float64 if qkv.dtype == torch.float64 else torch.float32
    return qkv.new_empty(tokens, heads, head_dim), qkv.new_empty(heads, tokens, dtype=lse_dtype)


def _attention_backward(
    grad: Tensor,
    qkv: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    cos: Tensor | None,
    sin: Tensor | None,
    key_mask: Tensor | None,
    window: int | None,
    scale: float,
    dropout_p: float,
    seed: Tensor | None,
) -> Tensor:
    backward = implementation("attention", "backward", qkv)
    return backward(grad, qkv, out, lse, cu_seqlens, max_seqlen, cos, sin, key_mask, window, scale, dropout_p, seed)


def _attention_backward_fake(grad, qkv, out, lse, cu_seqlens, *rest):
    return torch.empty_like(qkv, memory_format=torch.contiguous_format)


def _attention_save(ctx, inputs, outputs):
    qkv, cu_seqlens, ctx.max_seqlen, cos, sin, key_mask, ctx.window, ctx.scale, ctx.dropout_p, seed = inputs
    out, lse = outputs
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(qkv, out, lse, cu_seqlens, cos, sin, key_mask, seed)


def _attention_gradients(ctx, call_backward, grad, _grad_lse):
    if grad is None:
        return (None,) * 10
    qkv, out, lse, cu_seqlens, cos, sin, key_mask, seed = ctx.saved_tensors
    dqkv = call_backward(
        grad, qkv, out, lse, cu_seqlens, ctx.max_seqlen, cos, sin, key_mask, ctx.window, ctx.scale, ctx.dropout_p, seed
    )
    return dqkv, *(None,) * 9


_attention = make_operator(
    "attention",
    forward=_attention_forward,
    forward_fake=_attention_forward_fake,
    backward=_attention_backward,
    backward_fake=_attention_backward_fake,
    save=_attention_save,
    gradients=_attention_gradients,
)


def _rotary_forward(qkv: Tensor, cos: Tensor, sin: Tensor, cu_seqlens: Tensor) -> Tensor:
    return implementation("rotary", "forward", qkv)(qkv, cos, sin, cu_seqlens)


def _rotary_backward(grad: Tensor, cos: Tensor, sin: Tensor, cu_seqlens: Tensor) -> Tensor:
    return implementation("rotary", "backward", grad)(grad, cos, sin, cu_seqlens)


def _rotary_fake(x, cos, sin, cu_seqlens):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _rotary_save(ctx, inputs, output):
    ctx.save_for_backward(*inputs[1:])


def _rotary_gradients(ctx, call_backward, grad):
    return (None if grad is None else call_backward(grad, *ctx.saved_tensors)), None, None, None


_rotary = make_operator(
    "rotary",
    forward=_rotary_forward,
    forward_fake=_rotary_fake,
    backward=_rotary_backward,
    backward_fake=_rotary_fake,
    save=_rotary_save,
    gradients=_rotary_gradients,
)
