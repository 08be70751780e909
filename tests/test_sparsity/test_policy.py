import pytest
import torch
import torch.nn.functional as F

from mmdyn.sparsity import (
    FixedPolicy,
    GumbelPolicy,
    RandomPolicy,
    StaticPolicy,
    ThresholdPolicy,
    TopKPolicy,
)
from mmdyn.sparsity.policy import Site, straight_through

HW = (5, 8)
POLICIES = [TopKPolicy(), GumbelPolicy(), ThresholdPolicy(0.5), RandomPolicy(0), StaticPolicy(0)]


def log_probs(batch=2, locations=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, locations, 2, generator=generator)
    return logits.log_softmax(-1).requires_grad_()


def site(**kwargs):
    return Site(**{'index': 0, 'keep_ratio': 0.7, 'hw': HW, **kwargs})


def half_valid(batch=2):
    mask = torch.ones(batch, *HW, dtype=torch.bool)
    mask[-1, 3:] = False
    mask[-1, :, 5:] = False
    return mask.flatten(1)


@pytest.mark.parametrize('policy', POLICIES, ids=lambda p: type(p).__name__)
def test_every_policy_gives_hard_masks_with_a_gradient_and_spares_padding(policy):
    scores, valid = log_probs(), half_valid()
    images = torch.randn(2, 3, 40, 64)
    decision = policy(scores, site(valid_mask=valid, images=images))
    assert set(decision.keep_mask.unique().tolist()) <= {0.0, 1.0}
    assert not (decision.keep_mask.bool() & ~valid).any()
    assert (decision.keep_mask.sum(1) >= 1).all()
    torch.testing.assert_close(decision.scores, scores[..., 0])
    weights = torch.randn_like(decision.keep_mask)
    (decision.keep_mask * weights).sum().backward()
    assert scores.grad.isfinite().all() and (scores.grad[..., 0] != 0).any()


@pytest.mark.parametrize('policy', POLICIES, ids=lambda p: type(p).__name__)
def test_at_ratio_one_everything_real_is_kept_with_a_gradient(policy):
    scores, valid = log_probs(), half_valid()
    decision = policy(scores, site(keep_ratio=1.0, valid_mask=valid))
    assert torch.equal(decision.keep_mask.bool(), valid)
    assert decision.keep_mask.requires_grad


@pytest.mark.parametrize('candidates', [None, torch.arange(40).remainder(2).float().expand(3, -1)])
@pytest.mark.parametrize('ratio', [0.01, 0.25, 0.3, 0.5])
def test_top_k_keeps_the_best_and_exactly_as_many_as_asked(ratio, candidates):
    scores = log_probs(3)
    decision = TopKPolicy()(scores, site(keep_ratio=ratio, candidates=candidates))
    count = max(1, int(40 * ratio))
    assert decision.keep_mask.sum(1).tolist() == [count] * 3
    eligible = scores[..., 0]
    if candidates is not None:
        eligible = eligible.masked_fill(candidates == 0, float('-inf'))
    best = eligible.argsort(dim=1, descending=True)[:, :count]
    assert (decision.keep_mask.gather(1, best) == 1).all()


def test_gumbel_draws_as_torch_does():
    scores = log_probs(locations=40)
    torch.manual_seed(0)
    expected = F.gumbel_softmax(scores, tau=0.7, hard=True)[..., 0]
    torch.manual_seed(0)
    assert torch.equal(GumbelPolicy(0.7)(scores, site()).keep_mask, expected)


def test_ranks_that_are_seeded_alike_draw_different_noise(monkeypatch):
    torch.manual_seed(0)
    alone = GumbelPolicy()(log_probs(), site()).keep_mask
    monkeypatch.setattr(torch.distributed, 'is_initialized', lambda: True)
    drawn = []
    for rank in (0, 1):
        monkeypatch.setattr(torch.distributed, 'get_rank', lambda rank=rank: rank)
        torch.manual_seed(0)
        first = GumbelPolicy()(log_probs(), site()).keep_mask
        state = torch.get_rng_state()
        second, third = (GumbelPolicy()(log_probs(), site()).keep_mask for _ in range(2))
        torch.set_rng_state(state)  # as on resume
        assert torch.equal(GumbelPolicy()(log_probs(), site()).keep_mask, second)
        assert not torch.equal(first, second) and not torch.equal(second, third)
        drawn.append(torch.stack([first, second, third]))
    assert torch.equal(drawn[0][0], alone)
    # Independent: they agree as often as two draws of one rank.
    agreeing = (drawn[0] == drawn[1]).float().mean()
    assert 0.3 < agreeing < 0.8


