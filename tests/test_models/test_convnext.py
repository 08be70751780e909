"""DynamicConvNeXt against timm's dense ConvNeXt, and in the hosts."""

import re

import pytest
import torch
import torch.nn.functional as F
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from timm.models.convnext import ConvNeXt
from torch import nn

import mmdyn  # noqa: F401, registers the config look-up
from mmdyn.models import DynamicConvNeXt
from mmdyn.sparsity import RandomPolicy
from tests.test_models.test_backbones import assert_same, assert_same_gradients

DEPTHS, CHANNELS = (1, 2, 5, 2), (16, 32, 48, 64)
TINY = dict(arch=dict(depths=DEPTHS, channels=CHANNELS), layer_scale_init_value=0.5)
SIZES = [(224, 224), (97, 131), (33, 260), (75, 90), (63, 32)]


def our_name(key):
    """Convert a timm name to mmpretrain's and ours."""
    for pattern, name in (
        (r'^stem\.', 'downsample_layers.0.'),
        (r'^stages\.(\d+)\.downsample\.', r'downsample_layers.\1.'),
        (r'\.blocks\.', '.'),
        (r'\.conv_dw\.', '.depthwise_conv.'),
        (r'\.mlp\.fc', '.pointwise_conv'),
    ):
        key = re.sub(pattern, name, key)
    return key


def jitter(model):
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval()


def sparse_tiny(**kwargs):
    return jitter(DynamicConvNeXt(**{**TINY, **kwargs}))


def dense_and_sparse():
    torch.manual_seed(0)
    dense = jitter(ConvNeXt(depths=DEPTHS, dims=CHANNELS, ls_init_value=0.5, num_classes=0))
    sparse = sparse_tiny(keep_ratios=(1.0, 1.0, 1.0))
    state = {our_name(k): v for k, v in dense.state_dict().items() if not k.startswith('head.')}
    missing, unexpected = sparse.load_state_dict(state, strict=False)
    assert not unexpected
    assert {k.split('.')[0] for k in missing} == {'norm0', 'norm1', 'norm2', 'norm3'} | {
        'predictors',
        'stages',
    }
    return dense, sparse


def dense_maps(dense, sparse, x):
    """timm's maps with our output norms, as it has none."""
    x, maps = dense.stem(x), []
    for i, stage in enumerate(dense.stages):
        x = stage(x)
        norm = getattr(sparse, f'norm{i}')
        out = F.layer_norm(
            x.permute(0, 2, 3, 1), norm.normalized_shape, norm.weight, norm.bias, 1e-6
        )
        maps.append(out.permute(0, 3, 1, 2))
    return maps


@pytest.mark.parametrize('hw', SIZES, ids=str)
def test_ratio_one_equals_the_dense_backbone(hw):
    dense, sparse = dense_and_sparse()
    x = torch.randn(2, 3, *hw)
    with torch.no_grad():
        expected = dense_maps(dense, sparse, x)
        assert_same(sparse(x), expected)
        assert_same(sparse.forward_sparse(x, execution='masked').feats, expected)


def test_gradients_equal_the_dense_backbones():
    dense, sparse = dense_and_sparse()
    x = torch.randn(2, 3, 97, 131)
    sum(f.square().mean() for f in dense_maps(dense, sparse, x)).backward()
    sum(f.square().mean() for f in sparse(x)).backward()
    assert_same_gradients(sparse, dense, our_name)


def test_the_dense_part_is_named_as_in_mmpretrain():
    layers = ['depthwise_conv', 'norm', 'pointwise_conv1', 'pointwise_conv2']
    modules = [f'downsample_layers.{i}.{j}' for i in range(4) for j in range(2)]
    modules += [f'stages.{i}.{j}.{n}' for i in range(4) for j in range(DEPTHS[i]) for n in layers]
    modules += [f'norm{i}' for i in range(4)]
    expected = {f'{module}.{kind}' for module in modules for kind in ('weight', 'bias')}
    expected |= {f'stages.{i}.{j}.gamma' for i in range(4) for j in range(DEPTHS[i])}
    state = sparse_tiny().state_dict()
    new = {key for key in state if 'predictors.' in key or 'fast_path' in key}
    assert set(state) - new == expected
    assert {k for k in new if k.startswith('stages.2.1.')} == {
        f'stages.2.1.fast_path.{name}'
        for name in ('norm.weight', 'norm.bias', 'proj.weight', 'proj.bias', 'gamma')
    }
    assert state['downsample_layers.0.0.weight'].shape == (16, 3, 4, 4)
    assert state['downsample_layers.2.0.weight'].shape == (32,)
    assert state['downsample_layers.2.1.weight'].shape == (48, 32, 2, 2)


def test_weights_of_1x1_convolutions_load_as_linear_layers():
    source, other = sparse_tiny(), DynamicConvNeXt(**TINY, linear_pw_conv=False)
    state = source.state_dict()
    as_convolutions = {
        key: value[..., None, None] if re.search(r'pointwise_conv\d\.weight', key) else value
        for key, value in state.items()
    }
    other.load_state_dict(as_convolutions)
    for key, value in other.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_a_dropped_location_takes_the_fast_path_after_the_depthwise_convolution():
    model = sparse_tiny()
    block = model.stages[2][1]
    x = torch.randn(2, 6 * 8, 48)
    with torch.no_grad():
        decision = model.forward_sparse(
            torch.randn(2, 3, 97, 131), policy=RandomPolicy(0)
        ).decisions[0]
        grid = x.view(2, 6, 8, 48).permute(0, 3, 1, 2)
        mixed = block.depthwise_conv(grid).flatten(2).transpose(1, 2)
        slow = block.pointwise_conv2(F.gelu(block.pointwise_conv1(block.norm(mixed))))
        fast = block.fast_path.proj(block.fast_path.norm(mixed))
        kept = decision.keep_mask.bool()[..., None]
        update = torch.where(kept, block.gamma * slow, block.fast_path.gamma * fast)
        assert 0 < kept.sum() < kept.numel()
        for execution in ('masked', 'gathered'):
            assert_same([block(x, (6, 8), decision, execution)], [x + update])


