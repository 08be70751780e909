"""DynamicUPerHead against mmseg's UPerHead."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip('mmseg')

from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner.checkpoint import load_state_dict
from mmseg.models import UPerHead

from mmdyn.analysis.stock import stock_part_config
from mmdyn.models.heads import DynamicUPerHead
from mmdyn.models.heads.tile_predictor import TilePredictor, uncertainty
from mmdyn.sparsity import FixedPolicy, RandomPolicy, TopKPolicy
from mmdyn.sparsity.tiles import TileGrid
from tests.test_models.test_mmseg_adapter import batch, segmentor_cfg

HEAD = dict(
    in_channels=[6, 8, 10, 12],
    in_index=[0, 1, 2, 3],
    channels=8,
    num_classes=4,
    norm_cfg=dict(type='BN'),
    align_corners=False,
)
SIZES = [(32, 32), (30, 45), (13, 9)]


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmseg')
    torch.manual_seed(0)


def maps_of(size, batch_size=2):
    maps = []
    for channels in HEAD['in_channels']:
        maps.append(torch.randn(batch_size, channels, *size, requires_grad=True))
        size = tuple((side + 1) // 2 for side in size)
    return maps


def liven(head):
    """Statistics and factors as after training, as identity norms would hide errors."""
    for name, value in head.state_dict().items():
        if 'running_var' in name or name.endswith('bn.weight'):
            value.uniform_(0.5, 1.5)
        elif 'running_mean' in name or name.endswith('bn.bias'):
            value.normal_()
        elif value.dim() == 4:
            value.normal_(std=value[0].numel() ** -0.5)
    return head


def pair(**kwargs):
    dense = liven(UPerHead(**HEAD | {k: v for k, v in kwargs.items() if k in HEAD})).eval()
    ours = DynamicUPerHead(**HEAD | dict(tile_size=4) | kwargs)
    missing, unexpected = ours.load_state_dict(dense.state_dict(), strict=False)
    assert not unexpected and all(key.startswith('predictors.') for key in missing)
    return dense, ours.eval()


def samples():
    return batch([(64, 64), (64, 64)])['data_samples']


def learn(head, maps):
    losses = head.train().loss(maps, samples(), None)
    sum(value for name, value in losses.items() if 'loss' in name).backward()
    return losses


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize('norm_cfg', [dict(type='BN'), None])
def test_with_every_tile_it_is_the_dense_head(size, align_corners, norm_cfg):
    dense, ours = pair(tile_ratio=1.0, align_corners=align_corners, norm_cfg=norm_cfg)
    maps = maps_of(size)
    out, expected = ours(maps), dense(maps)
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-3)
    grads = [torch.autograd.grad(y.square().mean(), maps) for y in (out, expected)]
    for grad, wanted in zip(*grads, strict=True):
        torch.testing.assert_close(grad, wanted, atol=1e-4, rtol=1e-3)


def test_in_training_too_it_is_the_dense_head():
    dense, ours = pair(tile_ratio=1.0, dropout_ratio=0)
    dense.dropout = None
    maps = maps_of((16, 16))
    out, expected = ours.train()(maps), dense.train()(maps)
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-3)
    for (name, value), other in zip(
        ours.state_dict().items(), dense.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(value, other, msg=name)


@pytest.mark.parametrize('batch_size', [1, 2, 3])
@pytest.mark.parametrize('coarse_stride', [8, 16])
@pytest.mark.parametrize('size', SIZES)
def test_masked_and_gathered_agree(size, coarse_stride, batch_size):
    _, head = pair(coarse_stride=coarse_stride, tile_ratio=0.4)
    with torch.no_grad():
        maps = maps_of(size, batch_size)
        gathered = head.forward_sparse(maps, execution='gathered')
        replay = FixedPolicy(gathered.decisions)
        masked = head.forward_sparse(maps, execution='masked', policy=replay)
    torch.testing.assert_close(gathered.feats[0], masked.feats[0], atol=1e-4, rtol=1e-3)
    kept = gathered.decisions[0].keep_mask.sum(dim=1)
    tiles = gathered.decisions[0].keep_mask.shape[1]
    assert kept.tolist() == [max(1, int(0.4 * tiles))] * batch_size


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('strides', [(8, 16), (8, 32), (16, 32)])
def test_a_fine_stride_of_its_own(size, strides):
    """A dense head at that stride equals the host's on averaged maps."""
    fine, coarse = strides
    dense, ours = pair(fine_stride=fine, coarse_stride=coarse, tile_ratio=0.5)
    maps = maps_of(size)
    masked, gathered = (ours.forward_sparse(maps, execution=how) for how in ('masked', 'gathered'))
    torch.testing.assert_close(gathered.feats[0], masked.feats[0], atol=1e-4, rtol=1e-3)
    step = fine // 4
    assert gathered.feats[0].shape[-2:] == tuple(-(-side // step) for side in size)
    ours.set_tile_ratio(1.0)
    pooled = [F.avg_pool2d(maps[0], step, ceil_mode=True, count_include_pad=False), *maps[1:]]
    if step == 4:
        pooled[1] = F.avg_pool2d(maps[1], 2, ceil_mode=True, count_include_pad=False)
    torch.testing.assert_close(ours(maps), dense(pooled), atol=1e-4, rtol=1e-3)


def test_in_a_chosen_tile_it_is_the_dense_head_and_elsewhere_the_coarse_one():
    dense, head = pair(tile_ratio=0.25)
    coarse = DynamicUPerHead(**HEAD | dict(tile_ratio=0.0)).eval()
    coarse.load_state_dict({k: v for k, v in head.state_dict().items() if 'predictors' not in k})
    maps = maps_of((16, 16))
    with torch.no_grad():
        out = head.forward_sparse(maps)
        kept = out.decisions[0].keep_mask.view(2, 4, 4).repeat_interleave(4, 1)
        kept = kept.repeat_interleave(4, 2).bool().unsqueeze(1)
        expected = torch.where(kept, dense(maps), coarse(maps))
    torch.testing.assert_close(out.feats[0], expected, atol=1e-4, rtol=1e-3)
    assert not torch.allclose(dense(maps), coarse(maps), atol=1e-2)


def test_every_parameter_learns_and_the_coarse_pass_has_statistics_of_its_own():
    _, head = pair(tile_ratio=0.5)
    before = {k: v.clone() for k, v in head.state_dict().items() if 'running_mean' in k}
    losses = learn(head, maps_of((16, 16)))
    expected = {'loss_ce', 'coarse.loss_ce', 'merged.loss_ce', 'loss_coarse_distill'}
    assert expected | {'loss_keep_ratio', 'tile_ratio'} <= set(losses)
    lacking = [name for name, p in head.named_parameters() if p.grad is None or not p.grad.any()]
    assert not lacking
    after = head.state_dict()
    assert all(not torch.equal(after[k], v) for k, v in before.items())
    assert not torch.equal(
        after['fast_path.fpn_convs.0.bn.running_mean'], after['fpn_convs.0.bn.running_mean']
    )


def test_what_is_shared_learns_as_in_the_dense_twin():
    dense, head = pair(tile_ratio=0.5, dropout_ratio=0)
    dense.dropout = None
    known, grads, maps = samples(), [], maps_of((16, 16))
    for net in (dense, head):
        losses = net.train().loss(maps, known, None)
        loss = sum(value for name, value in losses.items() if 'loss' in name)
        shared = [net.get_parameter(name) for name, _ in dense.named_parameters()]
        grads.append(torch.autograd.grad(loss, [*maps, *shared]))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize('ratio', [0.0, 1.0])
def test_every_parameter_that_wants_a_gradient_gets_one(ratio):
    head = DynamicUPerHead(**HEAD, tile_ratio=ratio)
    maps = maps_of((16, 16))
    learn(head, maps)
    assert all(x.grad is not None and x.grad.any() for x in maps)
    assert not [n for n, p in head.named_parameters() if p.requires_grad and p.grad is None]


def test_a_frozen_dense_head_stays_as_it_was_loaded():
    _, head = pair(tile_ratio=0.5, freeze_dense=True)
    before = {name: value.clone() for name, value in head.state_dict().items()}
    maps = [x.detach() for x in maps_of((16, 16))]
    optimizer = torch.optim.SGD([p for p in head.parameters() if p.requires_grad], lr=0.1)
    losses = learn(head, maps)
    assert 'loss_ce' not in losses and {'coarse.loss_ce', 'loss_coarse_distill'} <= set(losses)
    assert all(p.grad.any() for p in head.parameters() if p.requires_grad)
    optimizer.step()
    changed = {k for k, v in head.state_dict().items() if not torch.equal(v, before[k])}
    assert {name.split('.')[0] for name in changed} == {'fast_path', 'predictors'}
    assert {name for name, _ in head.fast_path.named_parameters(prefix='fast_path')} <= changed


def test_a_dense_head_that_was_not_loaded_is_not_frozen():
    head = DynamicUPerHead(**HEAD, freeze_dense=True).train()
    load_state_dict(head, UPerHead(**HEAD | dict(num_classes=7)).state_dict())  # does not raise
    with pytest.raises(ValueError, match='load_from'):
        learn(head, maps_of((16, 16)))
    load_state_dict(head, UPerHead(**HEAD).state_dict())
    assert head.has_loaded_dense


def test_padding_has_no_say_in_a_tiles_score():
    _, head = pair(tile_ratio=0.5, tile_size=8)
    seen = []
    head.predictors[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    feats = torch.randn(2, HEAD['channels'], 8, 8)
    images = torch.zeros(2, 3, 4, 4)
    for noise in (0.0, 5.0):
        changed = feats.clone()
        changed[0, :, 3:] += noise
        changed[0, :, :, 5:] += noise
        head.decide(changed, TileGrid((32, 32), 8), TopKPolicy(), [(12, 20), (32, 32)], images)
    for one, other in zip(*(inputs[:2] for inputs in seen), strict=True):
        torch.testing.assert_close(one, other)


def test_no_stock_head_stands_in_for_another_stride():
    config = dict(type='mmdyn.DynamicUPerHead', fine_stride=8, tile_ratio=0.5, in_index=[0, 1])
    with pytest.raises(ValueError, match='fine_stride=8'):
        stock_part_config(config)
    stock = stock_part_config(config | dict(fine_stride=4))
    assert stock == dict(type='UPerHead', in_index=[0, 1])


@pytest.mark.parametrize('ratio', [0.5, 1.0])
def test_a_head_that_was_coarse_in_training_neither_chooses_nor_is_dense(ratio):
    head = DynamicUPerHead(**HEAD, tile_ratio=0.0)
    assert head.highest_ratio == 0
    with pytest.raises(ValueError, match=rf'the parts that tile_ratio={ratio} needs'):
        head.set_tile_ratio(ratio)


def test_of_another_coarse_stride_only_what_is_new_comes_from_the_dense_layers():
    other = liven(DynamicUPerHead(**HEAD, coarse_stride=8))
    state = other.state_dict()
    head = DynamicUPerHead(**HEAD, coarse_stride=16)
    assert not head.load_state_dict(state).missing_keys
    got = head.state_dict()
    assert torch.equal(got['fast_path.fpn_convs.1.conv.weight'], state['fpn_convs.1.conv.weight'])
    name = 'fast_path.fpn_convs.0.conv.weight'
    assert torch.equal(got[name], state[name]) and not torch.equal(
        got[name], state[name.removeprefix('fast_path.')]
    )


def test_without_a_chosen_tile_the_result_is_the_coarse_one():
    _, head = pair(tile_ratio=0.5)
    maps = maps_of((16, 16))

    def nothing(log_probs, site):
        decision = TopKPolicy()(log_probs, site)
        return dataclasses.replace(decision, keep_mask=torch.zeros_like(decision.keep_mask))

    with torch.no_grad():
        none = head.forward_sparse(maps, policy=nothing).feats[0]
        head.set_tile_ratio(0.0)
        assert torch.equal(none, head(maps))


@pytest.mark.parametrize('align_corners', [False, True])
def test_the_coarse_result_is_not_shifted(align_corners):
    head = DynamicUPerHead(**HEAD | dict(align_corners=align_corners), tile_ratio=0.0).eval()
    ramp = torch.arange(64.0)
    cells = F.adaptive_avg_pool1d(ramp[None, None], 16)[0, 0]
    head.fast_path.forward = lambda *_, **__: cells.view(1, 1, 1, 16).expand(1, 8, 16, 16)
    head.fast_path.conv_seg = torch.nn.Identity()
    out = head(maps_of((64, 64), 1))
    torch.testing.assert_close(out[0, 0, 0, 4:-4], ramp[4:-4])


def test_in_sliding_inference_metas_say_nothing_about_a_window():
    _, head = pair(tile_ratio=0.5)
    metas = [dict(img_shape=(64, 64)), dict(img_shape=(30, 17), pad_shape=(64, 64))]
    seen = []
    forward = head.forward_sparse
    head.forward_sparse = lambda *a, **k: seen.append(k['valid_shapes']) or forward(*a, **k)
    for mode in ('slide', 'whole'):
        head.predict(
            maps_of((16, 16)),
            [dict(meta, img_shape=(64, 64)) for meta in metas][:1] + metas[1:],
            dict(mode=mode),
        )
    assert seen == [None, [(64, 64), (30, 17)]]


def test_ignored_pixels_are_not_distilled():
    _, head = pair(tile_ratio=0.5, dropout_ratio=0)
    maps, known, losses = maps_of((16, 16)), samples(), []
    for change in (0.0, 100.0):
        maps = [x.detach().clone() for x in maps]
        known[0].gt_sem_seg.data[:] = 255
        maps[0][0] += change  # in the ignored image only
        torch.manual_seed(0)
        losses.append(head.eval().logits_and_losses(maps, known)[1]['loss_coarse_distill'])
    torch.testing.assert_close(*losses)


def test_padding_is_neither_chosen_nor_counted():
    _, head = pair(tile_ratio=0.5)
    out = head.forward_sparse(maps_of((16, 16)), valid_shapes=[(64, 64), (30, 17)])
    (decision,) = out.decisions
    assert decision.valid_mask.sum(dim=1).tolist() == [16, 2 * 2]
    assert decision.keep_mask.sum(dim=1).tolist() == [8, 2]
    assert not (decision.keep_mask.bool() & ~decision.valid_mask).any()


def test_before_training_the_uncertain_tiles_are_chosen():
    predictor = TilePredictor(8)
    for layer in predictor.scores.modules():
        if isinstance(layer, torch.nn.Linear):
            torch.nn.init.zeros_(layer.weight)
    doubt = torch.rand(3, 10)
    scores = predictor(torch.randn(3, 10, 8), doubt)
    torch.testing.assert_close(scores.exp().sum(-1), torch.ones(3, 10))
    assert torch.equal(scores[..., 0].argsort(dim=1), doubt.argsort(dim=1))
    # Padding does not affect uncertainty.
    mask = torch.arange(10) < 6
    other = torch.where(mask, doubt, 100.0)
    features = torch.randn(3, 10, 8)
    one, two = (predictor(features, d, mask.expand(3, -1))[:, :6] for d in (doubt, other))
    torch.testing.assert_close(one, two)


def test_uncertainty():
    logits = torch.tensor([[10.0, -10.0, -10.0], [1.0, 1.0, -10.0], [0.0, 0.0, 0.0]])
    found = uncertainty(logits.T[None, :, None, :])[0, 0]
    torch.testing.assert_close(found, torch.tensor([0.0, 1.0, 1.0]), atol=1e-4, rtol=0)
    one = uncertainty(torch.tensor([0.0, 20.0, -20.0]).view(1, 1, 1, 3))[0, 0]
    torch.testing.assert_close(one, torch.tensor([1.0, 0.0, 0.0]), atol=1e-4, rtol=0)


def test_the_ratio_can_be_changed():
    _, head = pair(tile_ratio=0.5)
    maps = maps_of((16, 16))
    for ratio, kept in ((0.25, [4, 4]), (0.01, [1, 1])):
        head.set_tile_ratio(ratio)
        out = head.forward_sparse(maps, policy=TopKPolicy())
        assert out.decisions[0].keep_mask.sum(dim=1).tolist() == kept
    for ratio in (0.0, 1.0):
        head.set_tile_ratio(ratio)
        assert head.forward_sparse(maps).decisions == ()


def test_random_tiles_differ_from_image_to_image():
    _, head = pair(tile_ratio=0.5)
    maps = maps_of((16, 16))
    first, again, other = (
        head.forward_sparse(maps, policy=RandomPolicy(seed)).decisions[0].keep_mask
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])
    # With padding the selection is the same as without.
    wide = [F.pad(x, (0, x.shape[-1] // 2, 0, x.shape[-2])) for x in maps]
    shapes = [(64, 64), (64, 64)]
    (beside,) = head.forward_sparse(wide, policy=RandomPolicy(0), valid_shapes=shapes).decisions
    assert torch.equal(beside.keep_mask.view(2, *beside.hw)[:, :4, :4].flatten(1), first)


@pytest.mark.parametrize(
    ('settings', 'said'),
    [
        (dict(tile_ratio=1.5), 'in \\[0, 1\\], got 1.5'),
        (dict(tile_ratio=float('nan')), 'got nan'),
        (dict(tile_ratio='0.5'), "got '0.5'"),
        (dict(tile_size=0), 'got 0'),
        (dict(tile_size=6), 'here of 4, got 6'),
        (dict(coarse_stride=4), 'got 4'),
        (dict(fine_stride=12), 'finest_stride=4, got 12'),
        (dict(fine_stride=16), 'fine stride, 16, got 16'),
        (dict(coarse_stride=24), 'fine stride, 4, got 24'),
        (dict(finest_stride=8, coarse_stride=8), 'fine stride, 8, got 8'),
        (dict(in_channels=[6], in_index=[0]), 'at least two levels'),
        (dict(out_channels=1, num_classes=2, threshold=0.3), 'distill_loss=None'),
        (dict(norm_cfg=dict(type='GN', num_groups=2)), 'GroupNorm'),
        (dict(freeze_dense=True, tile_ratio=0.0), 'nothing to train'),
    ],
)
def test_bad_arguments(settings, said):
    with pytest.raises((TypeError, ValueError), match=said):
        DynamicUPerHead(**HEAD | settings)


def test_scores_that_are_no_numbers_are_refused():
    _, head = pair(tile_ratio=0.5)
    torch.nn.init.constant_(head.predictors[0].uncertainty_weight, float('nan'))
    with pytest.raises(ValueError, match=r'decode_head\.predictors\.0 gave NaN'):
        head(maps_of((16, 16)))


@pytest.mark.parametrize('teacher', [None, 'self'])
def test_in_our_segmentor(teacher):
    from mmseg.registry import MODELS

    cfg = Config(segmentor_cfg(teacher=teacher))
    cfg['decode_head'].update(type='mmdyn.DynamicUPerHead', tile_size=4, tile_ratio=0.5)
    model = MODELS.build(cfg._cfg_dict)
    model.init_weights()
    data = model.data_preprocessor(batch(), training=True)
    losses = model.train()(**data, mode='loss')
    assert {'decode.loss_ce', 'decode.loss_keep_ratio', 'loss_keep_ratio'} <= set(losses)
    assert ('loss_distill_logit' in losses) is (teacher is not None)
    total, logged = model.parse_losses(losses)
    assert 'decode.tile_ratio' in logged
    total.backward(retain_graph=True)
    if teacher is not None:
        assert model.teacher.model.decode_head.tile_ratio == 1
        model.zero_grad()
        losses['loss_distill_logit'].backward()
        assert model.backbone.patch_embed.projection.weight.grad.any()
    data = model.data_preprocessor(batch(), training=False)
    results = model.eval().predict(**data)
    assert [result.kept_tiles for result in results] == [pytest.approx(0.5)] * 2
    assert len(results[0].kept_fractions) == 3


@pytest.mark.parametrize('tile_ratio', [0.0, 0.4, 1.0])
def test_without_a_norm_it_runs_under_autocast(tile_ratio):
    settings = dict(tile_size=4, norm_cfg=None, tile_ratio=tile_ratio)
    head = DynamicUPerHead(**HEAD | settings).eval()
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        assert head(maps_of((32, 48))).dtype == torch.bfloat16
