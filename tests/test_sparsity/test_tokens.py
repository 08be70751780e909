import pytest
import torch

from mmdyn.sparsity.tokens import masked_attention, split_tokens
from tests.test_sparsity.decisions import decision
from tests.torch_line import needs_half_on_cpu


def qkv(batch=2, heads=3, length=7, width=4, scale=1.0, dtype=torch.float):
    generator = torch.Generator().manual_seed(0)
    parts = torch.randn(3, batch, heads, length, width, generator=generator, dtype=dtype)
    return (scale * parts).requires_grad_()


KEEP = torch.tensor([[1.0, 1, 0, 1, 0, 0, 1], [0, 0, 0, 1, 1, 0, 0]])


def by_loop(parts, keep):
    """Attention of each token to the kept ones and itself, in a loop."""
    query, key, value = parts
    out = torch.empty_like(value)
    for image in range(keep.shape[0]):
        for token in range(keep.shape[1]):
            picked = keep[image] > 0
            picked[token] = True
            logits = key[image, :, picked] @ query[image, :, token].unsqueeze(-1)
            weights = (logits / query.shape[-1] ** 0.5).softmax(dim=1)
            out[image, :, token] = (weights * value[image, :, picked]).sum(dim=1)
    return out


@pytest.mark.parametrize('learns', [True, False])
@pytest.mark.parametrize('keep', [KEEP, torch.ones(2, 7), torch.zeros(2, 7)], ids=str)
def test_dropped_tokens_are_queries_but_no_keys(keep, learns):
    parts = qkv()
    out = masked_attention(*parts, keep.clone().requires_grad_(learns))
    expected = by_loop(parts, keep.clone())
    torch.testing.assert_close(out, expected)
    (grad,) = torch.autograd.grad(out.square().sum(), parts)
    (loop_grad,) = torch.autograd.grad(expected.square().sum(), parts)
    torch.testing.assert_close(grad, loop_grad)


def test_the_gradient_to_the_mask_says_what_each_key_brings():
    parts, keep = qkv(scale=0.5, dtype=torch.double), KEEP.double().requires_grad_()
    weights = torch.randn(2, 3, 7, 4, dtype=torch.double)
    (grad,) = torch.autograd.grad((masked_attention(*parts, keep) * weights).sum(), keep)
    query, key, value = parts.detach()
    exps = (query @ key.transpose(-2, -1) / 2).exp()
    itself = torch.eye(7, dtype=torch.bool)
    allowed = KEEP.double()[:, None, None].masked_fill(itself, 1.0)
    total = (exps * allowed).sum(-1, keepdim=True)
    out = exps * allowed / total @ value
    # A dropped key with a larger logit than all others counts like the largest of them.
    top = exps.masked_fill(allowed == 0, 0).amax(-1, keepdim=True)
    share = exps.minimum(top) / total
    brings = (share.unsqueeze(-1) * (value.unsqueeze(2) - out.unsqueeze(3))).masked_fill(
        itself[..., None], 0
    )
    expected = (brings * weights.unsqueeze(3)).sum(dim=(1, 2, 4))
    torch.testing.assert_close(grad, expected)
    assert (grad != 0).all()


def test_extreme_logits_stay_finite_and_exact():
    parts = qkv(scale=30.0)
    keep = KEEP.clone().requires_grad_()
    out = masked_attention(*parts, keep)
    torch.testing.assert_close(out, by_loop(parts, KEEP.clone()))
    grads = torch.autograd.grad(out.sum(), [parts, keep])
    assert all(grad.isfinite().all() for grad in grads)


@needs_half_on_cpu
def test_half_precision_does_not_overflow_before_it_is_scaled():
    query = torch.full((1, 1, 4, 64), 40.0, dtype=torch.float16)
    keep = torch.ones(1, 4).requires_grad_()
    assert masked_attention(query, query, query, keep).isfinite().all()


def test_attention_weights_can_be_dropped():
    parts = qkv()
    for keep in (KEEP, KEEP.clone().requires_grad_()):
        first, second = (masked_attention(*parts, keep, 0.5) for _ in range(2))
        assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ('mask', 'counts'),
    [(KEEP, [4, 2]), (KEEP[:1], [4]), (torch.tensor([[1.0, 0, 1], [0, 1, 1]]), [2, 2])],
    ids=['uneven', 'one', 'even'],
)
@pytest.mark.parametrize('prefix', [0, 1])
def test_gathered_tokens_are_the_kept_ones_in_order_and_find_their_places_again(
    mask, counts, prefix
):
    x = torch.randn(mask.shape[0], prefix + mask.shape[1], 5)
    tokens = split_tokens(x, decision(mask), 'gathered')
    assert tokens.active.shape[1] == prefix + max(counts)
    assert (tokens.keep is None) == (len(set(counts)) == 1)
    for image, count in enumerate(counts):
        kept = torch.cat([x[image, :prefix], x[image, prefix:][mask[image] > 0]])
        assert torch.equal(tokens.active[image, : prefix + count], kept)
        if tokens.keep is not None:
            assert tokens.keep[image].tolist() == [1] * (prefix + count) + [0] * (
                max(counts) - count
            )
    assert torch.equal(tokens.joined(), x)


def test_masked_execution_and_full_decisions_leave_the_tokens_where_they_are():
    x = torch.randn(2, 8, 5)
    masked = split_tokens(x, decision(KEEP), 'masked')
    assert masked.active is x and masked.joined() is x
    assert torch.equal(masked.keep, torch.cat([torch.ones(2, 1), KEEP], dim=1))
    valid = torch.ones(2, 7, dtype=torch.bool)
    valid[1, 5:] = False
    # At ratio 1 padding is not kept, but stays among the tokens, as in the dense model.
    full = decision(valid.float(), 1.0, valid)
    assert split_tokens(x, full, 'gathered').active is x
    assert split_tokens(x, full, 'gathered').keep is None
