"""The masked-LM loss: decoder GEMM, log-sum-exp, cross-entropy and both gradient GEMMs, chunk by chunk of rows.

For a row with logits l (after bias and softcap c * tanh(l / c)), lse = logsumexp(l), target t, n counted rows:

    loss = (1 - s) * (lse - l_t) + s * (lse - mean(l)) + z * lse^2
    dl   = (1 + 2 z lse) * softmax(l) - (1 - s) * onehot_t - s / V     (times 1 / n, and 1 - (l / c)^2 with softcap)

A chunk's logits are turned into softmax and then into dl in place; they never exist for all rows. Scaling by 1 / n is
applied to the narrow matrices (chunk x N) rather than to the wide one, except in 16 bit, where dl * grad_scale / n is
formed in fp32 and rounded once, so that small probabilities survive.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from cramkernels.reference.normalization import widen

# Wide chunks keep the GEMMs near their peak rate, narrow ones stay nearer to the cache. Measured on CPUs with 32 MB of
# last-level cache at V = 32768: the GEMMs lose a third below 256 rows, and gain little beyond 512.
CPU_CHUNK_BYTES = 64 << 20
# Within a chunk, the passes over logits take this much at a time, which a core's own cache holds.
CPU_TILE_BYTES = 4 << 20


class Options(NamedTuple):
    """Scalars of the loss."""

    ignore_index: int
    z_loss: float
    label_smoothing: float
    softcap: float | None
    logits_bytes: int


class Targets(NamedTuple):
    """Labels of M rows, made safe to gather with."""

    safe_M: torch.Tensor
    valid_M: torch.Tensor
    count: torch.Tensor  # rows that count, as a float scalar
    share_M: torch.Tensor  # 1 / count where valid, else 0


def mlm_loss_forward(hidden, weight, labels, bias, ignore_index, z_loss, label_smoothing, softcap, logits_bytes,
                     grad_scale, recompute: bool, want_hidden: bool, want_weight: bool, want_bias: bool):  # fmt: skip
    """hidden [M, N] -> (loss, z term, counted rows, hits, lse [M], dhidden, dweight, dbias).

    Gradients that are not wanted are empty; in ``recompute`` mode all are, and the backward makes them from lse.
    """
    options = Options(ignore_index, z_loss, label_smoothing, softcap, logits_bytes)
    targets = _targets(labels, ignore_index, _wide_dtype(hidden))
    wanted = (False, False, False) if recompute else (want_hidden, want_weight, want_bias)
    sums = torch.zeros(2, dtype=_wide_dtype(hidden), device=hidden.device)
    hits = torch.zeros((), dtype=torch.int64, device=hidden.device)
    lse = torch.zeros(hidden.shape[0], dtype=_wide_dtype(hidden), device=hidden.device)
    gradients = _Gradients(hidden, weight, bias, wanted)
    buffer = _buffer(hidden, weight, options)
    for rows in _chunks(hidden.shape[0], buffer.shape[0]):
        chunk = _product(hidden[rows], weight, buffer)
        for logits, part in _tiles(chunk, rows):
            capped = _finish_logits(logits, bias, options, keep=any(wanted))
            lse[part], tile_sums, tile_hits = _row_losses(logits, _part(targets, part), options)
            sums += tile_sums
            hits += tile_hits
            if any(wanted):
                _to_gradient(logits, lse[part], capped, _part(targets, part), options)
        if any(wanted):
            gradients.add(rows, chunk, _part(targets, rows), grad_scale)
    return (*_totals(sums, targets), targets.valid_M.sum(), hits, lse, *gradients.finished(grad_scale))


def mlm_loss_backward(hidden, weight, labels, bias, lse, ignore_index, z_loss, label_smoothing, softcap, logits_bytes,
                      grad_scale, want_hidden: bool, want_weight: bool, want_bias: bool):  # fmt: skip
    """The gradients of ``recompute`` mode, for an incoming gradient of one: (dhidden, dweight, dbias)."""
    options = Options(ignore_index, z_loss, label_smoothing, softcap, logits_bytes)
    targets = _targets(labels, ignore_index, _wide_dtype(hidden))
    gradients = _Gradients(hidden, weight, bias, (want_hidden, want_weight, want_bias))
    buffer = _buffer(hidden, weight, options)
    for rows in _chunks(hidden.shape[0], buffer.shape[0]):
        chunk = _product(hidden[rows], weight, buffer)
        for logits, part in _tiles(chunk, rows):
            capped = _finish_logits(logits, bias, options, keep=True)
            logits.sub_(lse[part].unsqueeze(1)).exp_()
            _to_gradient(logits, lse[part], capped, _part(targets, part), options)
        gradients.add(rows, chunk, _part(targets, rows), grad_scale)
    return gradients.finished(grad_scale)


class _Gradients:
    """Accumulates dhidden, dweight and dbias over chunks; sums over chunks are kept in fp32 (fp64 for fp64)."""

    def __init__(self, hidden, weight, bias, wanted: tuple[bool, bool, bool]):
        self.hidden, self.weight, self.bias = hidden, weight, bias
        wide = _wide_dtype(hidden)
        self.dhidden = torch.empty_like(hidden, dtype=wide) if wanted[0] else None
        self.dweight = torch.empty_like(weight, dtype=wide) if wanted[1] else None
        self.dbias = torch.zeros_like(bias, dtype=wide) if wanted[2] else None
        self.started = False

    def add(self, rows: slice, dlogits, targets: Targets, grad_scale) -> None:
        """Add one chunk; ``dlogits`` is not yet divided by the number of rows."""
        share = targets.share_M.unsqueeze(1)
        hidden_c = self.hidden[rows]
        if hidden_c.dtype in (torch.float16, torch.bfloat16):
            # _finish takes grad_scale out again
            scaled = dlogits * (share if grad_scale is None else share * grad_scale)
            dlogits, hidden_share = scaled.to(hidden_c.dtype), hidden_c
            if self.dhidden is not None:
                self.dhidden[rows] = dlogits @ self.weight.to(hidden_c.dtype)
        else:
            hidden_share = hidden_c * share
            if self.dhidden is not None:
                torch.mm(dlogits, self.weight.to(hidden_c.dtype), out=self.dhidden[rows])
                self.dhidden[rows] *= share
        if self.dweight is not None:
            self._add_weight(dlogits, hidden_share)
        if self.dbias is not None:
            self.dbias += scaled.sum(0) if hidden_share is hidden_c else share.squeeze(1) @ dlogits
        self.started = True

    def _add_weight(self, dlogits, hidden) -> None:
        product_dtype = dlogits.dtype
        if product_dtype != self.dweight.dtype:
            product = torch.mm(dlogits.t(), hidden)
            self.dweight = self.dweight.add_(product) if self.started else self.dweight.copy_(product)
        elif self.started:
            self.dweight.addmm_(dlogits.t(), hidden)
        else:  # the first chunk writes: no pass for zeros
            torch.mm(dlogits.t(), hidden, out=self.dweight)

    def finished(self, grad_scale) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(dhidden, dweight, dbias) in their parameters' dtypes; empty where not wanted."""
        if not self.started:  # no rows at all
            for gradient in (self.dhidden, self.dweight):
                if gradient is not None:
                    gradient.zero_()
        unscale = grad_scale is not None and self.hidden.dtype in (torch.float16, torch.bfloat16)
        results = []
        for gradient, like in (
            (self.dhidden, self.hidden),
            (self.dweight, self.weight),
            (self.dbias, self.bias),
        ):
            if gradient is None:
                results.append(torch.empty(0, device=self.hidden.device))
            else:
                # kept scaled for the caller, whose incoming gradient carries the same scale
                results.append(gradient if unscale else gradient.to(like.dtype))
        return tuple(results)


