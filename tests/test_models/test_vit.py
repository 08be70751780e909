"""DynamicViT against timm's and mmseg's dense ViT, and permanent dropping of tokens."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from mmdyn.models import DynamicViT
from mmdyn.sparsity import Decision, FixedPolicy, RandomPolicy, TopKPolicy, keep_ratio_loss
from tests.test_models.test_backbones import (
    ONES,
    VIT,
    assert_all_learn,
    assert_same,
    assert_same_gradients,
    images,
    loss_of,
    make_live,
)

SIZES = [(64, 64), (97, 131), (150, 70)]


LVVIT = dict(stem_channels=8, skip_lam=2.0)


@pytest.fixture
def build():
    return lambda **kwargs: make_live(DynamicViT, **{**VIT, **kwargs})


def timm_vit(**kwargs):
    return VisionTransformer(
        img_size=64,
        patch_size=16,
        embed_dim=32,
        depth=8,
        num_heads=4,
        num_classes=0,
        global_pool='',
        dynamic_img_size=True,
        dynamic_img_pad=True,
        **kwargs,
    ).eval()


def timm_maps(dense, x, norm=False):
    return dense.forward_intermediates(x, indices=[1, 3, 5, 7], norm=norm, intermediates_only=True)


def as_timm(build, ours=None, theirs=None):
    sparse = build(keep_ratios=ONES, **(ours or {})).eval()
    dense = timm_vit(**(theirs or {}))
    own = {k: v for k, v in sparse.state_dict().items() if 'predictors.' not in k}
    missing, unexpected = dense.load_state_dict(own, strict=False)
    assert not unexpected and all(key.startswith('norm.') for key in missing)
    return dense, sparse


@pytest.mark.parametrize('hw', SIZES, ids=str)
@pytest.mark.parametrize(
    ('ours', 'theirs'),
    [
        ({}, {}),
        (dict(with_cls_token=False), dict(class_token=False)),
        (dict(qkv_bias=False, mlp_ratio=2), dict(qkv_bias=False, mlp_ratio=2)),
        (dict(act_cfg=dict(type='ReLU')), dict(act_layer='relu')),
    ],
    ids=str,
)
def test_ratio_one_equals_timms(build, hw, ours, theirs):
    dense, sparse = as_timm(build, ours, theirs)
    x = images(2, hw)
    with torch.no_grad():
        expected = timm_maps(dense, x)
        assert_same(sparse(x), expected)
        assert_same(sparse.forward_sparse(x, execution='masked').feats, expected)


def test_the_final_norm_is_the_last_maps(build):
    dense, sparse = as_timm(build, dict(final_norm=True))
    x = images()
    with torch.no_grad():
        out, plain, normed = sparse(x), timm_maps(dense, x), timm_maps(dense, x, norm=True)
    assert_same(out, [*plain[:3], normed[3]])
    earlier = build(final_norm=True, out_indices=(1, 3), sparse_blocks=(1, 2, 3))
    assert earlier.norm is None


def test_predictors_after_the_last_map_and_maps_named_twice_are_refused(build):
    with pytest.raises(ValueError, match=r'before the last of out_indices \(1, 3\)'):
        build(out_indices=(1, 3), sparse_blocks=(2, 3, 4))
    with pytest.raises(ValueError, match=r'duplicates: \(3, -5\) of 8'):
        build(out_indices=(3, -5))


@pytest.mark.parametrize('mode', ['gathered', 'training'])
@pytest.mark.parametrize('hw', SIZES[:2], ids=str)
def test_gradients_at_ratio_one_equal_timms(build, mode, hw):
    dense, sparse = as_timm(build)
    for predictor in sparse.predictors:
        # Predictors with constant scores pass no gradient to their input.
        torch.nn.init.zeros_(predictor.out_proj[-1].weight)
    x = images(2, hw)
    sum(f.square().mean() for f in timm_maps(dense, x)).backward()
    out = sparse.train(mode == 'training').forward_sparse(x)
    sum(f.square().mean() for f in out.feats).backward()
    assert_same_gradients(sparse, dense, atol=1e-4)


@pytest.mark.parametrize('hw', SIZES, ids=str)
@pytest.mark.parametrize('batch', [1, 2, 3])
@pytest.mark.parametrize(
    'kwargs', [{}, dict(fast_path=True), dict(with_cls_token=False), LVVIT], ids=str
)
def test_masked_and_gathered_agree(build, kwargs, batch, hw):
    model, x = build(**kwargs).eval(), images(batch, hw)
    with torch.no_grad():
        gathered = model.forward_sparse(x, policy=RandomPolicy(1))
        replay = FixedPolicy(gathered.decisions)
        masked = model.forward_sparse(x, policy=replay, execution='masked')
    # With a gradient to the mask, attention is computed in another way.
    trained = model.forward_sparse(x, policy=replay, execution='masked')
    assert_same(masked.feats, gathered.feats)
    assert_same([f.detach() for f in trained.feats], gathered.feats)
    for one, other in zip(trained.decisions, gathered.decisions, strict=True):
        assert torch.equal(one.keep_mask, other.keep_mask)


@pytest.mark.parametrize('execution', ['masked', 'gathered'])
@pytest.mark.parametrize(
    'kwargs', [{}, dict(fast_path=True), dict(with_cls_token=False), LVVIT], ids=str
)
def test_images_that_keep_different_numbers_get_what_they_get_alone(build, kwargs, execution):
    model, x = build(**kwargs).eval(), images(3)
    generator = torch.Generator().manual_seed(0)
    decisions, mask = [], torch.ones(3, 63)
    for ratio in ONES:
        mask = mask * (torch.rand(3, 63, generator=generator) < 0.6)
        mask[2] = 0.0  # nothing at all
        decisions.append(Decision(mask.log(), mask, ratio, (7, 9)))

    def alone(index):
        return FixedPolicy(
            [
                Decision(d.scores[[index]], d.keep_mask[[index]], d.keep_ratio, d.hw)
                for d in decisions
            ]
        )

    with torch.no_grad():
        out = model.forward_sparse(x, policy=FixedPolicy(decisions), execution=execution)
        singles = [model.forward_sparse(x[[i]], policy=alone(i)).feats for i in range(3)]
    assert_same(out.feats, [torch.cat(maps) for maps in zip(*singles, strict=True)])


@pytest.mark.parametrize('execution', ['masked', 'gathered'])
@pytest.mark.parametrize('fast_path', [False, True])
def test_dropped_tokens_keep_their_last_state_unless_there_is_a_fast_path(
    build, execution, fast_path
):
    model = build(fast_path=fast_path).eval()
    with torch.no_grad():
        out = model.forward_sparse(images(), policy=RandomPolicy(0), execution=execution)
    maps = [f.flatten(2).transpose(1, 2) for f in out.feats]
    # Predictors are before blocks 2, 4 and 6; maps are after 1, 3, 5 and 7.
    for decision, before, after in zip(out.decisions, maps[:-1], maps[1:], strict=True):
        dropped, kept = decision.keep_mask == 0, decision.keep_mask > 0
        assert torch.equal(after[dropped], before[dropped]) != fast_path
        assert (after[kept] != before[kept]).any(dim=1).all()


def test_decisions_shrink_to_shares_of_all_locations(build):
    model = build().eval()
    with torch.no_grad():
        for policy in (TopKPolicy(), RandomPolicy(0)):
            masks = [d.keep_mask for d in model.forward_sparse(images(), policy=policy).decisions]
            assert [m.sum(1).tolist() for m in masks] == [
                [int(63 * ratio)] * 2 for ratio in (0.7, 0.49, 0.343)
            ]
            assert (masks[1] <= masks[0]).all() and (masks[2] <= masks[1]).all()
    masks = [d.keep_mask for d in model.train().forward_sparse(images()).decisions]
    assert (masks[1] <= masks[0]).all() and (masks[2] <= masks[1]).all()
    assert masks[2].sum() < masks[1].sum() < masks[0].sum()


@pytest.mark.parametrize('execution', ['masked', 'gathered'])
def test_what_dropped_tokens_become_has_no_say_among_the_kept(build, execution):
    model, x = build(fast_path=True).eval(), images()
    with torch.no_grad():
        before = model.forward_sparse(x, execution=execution)
        for name, parameter in model.named_parameters():
            if 'fast_path' in name:
                parameter.add_(torch.randn_like(parameter))
        after = model.forward_sparse(x, execution=execution)
    for earlier, one, other in zip(
        before.decisions, before.decisions[1:], after.decisions[1:], strict=False
    ):
        kept = earlier.keep_mask > 0
        torch.testing.assert_close(one.scores[kept], other.scores[kept])
        # Gathered execution does not score them any more.
        assert (one.scores[~kept] != other.scores[~kept]).any() == (execution == 'masked')
    kept = (before.decisions[-1].keep_mask > 0).view(2, 1, *before.decisions[-1].hw)
    assert_same([after.feats[3] * kept], [before.feats[3] * kept])


def test_a_later_ratio_teaches_an_earlier_predictor(build):
    model = build().train()
    last = model.forward_sparse(images()).decisions[-1]
    keep_ratio_loss([last]).backward()
    for predictor in model.predictors:
        assert all((p.grad != 0).any() for p in predictor.parameters())


def test_every_parameter_learns_with_fast_paths_and_a_final_norm_too(build):
    model = build(fast_path=True, final_norm=True, patch_norm=True).train()
    loss_of(model.forward_sparse(images())).backward()
    assert_all_learn(model)
    with_fast = {n.split('.')[1] for n, _ in model.named_parameters() if 'fast_path' in n}
    assert with_fast == {'2', '3', '4', '5', '6', '7'}


@pytest.mark.parametrize(
    ('depth', 'blocks', 'indices'),
    [
        (12, (3, 6, 9), (2, 5, 8, 11)),
        (24, (6, 12, 18), (5, 11, 17, 23)),
        (6, (1, 3, 4), (0, 2, 3, 5)),
        (3, (0, 1, 2), (0, 1, 2)),
    ],
)
def test_default_positions(depth, blocks, indices):
    model = DynamicViT(**{**VIT, 'num_layers': depth})
    assert model.sparse_blocks == blocks and model.out_indices == indices
    assert model.keep_ratios == (0.7, 0.49, 0.343)
    assert DynamicViT(**VIT, out_indices=-1).out_indices == (7,)


def mmseg_vit(**kwargs):
    vit = pytest.importorskip('mmseg.models.backbones.vit')
    settings = dict(out_indices=(1, 3, 5, 7), norm_cfg=dict(type='LN', eps=1e-6))
    dense = make_live(vit.VisionTransformer, **{**VIT, **settings, **kwargs})
    dense.eval()  # returns nothing
    return dense


def load(path, checkpoint, **kwargs):
    torch.save(checkpoint, path)
    init_cfg = dict(type='Pretrained', checkpoint=str(path))
    model = DynamicViT(**{**VIT, **kwargs}, keep_ratios=ONES, init_cfg=init_cfg)
    model.init_weights()
    return model.eval()


@pytest.mark.parametrize(
    'kwargs',
    [{}, dict(final_norm=True, patch_bias=True), dict(with_cls_token=False, patch_norm=True)],
    ids=str,
)
def test_mmsegs_weights_keep_their_function(tmp_path, kwargs):
    dense = mmseg_vit(**kwargs)
    state = {f'backbone.{k}': v for k, v in dense.state_dict().items()}
    ours = {k: v for k, v in kwargs.items() if k != 'patch_bias'}
    model = load(tmp_path / 'vit.pth', dict(state_dict=state), **ours)
    x = images(2, (64, 64))
    with torch.no_grad():
        assert_same(model(x), dense(x))


@pytest.mark.parametrize('source', ['timm', 'mmseg'])
def test_a_dense_models_state_dict_lacks_the_predictors_alone(source):
    dense = timm_vit() if source == 'timm' else mmseg_vit()
    state = {f'backbone.{k}': v for k, v in dense.state_dict().items()}
    whole = torch.nn.ModuleDict(dict(backbone=DynamicViT(**VIT), head=torch.nn.Linear(2, 2)))
    before = dict(state)
    missing, unexpected = whole.load_state_dict(state, strict=False)
    assert not unexpected and state == before
    assert {k.split('.')[1] for k in missing if k.startswith('backbone.')} == {'predictors'}
    assert torch.equal(whole.backbone.pos_embed, dense.pos_embed)
    # A sparse checkpoint needs no conversion.
    whole.load_state_dict(whole.state_dict())


def test_timms_weights_load_and_are_resized(build, tmp_path):
    dense = timm_vit()
    state = {'model': {**dense.state_dict(), 'head.weight': torch.zeros(10, 32)}}
    model = load(tmp_path / 'vit.pth', state, img_size=(96, 32))
    assert model.pos_embed.shape == (1, 1 + 6 * 2, 32)
    for name, value in model.state_dict().items():
        if 'predictors.' not in name and name != 'pos_embed':
            assert torch.equal(value, dense.state_dict()[name]), name
    assert torch.equal(model.pos_embed[:, 0], dense.pos_embed[:, 0])
    with torch.no_grad():
        assert_same(model(images(1, (96, 32)))[:1], timm_maps(dense, images(1, (96, 32)))[:1])
    # A class token can be omitted, but not invented.
    without = load(tmp_path / 'vit.pth', state, with_cls_token=False)
    assert torch.equal(without.pos_embed, dense.pos_embed[:, 1:])
    with pytest.raises(ValueError, match='with_cls_token'):
        load(tmp_path / 'vit.pth', timm_vit(class_token=False).state_dict())


@pytest.mark.parametrize(
    ('kwargs', 'error', 'message'),
    [
        (dict(num_heads=5), ValueError, 'num_heads=5 does not divide embed_dims=32'),
        (dict(interpolate_mode='nearest'), ValueError, "'nearest'"),
        (dict(img_size=(64, 8)), ValueError, 'smaller than patch_size=16'),
        (dict(out_indices=(0, 8)), ValueError, 'out_indices=8'),
        (dict(frozen_stages=9), ValueError, 'frozen_stages=9'),
        (dict(output_cls_token=True), ValueError, 'output_cls_token=False only, got True'),
        (dict(patch_pad=1), ValueError, 'patch_pad'),
        (dict(window_size=7), TypeError, "no argument 'window_size'"),
        (dict(pretrained='a.pth', init_cfg=dict(type='Pretrained')), ValueError, 'give either'),
    ],
)
def test_wrong_settings_are_named(kwargs, error, message):
    with pytest.raises(error, match=message):
        DynamicViT(**{**VIT, **kwargs})
