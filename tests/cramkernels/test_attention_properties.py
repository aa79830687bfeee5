"""What attention over packed sequences must satisfy whatever the values."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from cramkernels import attention, attention_with_lse, pack_padded
from tests.cramkernels import oracle
from tests.cramkernels.cases import cumulative, rope_tables
from tests.cramkernels.strategies import bounded, close, lengths, packed, random, seeds, with_gradient


def forward_and_gradient(qkv, cu_seqlens, longest, grad, **options):
    qkv = qkv.detach().clone().requires_grad_()
    out = attention(qkv, cu_seqlens, longest, **options)
    return out.detach(), torch.autograd.grad(out, qkv, grad)[0]


@bounded
@given(lengths=lengths, seed=seeds, shuffle=st.randoms(use_true_random=False), windowed=st.booleans())
def test_permuting_sequences_permutes_outputs_and_gradients(lengths, seed, shuffle, windowed):
    qkv, cu_seqlens, longest = packed(lengths, seed)
    options = dict(rope=rope_tables(longest + 1, 8, torch.Generator().manual_seed(1)), window=2 if windowed else None)
    grad = random(len(qkv), 2, 8, seed=seed + 1)
    order = shuffle.sample(range(len(lengths)), len(lengths))
    tokens = torch.cat([torch.arange(cu_seqlens[b], cu_seqlens[b + 1]) for b in order])
    out, dqkv = forward_and_gradient(qkv, cu_seqlens, longest, grad, **options)
    permuted = cumulative([lengths[b] for b in order])
    permuted_out, permuted_dqkv = forward_and_gradient(qkv[tokens], permuted, longest, grad[tokens], **options)
    close(permuted_out, out[tokens])
    close(permuted_dqkv, dqkv[tokens])


@bounded
@given(lengths=lengths, seed=seeds)
def test_packed_equals_padded(lengths, seed):
    """The padded batch goes through torch's attention with a key mask."""
    longest = max(max(lengths), 1)
    padded = random(len(lengths), longest, 3, 2, 8, seed=seed)
    mask_BS = torch.arange(longest) < torch.tensor(lengths)[:, None]
    batch = pack_padded(padded, mask_BS)
    q, k, v = padded.permute(2, 0, 3, 1, 4)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_BS[:, None, None, :]).transpose(1, 2)
    close(attention(batch.ids_T, batch.cu_seqlens, batch.max_seqlen), expected.flatten(0, 1)[batch.indices_T])


@bounded
@given(lengths=lengths, seed=seeds)
def test_packed_equals_padded_with_a_key_mask(lengths, seed):
    """The padded batch, flattened, as sequences of one length whose padding is masked."""
    longest = max(max(lengths), 1)
    padded = random(len(lengths), longest, 3, 2, 8, seed=seed)
    mask_BS = torch.arange(longest) < torch.tensor(lengths)[:, None]
    batch = pack_padded(padded, mask_BS)
    rope = rope_tables(longest, 8, torch.Generator().manual_seed(1))
    grad = random(len(lengths) * longest, 2, 8, seed=seed + 1) * mask_BS.view(-1, 1, 1)
    whole = cumulative([longest] * len(lengths))
    masked = forward_and_gradient(padded.flatten(0, 1), whole, longest, grad, rope=rope, key_mask=mask_BS.flatten())
    expected = forward_and_gradient(batch.ids_T, batch.cu_seqlens, batch.max_seqlen, grad[batch.indices_T], rope=rope)
    for got, want in zip(masked, expected, strict=True):
        close(got[batch.indices_T], want)
    assert not masked[1].view_as(padded)[~mask_BS].any()


@bounded
@given(lengths=lengths, seed=seeds, beyond=st.integers(0, 5))
def test_a_window_as_long_as_the_sequences_is_full_attention(lengths, seed, beyond):
    qkv, cu_seqlens, longest = packed(lengths, seed)
    full = with_gradient(lambda x: attention(x, cu_seqlens, longest), qkv)
    windowed = with_gradient(lambda x: attention(x, cu_seqlens, longest, window=max(longest - 1, 0) + beyond), qkv)
    close(windowed[0], full[0])
    close(windowed[1], full[1])


@bounded
@given(lengths=lengths, seed=seeds)
def test_a_window_of_zero_sees_itself_alone(lengths, seed):
    qkv, cu_seqlens, longest = packed(lengths, seed)
    close(attention(qkv, cu_seqlens, longest, window=0), qkv[:, 2])


@bounded
@given(lengths=lengths, seed=seeds, where=st.integers(0, 5), count=st.integers(1, 3))
def test_empty_sequences_change_nothing(lengths, seed, where, count):
    qkv, cu_seqlens, longest = packed(lengths, seed)
    where = min(where, len(lengths))
    more = cumulative([*lengths[:where], *[0] * count, *lengths[where:]])
    before = with_gradient(lambda x: attention(x, cu_seqlens, longest), qkv)
    after = with_gradient(lambda x: attention(x, more, longest), qkv)
    close(after[0], before[0])
    close(after[1], before[1])