def test_every_norm_has_the_eps_of_norm_cfg():
    for kwargs, eps in ((dict(), 1e-6), (dict(norm_cfg=dict(type='LN2d', eps=1e-3)), 1e-3)):
        model = DynamicConvNeXt(**TINY, **kwargs)
        assert {m.eps for m in model.modules() if isinstance(m, nn.LayerNorm)} == {eps}


def test_no_layer_scale_where_its_first_value_is_0():
    model = sparse_tiny(layer_scale_init_value=0.0)
    assert not any('gamma' in name for name in model.state_dict())
    with torch.no_grad():
        x = torch.randn(1, 3, 64, 64)
        masked, gathered = (
            model.forward_sparse(x, execution=execution).feats
            for execution in ('masked', 'gathered')
        )
    assert_same(gathered, masked)


def test_stochastic_depth_rises_from_0_to_the_given_rate():
    model = sparse_tiny(drop_path_rate=0.9)
    rates = [block.drop_path.drop_prob for stage in model.stages for block in stage]
    assert rates == pytest.approx([0.1 * i for i in range(10)])


@pytest.mark.parametrize(
    ('out_indices', 'channels'), [(-1, [64]), (1, [32]), ([0, 2], [16, 48]), ((1, -1), [32, 64])]
)
def test_out_indices_as_in_mmpretrain(out_indices, channels):
    model = sparse_tiny(out_indices=out_indices)
    with torch.no_grad():
        assert [f.shape[1] for f in model(torch.randn(1, 3, 64, 64))] == channels


@pytest.mark.parametrize('batch', [1, 2])
def test_nothing_leaves_channels_last_memory(batch):
    model, x = sparse_tiny(), torch.randn(batch, 3, 97, 131)
    with torch.no_grad():
        tokens = model.enter_stage(0, x, (97, 131), None)
        _, mixed = model.stages[0][0].mix(tokens, (24, 32))
        feats = model.forward_sparse(x, memory_format=torch.channels_last).feats
    # Including strides of a single image, by which convolutions recognise the layout.
    for one in (tokens, mixed):
        assert one.stride() == (24 * 32 * 16, 16, 1)
    for feat in feats:
        _, channels, height, width = feat.shape
        assert feat.stride() == (channels * height * width, 1, channels * width, channels)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(arch='teeny'), "'tiny'.*got 'teeny'"),
        (dict(arch=dict(depths=(1, 1))), 'depths=…, channels=…'),
        (dict(arch=dict(depths=(1, 1), channels=(8,))), 'one entry per stage'),
        (dict(use_grn=True), 'use_grn=False'),
        (dict(gap_before_final_norm=True), 'gap_before_final_norm=False'),
        (dict(norm_cfg=dict(type='BN')), "type='LN2d'"),
        (dict(norm_cfg=dict(type='LN2d', affine=False)), "type='LN2d'"),
    ],
)
def test_wrong_settings_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        DynamicConvNeXt(**{**TINY, **kwargs})


def test_an_init_cfg_that_names_no_checkpoint_is_refused():
    model = sparse_tiny(init_cfg=[dict(type='TruncNormal', layer='Conv2d', std=0.02)])
    with pytest.raises(ValueError, match=r"type='Pretrained'.*TruncNormal"):
        model.init_weights()


@pytest.mark.parametrize('host', ['mmseg', 'mmdet'])
@pytest.mark.parametrize('decay_type', ['layer_wise', 'stage_wise'])
def test_the_hosts_layer_wise_decay_takes_the_new_parameters(host, decay_type):
    optimizers = pytest.importorskip(f'{host}.engine.optimizers')
    assert optimizers.LearningRateDecayOptimizerConstructor
    init_default_scope(host)
    model = nn.Module()
    model.backbone, model.decode_head = sparse_tiny(), nn.Linear(2, 2)
    optimizer = build_optim_wrapper(
        model,
        dict(
            type='OptimWrapper',
            optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.05),
            paramwise_cfg=dict(decay_rate=0.9, decay_type=decay_type, num_layers=6),
            constructor='LearningRateDecayOptimizerConstructor',
        ),
    ).optimizer
    groups = {name: g for g in optimizer.param_groups for name in g['param_names']}
    assert len(groups) == len(list(model.named_parameters()))
    block = groups['backbone.stages.2.1.pointwise_conv1.weight']
    # A fast path has its block's learning rate, a predictor that of the heads.
    assert groups['backbone.stages.2.1.fast_path.proj.weight']['lr'] == block['lr'] < 1
    assert groups['backbone.predictors.0.in_proj.0.weight']['lr'] == 1
    assert groups['decode_head.weight']['lr'] == 1
    assert groups['backbone.stages.2.1.fast_path.gamma']['weight_decay'] == 0
    assert groups['backbone.predictors.0.norm.weight']['weight_decay'] == 0