def test_threshold_keeps_a_different_number_per_image():
    scores = torch.tensor([[0.9, 0.8, 0.2, 0.1], [0.3, 0.2, 0.6, 0.1], [0.1, 0.3, 0.2, 0.1]])
    pairs = torch.stack([scores, 1 - scores], -1).log()
    mask = ThresholdPolicy(0.5)(pairs, site(hw=(2, 2))).keep_mask
    # The last image has no score above the threshold and keeps its best location.
    assert mask.tolist() == [[1, 1, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0]]


def test_random_draws_per_image_and_predictor_and_repeats_with_its_seed():
    images = torch.randn(2, 3, 40, 64)
    scores, state = log_probs(), torch.get_rng_state()

    def masks(seed=0, index=0, batch=images):
        return RandomPolicy(seed)(scores, site(index=index, images=batch)).keep_mask

    first = masks()
    assert torch.equal(state, torch.get_rng_state())
    assert first.sum(1).tolist() == [28, 28]
    assert not torch.equal(first[0], first[1])
    assert torch.equal(first, masks())
    assert not torch.equal(first, masks(seed=1))
    assert not torch.equal(first, masks(index=1))
    assert not torch.equal(first[0], masks(batch=torch.randn(2, 3, 40, 64))[0])
    # In another order, and with two equal images in a batch.
    assert torch.equal(first.flip(0), masks(batch=images.flip(0)))
    twins = masks(batch=images[:1].expand(2, -1, -1, -1))
    assert torch.equal(twins[0], first[0]) and not torch.equal(twins[0], twins[1])


def test_static_keeps_the_same_in_every_image_and_less_of_it_at_a_lower_ratio():
    images = torch.randn(2, 3, 40, 64)

    def masks(seed=0, **kwargs):
        return StaticPolicy(seed)(log_probs(seed=seed), site(images=images, **kwargs)).keep_mask

    first = masks()
    assert first.sum(1).tolist() == [28, 28] and torch.equal(first[0], first[1])
    assert torch.equal(masks(keep_ratio=0.5) * first, masks(keep_ratio=0.5))
    assert not torch.equal(first, masks(seed=1)) and not torch.equal(first, masks(index=1))


@pytest.mark.parametrize(
    'policy',
    [policy for policy in POLICIES if not isinstance(policy, GumbelPolicy)],
    ids=lambda policy: type(policy).__name__,
)
@pytest.mark.parametrize('ratio', [0.01, 0.3, 0.7, 0.999])
def test_equal_scores_on_real_locations_keep_the_same_whatever_the_padding(policy, ratio):
    valid, padded = half_valid()[1:], log_probs(1, seed=1)
    alone = padded[valid].unsqueeze(0)
    kept = policy(padded, site(keep_ratio=ratio, valid_mask=valid)).keep_mask
    expected = policy(alone, site(keep_ratio=ratio, hw=(3, 5))).keep_mask
    assert torch.equal(kept[valid].unsqueeze(0), expected)
    assert kept[~valid].sum() == 0
    if not isinstance(policy, ThresholdPolicy):
        assert kept.sum() == max(1, int(15 * ratio))


def test_random_tells_images_by_what_is_no_padding():
    images, real = torch.randn(2, 3, 40, 64), torch.zeros(2, 40, 64, dtype=torch.bool)
    real[:, :30, :50] = True

    def kept(fill):
        batch = images.masked_fill(~real.unsqueeze(1), fill)
        told = site(images=batch, real=real.flatten(1))
        return RandomPolicy(0)(log_probs(), told).keep_mask

    assert torch.equal(kept(0.0), kept(7.0)) and not torch.equal(*kept(0.0))
    alone = RandomPolicy(0)(log_probs(), site(images=images[..., :30, :50])).keep_mask
    assert torch.equal(kept(0.0), alone)


def test_fixed_replays_and_lets_the_gradient_through():
    given = RandomPolicy(5)(log_probs(), site())
    scores = log_probs(seed=1)
    replayed = FixedPolicy([given])(scores, site(keep_ratio=0.2))
    assert torch.equal(replayed.keep_mask, given.keep_mask)
    assert replayed.keep_ratio == given.keep_ratio
    replayed.keep_mask.sum().backward()
    assert scores.grad is not None


@pytest.mark.parametrize(
    ('asked', 'message'),
    [(dict(index=1), 'holds 1 decisions'), (dict(hw=(8, 5)), 'same image sizes')],
)
def test_fixed_refuses_what_it_has_no_decision_for(asked, message):
    given = TopKPolicy()(log_probs(), site())
    with pytest.raises(ValueError, match=message):
        FixedPolicy([given])(log_probs(), site(**asked))


