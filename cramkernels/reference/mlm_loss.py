"""The masked-LM loss: decoder GEMM, log-sum-exp, cross-entropy and both gradient GEMMs, chunk by chunk of rows.

For a row with logits l (after bias and softcap c * tanh(l / c)), lse = logsumexp(l), target t, n counted rows:

    loss = (1 - s) * (lse - l_t) + s * (lse - mean(l)) + z * lse^2
    dl   = (1 + 2 z lse) * softmax(l) - (1 - s) * onehot_t - s / V     (times 1 / n, and 1 - (l / c)^2 with softcap)

A chunk's logits are turned into softmax and then into dl in place; they never exist for all rows. Scaling by 1 / n is
applied to the narrow matrices (chunk x N) rather than to the wide one, except in 16 bit, where dl * grad_scale / n is
formed in fp32 and rounded once, so that small probabilities survive.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch

from cramkernels.reference.normalization import widen

# Wide chunks keep the GEMMs near their peak rate, narrow ones stay nearer to the cache. Measured on CPUs with 32 MB of
# last-level cache at V = 32768: the GEMMs lose a third below 256 rows, and gain little beyond 512.
CPU_CHUNK_BYTES = 64 << 20
# Within a chunk, the passes over logits take this much at a time, which a core's own cache holds.
CPU_TILE_BYTES = 4 << 20
PRODUCT_ROWS = 2048  # of dweight at a time, where a 16-bit product is made before it is added
HALF = (torch.float16, torch.bfloat16)


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
    share_M: torch.Tensor  # 1 / count where valid (times grad_scale in 16 bit), else 0


def mlm_loss_forward(hidden, weight, labels, bias, ignore_index, z_loss, label_smoothing, softcap, logits_bytes,
                     grad_scale, recompute: bool, want_hidden: bool, want_weight: bool, want_bias: bool):  # fmt: skip
    """hidden [M, N] -> (loss, z term, counted rows, hits, lse [M], dhidden, dweight, dbias).

    Gradients that are not wanted are empty; in ``recompute`` mode all are, and the backward makes them from lse.
    """
    options = Options(ignore_index, z_loss, label_smoothing, softcap, logits_bytes)
    targets = _targets(labels, ignore_index, _wide_dtype(hidden), hidden.dtype in HALF, grad_scale)
    wanted = (False, False, False) if recompute else (want_hidden, want_weight, want_bias)
    sums = torch.zeros(2, dtype=_wide_dtype(hidden), device=hidden.device)
    hits = torch.zeros((), dtype=torch.int64, device=hidden.device)
    lse = torch.zeros(hidden.shape[0], dtype=_wide_dtype(hidden), device=hidden.device)
    logits_of = _Logits(hidden, weight, bias, options, any(wanted))
    gradients = _Gradients(logits_of, wanted, grad_scale)
    for rows, chunk in logits_of.chunks():
        for part, logits, capped, put_back in logits_of.tiles(rows, chunk):
            lse[part], tile_sums, tile_hits = _row_losses(logits, _part(targets, part), options)
            sums += tile_sums
            hits += tile_hits
            if any(wanted):
                _to_gradient(logits, lse[part], capped, _part(targets, part), options)
                gradients.add_tile(logits, _part(targets, part))
                put_back()
        if any(wanted):
            gradients.add(rows, chunk, _part(targets, rows))
    return (*_totals(sums, targets), targets.valid_M.sum(), hits, lse, *gradients.finished(grad_scale))


def mlm_loss_backward(hidden, weight, labels, bias, lse, ignore_index, z_loss, label_smoothing, softcap, logits_bytes,
                      grad_scale, want_hidden: bool, want_weight: bool, want_bias: bool):  # fmt: skip
    """The gradients of ``recompute`` mode, for an incoming gradient of one: (dhidden, dweight, dbias)."""
    options = Options(ignore_index, z_loss, label_smoothing, softcap, logits_bytes)
    targets = _targets(labels, ignore_index, _wide_dtype(hidden), hidden.dtype in HALF, grad_scale)
    logits_of = _Logits(hidden, weight, bias, options, True)
    gradients = _Gradients(logits_of, (want_hidden, want_weight, want_bias), grad_scale)
    for rows, chunk in logits_of.chunks():
        for part, logits, capped, put_back in logits_of.tiles(rows, chunk):
            logits.sub_(lse[part].unsqueeze(1)).exp_()
            _to_gradient(logits, lse[part], capped, _part(targets, part), options)
            gradients.add_tile(logits, _part(targets, part))
            put_back()
        gradients.add(rows, chunk, _part(targets, rows))
    return gradients.finished(grad_scale)


class _Logits:
    """Logits chunk by chunk in one buffer of hidden's dtype, and within a chunk tile by tile in fp32 or wider.

    Buffer, tile and what the softcap keeps of a tile stay within the budget together.
    """

    def __init__(self, hidden, weight, bias, options: Options, with_gradients: bool):
        self.hidden, self.like, self.bias, self.options = hidden, weight, bias, options
        self.weight = weight.to(hidden.dtype)
        self.keep = with_gradients and options.softcap is not None
        total, vocabulary = hidden.shape[0], weight.shape[0]
        budget, wide = options.logits_bytes, _wide_dtype(hidden)
        tile = budget // 4
        if hidden.device.type == "cpu":
            budget, tile = min(budget, CPU_CHUNK_BYTES), min(tile, CPU_TILE_BYTES)
        self.tile_rows = max(tile // (vocabulary * wide.itemsize), 1)
        copies = (hidden.dtype in HALF) + self.keep
        room = budget - copies * self.tile_rows * vocabulary * wide.itemsize
        rows = max(room // (vocabulary * hidden.dtype.itemsize), 1)
        self.rows = max(-(-total // max(-(-total // rows), 1)), 1)  # even chunks
        self.buffer = hidden.new_empty(self.rows, vocabulary)
        self.scratch = None
        if hidden.dtype in HALF:
            self.scratch = hidden.new_empty(min(self.tile_rows, self.rows), vocabulary, dtype=wide)
        self.copy = None
        if self.keep:
            self.copy = hidden.new_empty(min(self.tile_rows, self.rows), vocabulary, dtype=wide)

    def chunks(self):
        """(rows, their raw logits)."""
        for rows in _chunks(self.hidden.shape[0], self.rows):
            hidden = self.hidden[rows]
            yield rows, torch.mm(hidden, self.weight.t(), out=self.buffer[: hidden.shape[0]])

    def tiles(self, rows: slice, chunk):
        """(rows, their finished logits, a copy where the softcap's slope needs one, what puts the tile back)."""
        for part in _chunks(chunk.shape[0], self.tile_rows):
            raw = chunk[part]
            logits = raw if self.scratch is None else self.scratch[: raw.shape[0]].copy_(raw)
            if self.bias is not None:
                logits += self.bias.to(logits.dtype)
            if self.options.softcap is not None:
                logits.div_(self.options.softcap).tanh_().mul_(self.options.softcap)
            put_back = _nothing if self.scratch is None else partial(raw.copy_, logits)
            yield slice(rows.start + part.start, rows.start + part.stop), logits, self._kept(logits), put_back

    def _kept(self, logits):
        return self.copy[: logits.shape[0]].copy_(logits) if self.keep else None


def _nothing() -> None:
    pass


class _Gradients:
    """Accumulates dhidden, dweight and dbias over chunks; sums over chunks are kept in fp32 (fp64 for fp64)."""

    def __init__(self, logits: _Logits, wanted: tuple[bool, bool, bool], grad_scale):
        self.hidden, self.weight, self.bias, self.product = logits.hidden, logits.like, logits.bias, logits.weight
        wide = _wide_dtype(self.hidden)
        self.scaled = grad_scale is not None and self.hidden.dtype in HALF
        several = logits.rows < self.hidden.shape[0]
        weight_dtype = wide if several or self.scaled else self.weight.dtype
        self.dhidden = torch.empty_like(self.hidden, dtype=wide if self.scaled else None) if wanted[0] else None
        self.dweight = torch.empty_like(self.weight, dtype=weight_dtype) if wanted[1] else None
        self.dbias = torch.zeros_like(self.bias, dtype=wide) if wanted[2] else None
        self.started = False

    def add_tile(self, dlogits, targets: Targets) -> None:
        """A tile, before it is put back: what is summed in fp32, and in 16 bit the division by the number of rows."""
        if self.hidden.dtype in HALF:
            dlogits.mul_(targets.share_M.unsqueeze(1))
            if self.dbias is not None:
                self.dbias += dlogits.sum(0)
        elif self.dbias is not None:
            self.dbias += targets.share_M @ dlogits

    def add(self, rows: slice, dlogits, targets: Targets) -> None:
        """Add one chunk; ``dlogits`` is not yet divided by the number of rows, except in 16 bit."""
        hidden = self.hidden[rows]
        if self.dhidden is not None:
            _multiply(dlogits, self.product, self.dhidden[rows])
        if hidden.dtype not in HALF:
            hidden = hidden * targets.share_M.unsqueeze(1)
            if self.dhidden is not None:
                self.dhidden[rows] *= targets.share_M.unsqueeze(1)
        if self.dweight is not None:
            for part in _chunks(self.dweight.shape[0], PRODUCT_ROWS if hidden.dtype in HALF else len(self.dweight)):
                _multiply(dlogits[:, part].t(), hidden, self.dweight[part], add=self.started)
        self.started = True

    def finished(self, grad_scale) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(dhidden, dweight, dbias) in their parameters' dtypes; empty where not wanted.

        With a scale they stay wide for the caller, whose incoming gradient carries the same scale.
        """
        if not self.started:  # no rows at all
            for gradient in (self.dhidden, self.dweight):
                if gradient is not None:
                    gradient.zero_()
        parameters = ((self.dhidden, self.hidden), (self.dweight, self.weight), (self.dbias, self.bias))
        return tuple(
            torch.empty(0, device=self.hidden.device) if gradient is None
            else gradient if self.scaled else gradient.to(like.dtype)
            for gradient, like in parameters
        )  # fmt: skip


def _multiply(a, b, out, add: bool = False) -> None:
    """out = a @ b, or out += a @ b; of 16-bit matrices the product is rounded before it is added."""
    if out.dtype != a.dtype:
        product = torch.mm(a, b)
        out.add_(product) if add else out.copy_(product)
    elif add:
        out.addmm_(a, b)
    else:  # the first chunk writes: no pass for zeros
        torch.mm(a, b, out=out)


def _targets(labels, ignore_index: int, dtype, half: bool, grad_scale) -> Targets:
    valid = labels != ignore_index
    count = valid.sum()
    share = valid.to(dtype) / count.clamp(min=1)
    if half and grad_scale is not None:
        share = share * grad_scale  # whoever gets the gradients takes it out again
    return Targets(torch.where(valid, labels, 0), valid, count, share)


def _part(targets: Targets, rows: slice) -> Targets:
    return Targets(targets.safe_M[rows], targets.valid_M[rows], targets.count, targets.share_M[rows])


def _totals(sums, targets: Targets) -> tuple[torch.Tensor, torch.Tensor]:
    means = sums / targets.count.clamp(min=1)
    return means[0] + means[1], means[1].clone()


def _chunks(rows: int, size: int):
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def _row_losses(logits, targets: Targets, options: Options):
    """Turn logits into their softmax in place; return lse, [loss sum, z sum] and the number of hits."""
    target = logits.gather(1, targets.safe_M.unsqueeze(1)).squeeze(1)
    highest = logits.amax(dim=1)
    mean = logits.mean(dim=1) if options.label_smoothing else None
    torch.softmax(logits, dim=1, out=logits)
    # softmax at the maximum is 1 / sum(exp(l - max)), at least 1 / V: its logarithm is well conditioned
    log_sum = -logits.amax(dim=1).log()
    lse = highest + log_sum
    loss = (highest - target) + log_sum  # lse - target would carry the rounding of a large lse
    if mean is not None:
        loss = loss.lerp((highest - mean) + log_sum, options.label_smoothing)
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
        probabilities.mul_(capped.div_(options.softcap).square_().neg_().add_(1))


def _wide_dtype(x) -> torch.dtype:
    return widen(x[:0]).dtype
