"""The meaning of every operation in torch's own functions, with autograd's gradients and nothing of ours.

Signatures are those of the package. In fp64 this is the oracle; in the dtype of a case it is "plain PyTorch", whose
error the error rule allows twice of.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.cramkernels import integer_philox


def attention(
    qkv_T3HD,
    cu_seqlens,
    max_seqlen=None,
    *,
    rope=None,
    window=None,
    key_mask=None,
    scale=None,
    dropout_p=0.0,
    seed=None,
):
    """One call of torch's attention per sequence; with dropout, the same in three lines."""
    if rope is not None:
        qkv_T3HD = rotary(qkv_T3HD, *rope, cu_seqlens)
    bounds = cu_seqlens.tolist()
    pieces = [qkv_T3HD[: bounds[0], 0] * 0]  # zeros, still part of the graph
    for begin, end in zip(bounds, bounds[1:], strict=False):
        q_HSD, k_HSD, v_HSD = qkv_T3HD[begin:end].permute(1, 2, 0, 3)
        seen_SS = None if window is None else _within(end - begin, window)
        if begin == end:
            continue
        if key_mask is not None:
            seen_SS = key_mask[begin:end] & (
                torch.ones(end - begin, 1, dtype=torch.bool) if seen_SS is None else seen_SS
            )
            blind_S = ~seen_SS.any(dim=1)
            seen_SS = seen_SS | blind_S[:, None]
        if dropout_p:
            factors = dropout_factors(seed, q_HSD.shape[0], begin, end, dropout_p).to(q_HSD.dtype)
            out_HSD = (probabilities(q_HSD, k_HSD, seen_SS, scale) * factors) @ v_HSD
        else:
            out_HSD = F.scaled_dot_product_attention(q_HSD, k_HSD, v_HSD, attn_mask=seen_SS, scale=scale)
        if key_mask is not None:  # what sees nothing is nothing
            out_HSD = out_HSD.masked_fill(blind_S[:, None], 0)
        pieces.append(out_HSD.transpose(0, 1))
    pieces.append(qkv_T3HD[bounds[-1] :, 0] * 0)
    return torch.cat(pieces)


def probabilities(q_HSD, k_HSD, seen_SS, scale):
    scores = q_HSD @ k_HSD.transpose(1, 2) * (q_HSD.shape[-1] ** -0.5 if scale is None else scale)
    if seen_SS is not None:
        scores = scores.masked_fill(~seen_SS, float("-inf"))
    return torch.softmax(scores, dim=-1)


def dropout_factors(seed, heads: int, begin: int, end: int, dropout_p: float):
    """0 or 1 / (1 - p) for each (head, query, key) of one sequence."""
    rows = range(begin, end)
    keep = [[integer_philox.kept(seed, head, row, rows, 0, dropout_p) for row in rows] for head in range(heads)]
    return torch.tensor(keep, dtype=torch.float64) / (1 - dropout_p)


def _within(length: int, window: int):
    position = torch.arange(length)
    return (position[:, None] - position[None, :]).abs() <= window


def rotary(qkv_T3HD, cos, sin, cu_seqlens):
    """x * cos + rotate_half(x) * sin on queries and keys, sequence by sequence."""
    bounds = cu_seqlens.tolist()
    pieces = [qkv_T3HD[: bounds[0]]]
    for begin, end in zip(bounds, bounds[1:], strict=False):
        qk, v = qkv_T3HD[begin:end].split([2, 1], dim=1)
        first, second = qk.chunk(2, dim=-1)
        cos_SD, sin_SD = (torch.cat([t, t], -1)[: end - begin, None, None].to(qk.dtype) for t in (cos, sin))
        pieces.append(torch.cat([qk * cos_SD + torch.cat([-second, first], -1) * sin_SD, v], dim=1))
    pieces.append(qkv_T3HD[bounds[-1] :])
    return torch.cat(pieces)


def layer_norm(x, weight, bias=None, *, eps):
    bias = None if bias is None else bias.to(x.dtype)
    return F.layer_norm(x, x.shape[-1:], weight.to(x.dtype), bias, eps)


def add_layer_norm(x, residual, weight, bias=None, *, eps, dropout_p=0.0, seed=None):
    if dropout_p:
        rows, columns = x.numel() // x.shape[-1], range(x.shape[-1])
        keep = [integer_philox.kept(seed, 0, row, columns, 1, dropout_p) for row in range(rows)]
        x = x * torch.tensor(keep, dtype=x.dtype).view(x.shape) / (1 - dropout_p)
    new_residual = x + residual
    return layer_norm(new_residual, weight, bias, eps=eps).to(x.dtype), new_residual


def layer_norm_gelu(x, weight, bias=None, *, eps, approximate="none"):
    return F.gelu(layer_norm(x, weight, bias, eps=eps), approximate=approximate)


def gelu_layer_norm(x, weight, bias=None, *, linear_bias=None, eps, approximate="none"):
    x = x if linear_bias is None else x + linear_bias.to(x.dtype)
    return layer_norm(F.gelu(x, approximate=approximate), weight, bias, eps=eps)


def geglu(x_2F, *, linear_bias=None, approximate="none", gate="second"):
    x_2F = x_2F if linear_bias is None else x_2F + linear_bias.to(x_2F.dtype)
    linear, gated = x_2F.chunk(2, dim=-1) if gate == "second" else reversed(x_2F.chunk(2, dim=-1))
    return linear * F.gelu(gated, approximate=approximate)


def mlm_loss(
    hidden_TN, weight_VN, labels_M, *, positions_M=None, bias=None, ignore_index=-100, z_loss=0.0, label_smoothing=0.0,
    softcap=None, logits_bytes=None, grad_scale=None, mode=None,
):  # fmt: skip
    """Gather, F.linear, F.cross_entropy in fp32 or wider: what a training loop without this package writes."""
    hidden = hidden_TN if positions_M is None else hidden_TN[positions_M]
    logits = F.linear(hidden, weight_VN.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype))
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    valid = labels_M != ignore_index
    count = valid.sum().clamp(min=1)
    total = F.cross_entropy(
        logits, labels_M, ignore_index=ignore_index, label_smoothing=label_smoothing, reduction="sum"
    )
    z_term = z_loss * (torch.logsumexp(logits, dim=1).square() * valid).sum() / count
    correct = ((logits.argmax(dim=1) == labels_M) & valid).sum()
    return total / count + z_term, z_term.detach(), valid.sum(), correct
