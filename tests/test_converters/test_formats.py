"""Layouts are recognised by their keys, and unknown ones are refused."""

from collections import OrderedDict

import pytest
import timm
import torch

from mmdyn.converters.formats import FAMILIES, FORMATS, convert, recognise, weights_of
from mmdyn.guard import load_checkpoint
from mmdyn.models import DynamicConvNeXt, DynamicSwin, DynamicViT
from tests.reference import dynamic_convnext, dynamic_lvvit, dynamic_swin, dynamic_vit
from tests.test_converters.random_weights import initialised

DEPTHS = (1, 1, 4, 1)
BUILD = {
    'dynamic-swin': lambda predictors: dynamic_swin.random_state(
        embed_dims=8, depths=DEPTHS, heads=(1, 1, 2, 2), window=4, predictors=predictors
    ),
    'dynamic-convnext': lambda predictors: dynamic_convnext.random_state(
        embed_dims=8, depths=DEPTHS, predictors=predictors
    ),
    'dynamic-lvvit': lambda predictors: dynamic_lvvit.random_state(
        embed_dims=16, depth=12, image=32, predictors=predictors
    ),
    'dynamic-vit': lambda predictors: dynamic_vit.random_state(
        embed_dims=16, depth=12, predictors=predictors, patch=8, image=32
    ),
}
SOME = {
    'dynamic-swin': 'layers.2.blocks.1.mlp.fc1.weight',
    'dynamic-convnext': 'stages.2.1.pwconv1.weight',
    'dynamic-lvvit': 'blocks.2.mlp.fc1.weight',
    'dynamic-vit': 'blocks.2.mlp.fc1.weight',
}


def swin():
    return DynamicSwin(embed_dims=8, depths=DEPTHS, num_heads=(1, 1, 2, 2), window_size=4)


@pytest.mark.parametrize('family', FAMILIES)
def test_an_incomplete_or_odd_model_is_refused(family):
    state, key = BUILD[family](3), SOME[family]
    with pytest.raises(ValueError, match=r'incomplete.*missing.*whole file'):
        convert({k: v for k, v in state.items() if k != key}, family)
    block = key.partition('mlp')[0].partition('pwconv')[0]
    with pytest.raises(ValueError, match=r'incomplete: a block of stage . is missing'):
        convert({k: v for k, v in state.items() if not k.startswith(block)}, family)
    predictor = next(k for k in state if 'score_predictor.1.out_conv.2' in k)
    with pytest.raises(ValueError, match=r"incomplete: 'predictors\.1\.out_proj\.2"):
        convert({k: v for k, v in state.items() if k != predictor}, family)
    with pytest.raises(ValueError, match=r'another shape: .* is \(\d+, 3\) where \(\d+, \d+\)'):
        convert({**state, key: state[key][:, :3]}, family)
    with pytest.raises(ValueError, match=r"other keys, 'odd\.weight'; known are"):
        convert({**state, 'odd.weight': torch.zeros(1)}, family)


@pytest.mark.parametrize('family', FAMILIES)
def test_another_familys_file_is_named(family):
    others = [name for name in FAMILIES if name != family]
    for other in others:
        with pytest.raises(ValueError, match=f'which becomes {family}, not {other}'):
            convert(BUILD[family](3), other)


@pytest.mark.parametrize(
    ('state', 'said'),
    [
        ({'layer1.0.conv1.weight': torch.zeros(1)}, r"'layer1\.0\.conv1\.weight'"),
        ({'backbone.layer1.0.weight': torch.zeros(1), 'neck.a': torch.zeros(1)}, 'layer1'),
    ],
)
def test_an_unknown_layout_is_refused_with_the_known_ones(state, said):
    with pytest.raises(ValueError, match=f'no known layout.*{said}') as refusal:
        convert(state, 'dynamic-swin')
    assert all(layout.name in str(refusal.value) for layout in FORMATS)


@pytest.mark.parametrize(
    ('name', 'said'),
    [('swinv2_cr_tiny_224', 'no known layout|other keys'), ('swinv2_tiny_window8_256', 'Swin V2')],
)
def test_swin_v2_is_refused(name, said):
    state = timm.create_model(name, depths=(1, 1, 1, 1), embed_dim=24).state_dict()
    with pytest.raises(ValueError, match=said):
        convert(state, 'dynamic-swin')


