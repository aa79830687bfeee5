"""Bidirectional attention over packed sequences, and rotary embedding.

Sequences are laid out as one padded batch [B, H, S, D] and multiplied as batched matrices. When every sequence has the
full length, that is a view of the packed tokens; else tokens are gathered, and keys beyond a sequence's end get a score
of -inf. Index arithmetic stays on the device: nothing is read back.

    P = softmax(scale * Q K^T),  O = dropout(P) V
    dV = dropout(P)^T dO,  dP = dropout(dO V^T),  dS = P * (dP - rowsum(dP * P)),
    dQ = scale * dS K,  dK = scale * dS^T Q
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from cramkernels.packing import token_positions
from cramkernels.reference.normalization import widen
from cramkernels.reference.philox import attention_keep


class _Layout(NamedTuple):
    """How packed tokens map onto the padded batch. ``gather_BS`` is None when the mapping is a view."""

    sequences: int
    length: int
    gather_BS: torch.Tensor | None
    valid_BS: torch.Tensor | None
    scatter_T: torch.Tensor | None
    inside_T: torch.Tensor | None


def attention_forward(qkv, cu_seqlens, max_seqlen: int, cos, sin, window, scale: float, dropout_p: float, seed):
    """qkv [T, 3, H, D] -> (out [T, H, D], lse [H, T]); rows outside every sequence give zeros."""
    tokens, _, heads, _ = qkv.shape
    if tokens == 0 or cu_seqlens.shape[0] < 2 or max_seqlen == 0:
        return torch.zeros_like(qkv[:, 0]), qkv.new_zeros(heads, tokens, dtype=_wide_dtype(qkv))
    layout = _layout(cu_seqlens, tokens, max_seqlen)
    q, k, v = _rotated_heads(widen(qkv), layout, cu_seqlens, cos, sin)
    scores = _scores(q, k, layout, window, scale)
    lse = torch.logsumexp(scores, dim=-1)
    probabilities = torch.softmax(scores, dim=-1, out=scores)
    out = torch.bmm(_dropped(probabilities, layout, cu_seqlens, heads, dropout_p, seed), v)
    packed = _to_packed(out.view(layout.sequences, heads, layout.length, -1), layout)
    packed_lse = _to_packed(lse.view(layout.sequences, heads, layout.length, 1), layout)
    return packed.to(qkv.dtype), packed_lse.squeeze(-1).t().contiguous()


def attention_backward(grad, qkv, out, lse, cu_seqlens, max_seqlen: int, cos, sin, window, scale, dropout_p, seed):
    """dqkv [T, 3, H, D]. P is recomputed."""
    tokens, _, heads, head_dim = qkv.shape
    if tokens == 0 or cu_seqlens.shape[0] < 2 or max_seqlen == 0:
        return torch.zeros_like(qkv)
    layout = _layout(cu_seqlens, tokens, max_seqlen)
    q, k, v = _rotated_heads(widen(qkv), layout, cu_seqlens, cos, sin)
    do = _to_heads(widen(grad).unsqueeze(1), layout)[0]
    if layout.valid_BS is not None:  # padding queries carry other tokens' gradients: they must not reach keys
        padding = ~layout.valid_BS.repeat_interleave(heads, dim=0).unsqueeze(-1)
        do.masked_fill_(padding, 0.0)
    scores = _scores(q, k, layout, window, scale)
    probabilities = torch.softmax(scores, dim=-1, out=scores)

    dqkv = torch.empty(3, *q.shape, dtype=q.dtype, device=q.device)
    keep = _keep(layout, cu_seqlens, heads, dropout_p, seed, q.dtype)
    torch.bmm((probabilities if keep is None else probabilities * keep).transpose(1, 2), do, out=dqkv[2])
    dp = torch.bmm(do, v.transpose(1, 2))
    if keep is not None:
        dp.mul_(keep)
    ds = torch._softmax_backward_data(dp, probabilities, -1, dp.dtype).mul_(scale)
    torch.bmm(ds, k, out=dqkv[0])
    torch.bmm(ds.transpose(1, 2), q, out=dqkv[1])
    shape = (3, layout.sequences, heads, layout.length, head_dim)
    packed = torch.empty(tokens, 3, heads, head_dim, dtype=q.dtype, device=q.device)
    for part in range(3):
        packed[:, part] = _to_packed(dqkv.view(shape)[part], layout)
    if cos is not None:  # the transpose of a rotation is the rotation by the negative angle
        position_T = token_positions(cu_seqlens, tokens)[1]
        packed[:, :2] = rotate(packed[:, :2], cos[position_T], -sin[position_T])
    return packed.to(qkv.dtype)


def rotary_forward(qkv, cos, sin, cu_seqlens):
    """Rotate q and k of qkv [T, 3, H, D]; v and rows outside every sequence pass unchanged."""
    return _rotary(qkv, cos, sin, cu_seqlens)


def rotary_backward(grad, cos, sin, cu_seqlens):
    """The rotation by the negative angle."""
    return _rotary(grad, cos, -sin, cu_seqlens)


def rotate(x, cos_T, sin_T):
    """Rotate-half: pairs (i, i + D/2) of x [T, .., H, D] by the angles of each token, cos_T and sin_T [T, D/2]."""
    shape = (x.shape[0], *[1] * (x.dim() - 2), cos_T.shape[-1])
    cos, sin = cos_T.view(shape).to(x.dtype), sin_T.view(shape).to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def _rotary(qkv, cos, sin, cu_seqlens):
    _, position_T, inside_T = token_positions(cu_seqlens, qkv.shape[0])
    rotated = rotate(widen(qkv[:, :2]), cos[position_T], sin[position_T]).to(qkv.dtype)
    inside = inside_T.view(-1, 1, 1, 1)
    return torch.cat([torch.where(inside, rotated, qkv[:, :2]), qkv[:, 2:]], dim=1)


def _layout(cu_seqlens, tokens: int, max_seqlen: int) -> _Layout:
    sequences = cu_seqlens.shape[0] - 1
    if _is_dense(cu_seqlens, tokens, max_seqlen):
        return _Layout(sequences, max_seqlen, None, None, None, None)
    starts = cu_seqlens[:-1].to(torch.int64).unsqueeze(1)
    offsets = torch.arange(max_seqlen, device=cu_seqlens.device).unsqueeze(0)
    valid_BS = offsets < (cu_seqlens[1:].to(torch.int64).unsqueeze(1) - starts)
    gather_BS = (starts + offsets).clamp_(max=tokens - 1)
    sequence_T, position_T, inside_T = token_positions(cu_seqlens, tokens)
    return _Layout(sequences, max_seqlen, gather_BS, valid_BS, sequence_T * max_seqlen + position_T, inside_T)


def _is_dense(cu_seqlens, tokens: int, max_seqlen: int) -> bool:
    """Every sequence has the full length. Values are looked at on the CPU alone: reading a GPU would wait for it."""
    if cu_seqlens.device.type != "cpu" or tokens != (cu_seqlens.shape[0] - 1) * max_seqlen:
        return False
    return torch.equal(cu_seqlens, torch.arange(0, tokens + 1, max_seqlen, dtype=cu_seqlens.dtype))


def _to_heads(x_TKHD, layout: _Layout):
    """[T, K, H, D] -> [K, B * H, S, D], contiguous."""
    _, parts, heads, width = x_TKHD.shape
    if layout.gather_BS is None:
        padded = x_TKHD.reshape(layout.sequences, layout.length, parts, heads, width)
    else:
        padded = x_TKHD[layout.gather_BS]
    return padded.permute(2, 0, 3, 1, 4).reshape(parts, layout.sequences * heads, layout.length, width)


def _to_packed(x_BHSD, layout: _Layout):
    """[B, H, S, D] -> [T, H, D], zeros outside the sequences."""
    x_BSHD = x_BHSD.transpose(1, 2)
    if layout.gather_BS is None:
        return x_BSHD.reshape(-1, *x_BSHD.shape[2:])
    packed = x_BSHD.flatten(0, 1)[layout.scatter_T]
    return torch.where(layout.inside_T.view(-1, 1, 1), packed, 0)


def _rotated_heads(qkv, layout: _Layout, cu_seqlens, cos, sin):
    if cos is not None:
        qkv = _rotary(qkv, cos, sin, cu_seqlens)
    return _to_heads(qkv, layout).unbind(0)


def _scores(q, k, layout: _Layout, window, scale: float):
    scores = torch.bmm(q, k.transpose(1, 2)).mul_(scale)
    blocked = _blocked(layout, window, q.device)
    if blocked is not None:
        by_sequence = scores.view(layout.sequences, -1, layout.length, layout.length)
        by_sequence.masked_fill_(blocked, float("-inf"))
    return scores


def _blocked(layout: _Layout, window, device):
    """What a query must not see, [B or 1, 1, S, S]: padding keys, keys out of the window. A padding query sees all."""
    position = torch.arange(layout.length, device=device)
    blocked = None
    if window is not None and window < layout.length - 1:
        blocked = ((position.unsqueeze(1) - position).abs() > window).view(1, 1, layout.length, layout.length)
    if layout.valid_BS is not None:
        valid = layout.valid_BS
        padding = ~valid.view(-1, 1, 1, layout.length)
        blocked = padding if blocked is None else blocked | padding
        blocked = blocked & valid.view(-1, 1, layout.length, 1)
    return blocked


def _keep(layout: _Layout, cu_seqlens, heads: int, dropout_p: float, seed, dtype):
    """Dropout factors [B * H, S, S]: 0 or 1 / (1 - p), or None."""
    if dropout_p == 0.0:
        return None
    kept = attention_keep(seed, cu_seqlens[:-1], heads, layout.length, dropout_p)
    return kept.flatten(0, 1).to(dtype).mul_(1.0 / (1.0 - dropout_p))


def _dropped(probabilities, layout, cu_seqlens, heads, dropout_p, seed):
    keep = _keep(layout, cu_seqlens, heads, dropout_p, seed, probabilities.dtype)
    return probabilities if keep is None else probabilities * keep


def _wide_dtype(x):
    return torch.float64 if x.dtype == torch.float64 else torch.float32