def _targets(labels, ignore_index: int, dtype) -> Targets:
    valid = labels != ignore_index
    count = valid.sum()
    return Targets(torch.where(valid, labels, 0), valid, count, valid.to(dtype) / count.clamp(min=1))


def _part(targets: Targets, rows: slice) -> Targets:
    return Targets(targets.safe_M[rows], targets.valid_M[rows], targets.count, targets.share_M[rows])


def _totals(sums, targets: Targets) -> tuple[torch.Tensor, torch.Tensor]:
    means = sums / targets.count.clamp(min=1)
    return means[0] + means[1], means[1].clone()


def _buffer(hidden, weight, options: Options) -> torch.Tensor:
    """The logits of one chunk, in fp32 (fp64 for fp64)."""
    budget = options.logits_bytes
    if hidden.device.type == "cpu":
        budget = min(budget, CPU_CHUNK_BYTES)
    dtype = _wide_dtype(hidden)
    rows = max(budget // (weight.shape[0] * dtype.itemsize), 1)
    chunks = max(-(-hidden.shape[0] // rows), 1)
    rows = -(-hidden.shape[0] // chunks)  # even chunks
    return torch.empty(max(rows, 1), weight.shape[0], dtype=dtype, device=hidden.device)


def _chunks(rows: int, size: int):
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def _tiles(chunk, rows: slice):
    """(logits, rows of all) of the pieces of a chunk that stay in cache from one pass to the next."""
    size = len(chunk)
    if chunk.device.type == "cpu":
        size = max(CPU_TILE_BYTES // (chunk.shape[1] * chunk.itemsize), 1)
    for part in _chunks(len(chunk), size):
        yield chunk[part], slice(rows.start + part.start, rows.start + part.stop)


def _product(hidden, weight, buffer):
    """Raw logits of a chunk, written into the buffer."""
    logits = buffer[: hidden.shape[0]]
    if hidden.dtype == buffer.dtype:
        return torch.mm(hidden, weight.to(hidden.dtype).t(), out=logits)
    return logits.copy_(torch.mm(hidden, weight.to(hidden.dtype).t()))


def _finish_logits(logits, bias, options: Options, keep: bool):
    """Add the bias and apply the softcap in place; a copy where the softcap's slope will need one."""
    if bias is not None:
        logits += bias.to(logits.dtype)
    if options.softcap is None:
        return None
    logits.div_(options.softcap).tanh_().mul_(options.softcap)
    return logits.clone() if keep else None


def _row_losses(logits, targets: Targets, options: Options):
    """Turn logits into their softmax in place; return lse, [loss sum, z sum] and the number of hits."""
    target = logits.gather(1, targets.safe_M.unsqueeze(1)).squeeze(1)
    highest = logits.amax(dim=1)
    mean = logits.mean(dim=1) if options.label_smoothing else None
    torch.softmax(logits, dim=1, out=logits)
    # softmax at the maximum is 1 / sum(exp(l - max)), at least 1 / V: its logarithm is well conditioned
    lse = highest - logits.amax(dim=1).log()
    loss = lse - target
    if mean is not None:
        loss = loss.lerp(lse - mean, options.label_smoothing)
    rows = torch.stack([loss, options.z_loss * lse.square()])
    sums = torch.where(targets.valid_M, rows, 0).sum(1)
    return lse, sums, ((target == highest) & targets.valid_M).sum()


def _to_gradient(probabilities, lse, capped, targets: Targets, options: Options) -> None:
    """Turn the softmax into the gradient of each row's own loss, in place."""
    if options.z_loss:
        probabilities.mul_((1 + 2 * options.z_loss * lse).unsqueeze(1))
    hit = torch.full_like(lse, options.label_smoothing - 1).unsqueeze(1)
    probabilities.scatter_add_(1, targets.safe_M.unsqueeze(1), hit)
    if options.label_smoothing:
        probabilities.sub_(options.label_smoothing / probabilities.shape[1])
    if capped is not None:
        probabilities.mul_(1 - capped.div_(options.softcap).square_())


def _wide_dtype(x) -> torch.dtype:
    return widen(x[:0]).dtype
