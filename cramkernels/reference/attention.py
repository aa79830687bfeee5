"""Bidirectional attention over packed sequences, and rotary embedding.

Sequences are taken a few at a time, so few that their scores stay in cache, laid out as a batch [B, H, S, D] and
multiplied as batched matrices. On a CPU those of a batch have one length: it is a view of the packed tokens. Elsewhere
reading lengths would wait for the device: batches are padded, tokens gathered, and keys beyond a sequence's end get a
score of -inf.

    P = softmax(scale * Q K^T),  O = dropout(P) V
    dV = dropout(P)^T dO,  dP = dropout(dO V^T),  dS = P * (dP - rowsum(dP * P)),
    dQ = scale * dS K,  dK = scale * dS^T Q
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch

from cramkernels.packing import token_positions
from cramkernels.reference.normalization import widen
from cramkernels.reference.philox import attention_keep

# Scores held at a time: what a core's cache holds on a CPU, few launches elsewhere
CPU_SCORE_BYTES, SCORE_BYTES = 1 << 20, 256 << 20


class _Group(NamedTuple):
    """Some sequences, some heads: how their packed tokens map onto a batch [B, S].

    ``rows`` is a slice when the mapping is a view, else the packed row of each place, [B * S]; places beyond a
    sequence's end then have ``valid_BS`` false, read zeros and write to row T. ``starts_B``: where sequences begin.
    """

    sequences: int
    length: int
    heads: slice
    starts_B: torch.Tensor
    rows: slice | torch.Tensor
    valid_BS: torch.Tensor | None


def attention_forward(
    qkv, cu_seqlens, max_seqlen: int, cos, sin, key_mask, window, scale: float, dropout_p: float, seed
):
    """qkv [T, 3, H, D] -> (out [T, H, D], lse [H, T]); rows outside every sequence, or that see no key, give zeros."""
    tokens, _, heads, width = qkv.shape
    wide = _rotated(widen(qkv), cu_seqlens, cos, sin)
    # one row more than there are tokens: what is computed for places beyond a sequence's end goes there
    out = torch.zeros(tokens + 1, heads, width, dtype=wide.dtype, device=qkv.device)
    lse = torch.zeros(tokens + 1, heads, 1, dtype=wide.dtype, device=qkv.device)
    for group in _groups(cu_seqlens, tokens, max_seqlen, heads, wide):
        q, k, v = _to_heads(wide, group).unbind(0)
        scores, blind = _scores(q, k, group, key_mask, window, scale)
        highest = scores.amax(dim=-1, keepdim=True)
        probabilities = torch.softmax(scores, dim=-1, out=scores)
        # the highest probability is 1 / sum(exp(score - highest)), so this is the log-sum-exp without another pass
        _put(lse, _unless(blind, highest - probabilities.amax(dim=-1, keepdim=True).log()), group)
        probabilities = _unless(blind, probabilities)
        keep = _keep(group, dropout_p, seed, scores.dtype)
        _put(out, torch.bmm(probabilities if keep is None else probabilities.mul_(keep), v), group)
    return out[:tokens].to(qkv.dtype), lse[:tokens].squeeze(-1).t().contiguous()


def attention_backward(
    grad, qkv, out, lse, cu_seqlens, max_seqlen: int, cos, sin, key_mask, window, scale, dropout_p, seed
):
    """dqkv [T, 3, H, D]. P is recomputed."""
    tokens, _, heads, width = qkv.shape
    wide = _rotated(widen(qkv), cu_seqlens, cos, sin)
    grad = widen(grad).unsqueeze(1)
    dqkv = torch.zeros(tokens + 1, 3, heads, width, dtype=wide.dtype, device=qkv.device)
    for group in _groups(cu_seqlens, tokens, max_seqlen, heads, wide):
        q, k, v = _to_heads(wide, group).unbind(0)
        do = _to_heads(grad, group)[0]
        scores, blind = _scores(q, k, group, key_mask, window, scale)
        probabilities = _unless(blind, torch.softmax(scores, dim=-1, out=scores))
        keep = _keep(group, dropout_p, seed, scores.dtype)
        dp = torch.bmm(do, v.transpose(1, 2))
        if keep is not None:
            dp.mul_(keep)
        ds = torch._softmax_backward_data(dp, probabilities, -1, dp.dtype).mul_(scale)
        _put(dqkv[:, 0], torch.bmm(ds, k), group)
        _put(dqkv[:, 1], torch.bmm(ds.transpose(1, 2), q), group)
        dropped = probabilities if keep is None else probabilities.mul_(keep)
        _put(dqkv[:, 2], torch.bmm(dropped.transpose(1, 2), do), group)
    dqkv = dqkv[:tokens]
    if cos is not None:  # the transpose of a rotation is the rotation by the negative angle
        dqkv = _rotated(dqkv, cu_seqlens, cos, -sin)
    return dqkv.to(qkv.dtype)


def rotary_forward(qkv, cos, sin, cu_seqlens):
    """Rotate q and k of qkv [T, 3, H, D]; v and rows outside every sequence pass unchanged."""
    return _rotated(widen(qkv), cu_seqlens, cos, sin).to(qkv.dtype)


def rotary_backward(grad, cos, sin, cu_seqlens):
    """The rotation by the negative angle."""
    return _rotated(widen(grad), cu_seqlens, cos, -sin).to(grad.dtype)


def rotate(x, cos_T, sin_T, out):
    """Rotate-half: pairs (i, i + D/2) of x [T, K, H, D] by the angles of each token, cos_T and sin_T [T, D/2]."""
    cos, sin = (table[:, None, None].to(x.dtype) for table in (cos_T, sin_T))
    (first, second), (to_first, to_second) = x.chunk(2, dim=-1), out.chunk(2, dim=-1)
    torch.mul(first, cos, out=to_first).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=to_second).addcmul_(first, sin)


def _rotated(qkv, cu_seqlens, cos, sin):
    if cos is None:
        return qkv
    _, position_T, inside_T = token_positions(cu_seqlens, qkv.shape[0])
    rotated = torch.empty_like(qkv)
    rotate(qkv[:, :2], cos[position_T], sin[position_T], rotated[:, :2])
    rotated[:, 2] = qkv[:, 2]
    if _is_readable(inside_T) and inside_T.all():
        return rotated
    return torch.where(inside_T.view(-1, 1, 1, 1), rotated, qkv)


def _is_readable(x: torch.Tensor) -> bool:
    """Values can be looked at without waiting for a device."""
    return x.device.type == "cpu" and not isinstance(x, torch._subclasses.FakeTensor)


def _groups(cu_seqlens, tokens: int, max_seqlen: int, heads: int, wide) -> Iterator[_Group]:
    """All sequences and heads, a few at a time."""
    if tokens == 0 or cu_seqlens.shape[0] < 2 or max_seqlen == 0:
        return
    starts = cu_seqlens.to(torch.int64)
    readable = _is_readable(cu_seqlens)
    budget = (CPU_SCORE_BYTES if readable else SCORE_BYTES) // wide.element_size()
    for first, last, length in _runs(starts.tolist()) if readable else [(0, starts.shape[0] - 1, max_seqlen)]:
        matrices = max(1, budget // (length * length))
        heads_at_once = min(heads, matrices)
        sequences_at_once = max(1, matrices // heads_at_once)
        for begin in range(first, last, sequences_at_once):
            some = starts[begin : min(begin + sequences_at_once, last) + 1]
            rows, valid_BS = _view(some) if readable else _gathered(some, length, tokens)
            for head in range(0, heads, heads_at_once):
                heads_now = slice(head, min(head + heads_at_once, heads))
                yield _Group(some.shape[0] - 1, length, heads_now, some[:-1], rows, valid_BS)


def _runs(starts: list[int]) -> Iterator[tuple[int, int, int]]:
    """(first, last, length) of neighbouring sequences of one length; those without a token are left out."""
    first = 0
    for length, run in itertools.groupby(end - start for start, end in itertools.pairwise(starts)):
        last = first + len(list(run))
        if length > 0:
            yield first, last, length
        first = last


def _view(starts: torch.Tensor) -> tuple[slice, None]:
    """Sequences of one length, from ``starts`` [B + 1]: all their packed rows."""
    return slice(int(starts[0]), int(starts[-1])), None


def _gathered(starts: torch.Tensor, length: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Padded to ``length``: the packed row of each place, and which of them are inside a sequence."""
    offsets = torch.arange(length, device=starts.device)
    valid_BS = offsets < starts.diff().unsqueeze(1)
    return torch.where(valid_BS, starts[:-1].unsqueeze(1) + offsets, tokens).flatten(), valid_BS