@bounded
@given(lengths=lengths, seed=seeds, more=st.integers(1, 20))
def test_max_seqlen_may_be_larger(lengths, seed, more):
    qkv, cu_seqlens, longest = packed(lengths, seed)
    before = with_gradient(lambda x: attention(x, cu_seqlens, longest), qkv)
    after = with_gradient(lambda x: attention(x, cu_seqlens, longest + more), qkv)
    close(after[0], before[0])
    close(after[1], before[1])


@bounded
@given(lengths=lengths, seed=seeds, window=st.sampled_from([None, 1]))
def test_reversing_each_sequence_reverses_its_output(lengths, seed, window):
    """Attention is bidirectional."""
    qkv, cu_seqlens, longest = packed(lengths, seed)
    tokens = torch.cat([torch.arange(cu_seqlens[b], cu_seqlens[b + 1]).flip(0) for b in range(len(lengths))])
    out = attention(qkv, cu_seqlens, longest, window=window)
    close(attention(qkv[tokens], cu_seqlens, longest, window=window), out[tokens])


@bounded
@given(lengths=lengths, seed=seeds)
def test_a_shift_of_all_keys_changes_nothing(lengths, seed):
    """It adds one number to all scores of a query."""
    qkv, cu_seqlens, longest = packed(lengths, seed)
    shifted = qkv.clone()
    shifted[:, 1] += random(2, 8, seed=seed + 1)
    close(attention(shifted, cu_seqlens, longest), attention(qkv, cu_seqlens, longest))


@bounded
@given(seed=seeds, dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
def test_one_token_returns_its_value_exactly(seed, dtype):
    qkv, cu_seqlens, _ = packed([1, 1, 1], seed, dtype=dtype)
    out, dqkv = with_gradient(lambda x: attention(x, cu_seqlens, 1), qkv)
    assert torch.equal(out, qkv[:, 2])
    assert torch.equal(dqkv[:, :2], torch.zeros_like(dqkv[:, :2]))
    assert torch.equal(dqkv[:, 2], random(*out.shape, seed=77, dtype=dtype))


@bounded
@given(lengths=lengths, seed=seeds, size=st.sampled_from([1e2, 1e4, 1e8]))
def test_extreme_scores(lengths, seed, size):
    """Scores of up to 1e16: the softmax becomes a choice, and nothing overflows."""
    qkv, cu_seqlens, longest = packed(lengths, seed)
    qkv[:, :2] *= size
    arguments = dict(cu_seqlens=cu_seqlens, max_seqlen=longest)
    close(attention(qkv, **arguments), oracle.attention(qkv, **arguments))
    out, dqkv = with_gradient(lambda x: attention(x, **arguments), qkv.float())
    assert out.isfinite().all() and dqkv.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_extreme_scores_in_16_bit(dtype):
    """Scores beyond fp16's largest number: they are kept in fp32."""
    qkv, cu_seqlens, longest = packed([7, 5], 3, dtype=dtype)
    qkv[:, :2] *= 200
    out, dqkv = with_gradient(lambda x: attention(x, cu_seqlens, longest, scale=8.0), qkv)
    assert out.isfinite().all() and dqkv.isfinite().all()
    expected = oracle.attention(qkv.double(), cu_seqlens, longest, scale=8.0)
    close(out.double(), expected, tolerance=4 * torch.finfo(dtype).eps)


@bounded
@given(lengths=lengths, seed=seeds, window=st.sampled_from([None, 2]))
def test_lse_is_the_log_sum_exp_of_the_scores(lengths, seed, window):
    qkv, cu_seqlens, longest = packed(lengths, seed)
    _, lse_HT = attention_with_lse(qkv, cu_seqlens, longest, window=window, scale=0.4)
    assert lse_HT.shape == (2, len(qkv)) and not lse_HT.requires_grad
    bounds = cu_seqlens.tolist()
    for begin, end in zip(bounds, bounds[1:], strict=False):
        q, k, _ = qkv[begin:end].permute(1, 2, 0, 3)
        scores = 0.4 * q @ k.transpose(1, 2)
        distance = (torch.arange(end - begin)[:, None] - torch.arange(end - begin)).abs()
        far = distance > (longest if window is None else window)
        close(lse_HT[:, begin:end], scores.masked_fill(far, -torch.inf).logsumexp(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_lse_is_fp32(dtype):
    qkv, cu_seqlens, longest = packed([4, 2], 5, dtype=dtype)
    assert attention_with_lse(qkv, cu_seqlens, longest)[1].dtype == torch.float32