def test_two_keys_of_one_meaning_are_refused():
    state = BUILD['dynamic-swin'](0)
    state['norm3.weight'] = state['norm.weight']
    with pytest.raises(ValueError, match=r"both mean 'norm3\.weight'"):
        convert(state, 'dynamic-swin')


def test_other_parts_of_a_whole_model_stay_and_copies_go():
    own = BUILD['dynamic-swin'](3)
    state = {f'module.backbone.{key}': value for key, value in own.items()}
    state['module.decode_head.conv_seg.weight'] = torch.ones(3, 2)
    state['module.ema_backbone_norm_weight'] = torch.zeros(2)
    checkpoint = dict(state_dict=OrderedDict(state), optimizer={}, ema_state_dict={}, meta={})
    found, beside = weights_of(checkpoint)
    assert beside == ('optimizer', 'ema_state_dict', 'meta')
    done = convert(found, 'dynamic-swin')
    assert done.parts == ('decode_head.conv_seg.weight',)
    assert done.dropped['ema_backbone_norm_weight'].startswith('running average')
    assert done.dropped['backbone.head.weight'] == 'classifier'
    alone = convert(own, 'dynamic-swin')
    whole = {
        f'backbone.{key}': value
        for key, value in alone.state_dict.items()
        if key not in alone.parts
    }
    assert set(done.state_dict) == {*whole, *done.parts}
    assert all(torch.equal(done.state_dict[key], value) for key, value in whole.items())


@pytest.mark.parametrize(
    ('checkpoint', 'said'),
    [
        (torch.nn.Linear(1, 1), 'a Linear, not a state dict'),
        ([1], 'a list, not a state dict'),
        ({}, 'empty'),
        ({'state_dict': {}}, 'empty'),
        ({'epoch': 3}, "'epoch' is .*int"),
        ({0: torch.zeros(1)}, 'name to tensor: 0 is'),
        ({'model': {'a': torch.zeros(1), 'b': [1]}}, "'b' is .*list"),
    ],
)
def test_what_holds_no_weights_is_named(checkpoint, said):
    with pytest.raises(ValueError, match=said):
        weights_of(checkpoint)


def test_every_layout_is_recognised_as_itself():
    """An earlier layout must not match a later one's files."""
    sample = dict(i='0', j='0', k='0', n='0')
    for layout in FORMATS:
        keys = [sign.format(**sample).replace('*', 'norm.weight') for sign in layout.signs]
        assert recognise(dict.fromkeys(keys)) is layout


def test_init_cfg_refuses_another_family(tmp_path):
    said = r'source\.pth: it is a DynamicConvNeXt, original.* not a DynamicSwin'
    with pytest.raises(ValueError, match=said):
        initialised(swin(), {'model': BUILD['dynamic-convnext'](3)}, tmp_path)


def test_init_cfg_finds_the_backbone_under_another_prefix(tmp_path):
    state = {f'encoder.{k}': v for k, v in BUILD['dynamic-swin'](3).items()}
    loaded = initialised(swin(), state, tmp_path, prefix='encoder').state_dict()
    name = 'layers.2.score_predictor.0.in_conv.1.weight'
    assert torch.equal(loaded['predictors.0.in_proj.0.weight'], state[f'encoder.{name}'])
    with pytest.raises(ValueError, match=r"source\.pth: no key .* starts with 'decoder\.'"):
        initialised(swin(), state, tmp_path, prefix='decoder')


def test_init_cfg_takes_timms_names(monkeypatch):
    asked = []
    dense = timm.models.swin_transformer.SwinTransformer(
        img_size=128, window_size=4, embed_dim=8, depths=DEPTHS, num_heads=(1, 1, 2, 2)
    )

    def create_model(name, pretrained):
        asked.append((name, pretrained))
        return dense

    monkeypatch.setattr(timm, 'create_model', create_model)
    model = swin()
    model.init_cfg = dict(type='Pretrained', checkpoint='timm://swin_tiny_patch4_window7_224')
    model.init_weights()
    loaded = model.state_dict()
    assert asked == [('swin_tiny_patch4_window7_224', True)]
    name = 'stages.2.blocks.3.ffn.layers.1.weight'
    assert torch.equal(loaded[name], dense.state_dict()['layers.2.blocks.3.mlp.fc2.weight'])


def test_a_name_that_timm_does_not_know_is_refused():
    with pytest.raises(ValueError, match=r"timm://swim_tiny: .*no model 'swim_tiny'"):
        load_checkpoint('timm://swim_tiny')