@pytest.mark.parametrize(
    ('policy', 'value'),
    [(GumbelPolicy, 0), (GumbelPolicy, -1.0), (ThresholdPolicy, -0.1), (ThresholdPolicy, 1.0)],
)
def test_settings_out_of_range_are_refused(policy, value):
    with pytest.raises(ValueError, match=f'got {value}'):
        policy(value)


def test_straight_through_is_exact():
    soft = torch.rand(1000, requires_grad=True)
    hard = soft.detach() > 0.5
    out = straight_through(hard, soft)
    assert torch.equal(out, hard.float())
    out.backward(torch.arange(1000.0))
    assert torch.equal(soft.grad, torch.arange(1000.0))


@pytest.mark.parametrize('policy', POLICIES, ids=lambda policy: type(policy).__name__)
def test_what_padding_is_told_moves_no_score(policy):
    scores, valid = log_probs(), half_valid()
    images = torch.randn(2, 3, 40, 64)
    padded = site(valid_mask=valid, images=images)
    decision = policy(scores, padded)
    replayed = FixedPolicy([decision])(scores, padded)
    for mask in (decision.keep_mask, replayed.keep_mask):
        (mask * ~valid * torch.randn_like(mask)).sum().backward()
    assert scores.grad.abs().max() == 0


def test_top_k_gradients_do_not_move_what_all_scores_of_an_image_share():
    odds = torch.randn(2, 12, requires_grad=True)
    both = torch.stack([odds, torch.zeros_like(odds)], dim=-1).log_softmax(dim=-1)
    mask = TopKPolicy()(both, site(keep_ratio=0.5)).keep_mask
    (mask * torch.randn(2, 12)).sum().backward()
    assert odds.grad.abs().max() > 0.01
    torch.testing.assert_close(odds.grad.sum(dim=1), torch.zeros(2), atol=1e-6, rtol=0)


SHRINKING = [*POLICIES, FixedPolicy([TopKPolicy()(log_probs(), site(keep_ratio=0.9))])]


@pytest.mark.parametrize('policy', SHRINKING, ids=lambda policy: type(policy).__name__)
def test_what_is_no_candidate_stays_dropped_and_the_decision_before_gets_a_gradient(policy):
    torch.manual_seed(0)
    scores, valid = log_probs(), half_valid()
    images = torch.randn(2, 3, 40, 64)
    earlier = RandomPolicy(7)(log_probs(), site(keep_ratio=0.8, valid_mask=valid)).keep_mask
    candidates = earlier.detach().requires_grad_()
    decision = policy(scores, site(valid_mask=valid, images=images, candidates=candidates))
    mask = decision.keep_mask.detach()
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert (mask <= candidates).all() and (mask.sum(1) >= 1).all()
    weights = torch.randn_like(mask)
    (decision.keep_mask * weights).sum().backward()
    kept, dropped = mask > 0, candidates == 0
    torch.testing.assert_close(candidates.grad[kept], weights[kept])
    assert (scores.grad[dropped] == 0).all() and (scores.grad[kept] != 0).any()


@pytest.mark.parametrize('policy', [TopKPolicy(), RandomPolicy(0)], ids=['top-k', 'random'])
def test_counts_are_shares_of_all_real_locations_not_of_the_candidates(policy):
    valid = half_valid()
    candidates = torch.zeros(2, 40)
    candidates[0, 10:35] = 1
    candidates[1, :3] = 1
    asked = site(keep_ratio=0.5, valid_mask=valid, candidates=candidates)
    mask = policy(log_probs(), asked).keep_mask
    # 20 of the first image's 25 candidates; the second has fewer than that, 7.
    assert mask.sum(1).tolist() == [int(40 * 0.5), 3]
    assert (mask <= candidates).all()


def test_threshold_keeps_the_best_candidate_if_none_is_above_it():
    pairs = torch.tensor([[0.4, 0.9, 0.3, 0.2]])
    pairs = torch.stack([pairs, 1 - pairs], -1).log()
    candidates = torch.tensor([[0.0, 0, 1, 1]])
    mask = ThresholdPolicy(0.5)(pairs, site(hw=(2, 2), candidates=candidates)).keep_mask
    assert mask.tolist() == [[0, 0, 1, 0]]


@pytest.mark.parametrize('policy', POLICIES, ids=lambda policy: type(policy).__name__)
def test_no_candidates_leave_nothing_and_no_nan(policy):
    scores, candidates = log_probs(), torch.zeros(2, 40, requires_grad=True)
    mask = policy(scores, site(candidates=candidates)).keep_mask
    mask.sum().backward()
    assert mask.sum() == 0 and scores.grad.isfinite().all() and candidates.grad.isfinite().all()