def _to_heads(x_TKHD, group: _Group):
    """The group's part of [T, K, H, D] as [K, B * H, S, D], contiguous."""
    part = x_TKHD[:, :, group.heads]
    if isinstance(group.rows, slice):
        part = part[group.rows]
    else:
        part = part[group.rows.clamp(max=x_TKHD.shape[0] - 1)]
    _, parts, heads, width = part.shape
    padded = part.reshape(group.sequences, group.length, parts, heads, width)
    if group.valid_BS is not None:  # what lies beyond a sequence's end is another's: not even its NaN may get in
        padded = torch.where(group.valid_BS.view(group.sequences, group.length, 1, 1, 1), padded, 0)
    return padded.permute(2, 0, 3, 1, 4).reshape(parts, group.sequences * heads, group.length, width)


def _put(packed, x_GSD, group: _Group) -> None:
    """Write [B * H, S, D] to the group's rows and heads of ``packed`` [T + 1, H, D]."""
    width = x_GSD.shape[-1]
    places = x_GSD.view(group.sequences, -1, group.length, width).transpose(1, 2).flatten(0, 1)
    packed[group.rows, group.heads] = places


def _scores(q, k, group: _Group, key_mask, window, scale: float):
    """Scaled scores, -inf where a query must not see, and the queries that see nothing [B * H, S, 1], or None."""
    shape = (q.shape[0], group.length, group.length)
    scores = torch.empty(shape, dtype=q.dtype, device=q.device)
    torch.baddbmm(scores, q, k.transpose(1, 2), beta=0, alpha=scale, out=scores)  # beta = 0 ignores what is there
    blocked = _blocked(group, key_mask, window, q.device)
    if blocked is None:
        return scores, None
    by_head = scores.view(group.sequences, -1, *shape[1:]).masked_fill_(blocked, float("-inf"))
    if key_mask is None:  # a query sees itself
        return scores, None
    blind = blocked.all(dim=-1, keepdim=True)
    by_head.masked_fill_(blind, 0)  # no NaN on the way to its zeros
    return scores, blind.expand(by_head.shape[0], by_head.shape[1], -1, -1).reshape(shape[0], -1, 1)