def timm_swin(window_size=4, **kwargs):
    return timm.models.swin_transformer.SwinTransformer(
        img_size=256,
        window_size=window_size,
        embed_dim=8,
        depths=DEPTHS,
        num_heads=(1, 1, 2, 2),
        **kwargs,
    )


@pytest.mark.parametrize('windows', [(4, 4, 8, 4), (4, 4, 4, 8)])
def test_windows_that_differ_by_stage_are_refused(tmp_path, windows):
    state = timm_swin(windows).state_dict()
    with pytest.raises(ValueError, match=r'source\.pth: .*windows differ.*4 in .*8 in stages'):
        initialised(swin(), state, tmp_path)
    with pytest.raises(ValueError, match=r'windows differ.*4 in .*8 in stages'):
        convert(state, 'dynamic-swin')


FEATURES = dict(
    swin=lambda: (
        timm_swin(num_classes=0),
        DynamicSwin(
            embed_dims=8, depths=DEPTHS, num_heads=(1, 1, 2, 2), window_size=4,
            keep_ratios=(1.0,) * 3, convert_weights=True,
        ),
    ),
    convnext=lambda: (
        timm.models.ConvNeXt(depths=(1, 1, 5, 1), dims=(8, 16, 24, 32), num_classes=0),
        DynamicConvNeXt(
            dict(depths=(1, 1, 5, 1), channels=(8, 16, 24, 32)), keep_ratios=(1.0,) * 3
        ),
    ),
    vit=lambda: (
        timm.models.VisionTransformer(
            img_size=32, patch_size=8, embed_dim=64, depth=5, num_heads=1, num_classes=0
        ),
        DynamicViT(
            img_size=32, patch_size=8, embed_dims=64, num_layers=5, num_heads=1,
            sparse_blocks=(1, 2, 3), keep_ratios=(1.0,) * 3, out_indices=(2, 4),
        ),
    ),
)  # fmt: skip


def features_only(dense):
    """Keys as in timm models made with ``features_only=True``."""
    if isinstance(dense, timm.models.VisionTransformer):
        return {
            f'model.{key}': value
            for key, value in dense.state_dict().items()
            if not key.startswith('norm.')
        }
    wrapped = timm.models.FeatureListNet(dense, out_indices=range(4), flatten_sequential=True)
    return wrapped.state_dict()


@pytest.mark.parametrize('name', FEATURES)
def test_a_features_only_file_is_the_whole_models_without_its_norm(name, tmp_path):
    dense, sparse = FEATURES[name]()
    whole, parts = dense.state_dict(), features_only(dense)
    assert not set(parts) <= set(whole)
    loaded = []
    for state in (parts, whole):
        initialised(sparse, state, tmp_path)
        loaded.append({k: v.clone() for k, v in sparse.state_dict().items()})
    for key, value in loaded[0].items():
        assert 'predictors.' in key or 'fast_path' in key or torch.equal(value, loaded[1][key]), key
    family = f'dynamic-{name}'
    converted = [convert(state, family).state_dict for state in (parts, whole)]
    assert {key for key in converted[1] if not key.startswith('norm')} <= set(converted[0])
    assert all(torch.equal(value, converted[1][key]) for key, value in converted[0].items())


@pytest.mark.parametrize('name', FEATURES)
@pytest.mark.parametrize('part', [0.2, 0.9])
def test_a_backbone_that_gets_a_part_of_a_file_is_refused(name, part, tmp_path):
    dense, sparse = FEATURES[name]()
    state = dense.state_dict()
    keys = [key for key in state if not key.startswith(('norm', 'head'))]
    few = {key: state[key] for key in keys[: int(len(keys) * part)]}
    with pytest.raises(ValueError, match=r'source\.pth does not fit this .* [1-9]\d* are missing'):
        initialised(sparse, few, tmp_path)


@pytest.mark.parametrize('name', ['swin', 'convnext'])
def test_a_deeper_models_file_is_refused(name, tmp_path):
    _, sparse = FEATURES[name]()
    state = sparse.state_dict()
    first = 'stages.2.blocks.0.' if name == 'swin' else 'stages.2.0.'
    more = {
        key.replace('.0.', '.17.', 1): value
        for key, value in state.items()
        if key.startswith(first)
    }
    with pytest.raises(ValueError, match=r'source\.pth does not fit .* 0 are missing .*\.17\.'):
        initialised(sparse, state | more, tmp_path)