def _unless(blind, x_GSN):
    """``x`` with zeros for the queries that see nothing."""
    return x_GSN if blind is None else x_GSN.masked_fill(blind, 0)


def _blocked(group: _Group, key_mask, window, device):
    """What a query must not see, [B or 1, 1, S or 1, S]: padding or masked keys, keys out of the window.

    Places beyond a sequence's end are queries too, that see all: what they compute is thrown away.
    """
    position = torch.arange(group.length, device=device)
    blocked = None
    if window is not None and window < group.length - 1:
        blocked = ((position.unsqueeze(1) - position).abs() > window).view(1, 1, group.length, group.length)
    hidden = []
    if group.valid_BS is not None:
        hidden.append(~group.valid_BS)
    if key_mask is not None:
        rows = group.rows if isinstance(group.rows, slice) else group.rows.clamp(max=key_mask.shape[0] - 1)
        hidden.append(~key_mask[rows].view(group.sequences, group.length))
    for keys in hidden:
        keys = keys.view(-1, 1, 1, group.length)
        blocked = keys if blocked is None else blocked | keys
    if group.valid_BS is not None:
        blocked = blocked & group.valid_BS.view(-1, 1, group.length, 1)
    return blocked


def _keep(group: _Group, dropout_p: float, seed, dtype):
    """Dropout factors [B * H, S, S]: 0 or 1 / (1 - p), or None."""
    if dropout_p == 0.0:
        return None
    first, heads = group.heads.start, group.heads.stop - group.heads.start
    kept = attention_keep(seed, group.starts_B, heads, group.length, dropout_p, first)
    return kept.flatten(0, 1).to(dtype).mul_(1.0 / (1.0 - dropout_p))
