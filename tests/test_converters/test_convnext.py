"""ConvNeXt checkpoints of other code bases under our names."""

import pytest
import timm
import torch
from timm.models.convnext import ConvNeXt as TimmConvNeXt

from mmdyn.converters.additions import is_new
from mmdyn.converters.formats import convert
from mmdyn.models import DynamicConvNeXt
from tests.reference import dynamic_convnext as reference
from tests.test_converters.random_weights import initialised, randomise

SHALLOW, DEEP = (3, 3, 9, 3), (3, 3, 27, 3)
ALL = (1.0, 1.0, 1.0)


def timm_model(depths=SHALLOW, **kwargs):
    dims = tuple(8 * 2**stage for stage in range(4))
    return randomise(TimmConvNeXt(depths=depths, dims=dims, num_classes=10, **kwargs)).eval()


def names_of(depths, new=True):
    """All our names that a checkpoint for classification can have."""
    arch = dict(depths=depths, channels=(8, 16, 32, 64))
    model = DynamicConvNeXt(arch, out_indices=(3,))
    return {name for name, _ in model.named_parameters() if new or not is_new(name)}


@pytest.mark.parametrize('depths, sparse_blocks', [(SHALLOW, (1, 2, 3)), (DEEP, (3, 6, 9))])
@pytest.mark.parametrize('batch', [1, 4])
def test_an_original_dynamic_convnext_keeps_its_function(tmp_path, depths, sparse_blocks, batch):
    state = reference.random_state(embed_dims=8, depths=depths, predictors=3)
    model = DynamicConvNeXt(dict(depths=depths, channels=(8, 16, 32, 64)))
    initialised(model, {'model': state}, tmp_path)
    images = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    for ratios in ((0.7, 0.5, 0.3), (0.9, 0.81, 0.729)):
        model.set_keep_ratios(ratios)
        with torch.no_grad():
            ours = model(images)[-1].flatten(2).transpose(1, 2)
            theirs = reference.last_map(
                state, images, depths=depths, sparse_blocks=sparse_blocks, keep_ratios=ratios
            )
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@pytest.mark.parametrize('depths, first', [(SHALLOW, 1), (DEEP, 3)], ids=str)
def test_an_original_dynamic_convnext_gets_our_names(depths, first):
    state = reference.random_state(embed_dims=8, depths=depths, predictors=3)
    done = convert(state, 'dynamic-convnext')
    assert done.format == 'DynamicConvNeXt, original'
    assert set(done.parts) == {'head.weight', 'head.bias'}
    assert set(done.state_dict) - set(done.parts) == names_of(depths)
    assert done.predictors == 3
    assert done.arguments == dict(arch=dict(depths=depths, channels=(8, 16, 32, 64)))
    # Fast paths of blocks before the first predictor.
    gone = {k for k in state if any(k.startswith(f'stages.2.{j}.fast_path') for j in range(first))}
    assert len(done.dropped) == len(gone) == len(state) - len(done.state_dict)
    linear = [k for k in done.state_dict if 'predictors.' in k and k.endswith('_proj.0.weight')]
    assert linear and all(done.state_dict[key].dim() == 2 for key in linear)
    original = state['score_predictor.1.in_conv.1.weight']
    assert torch.equal(done.state_dict['predictors.1.in_proj.0.weight'], original[..., 0, 0])


def test_our_names_stay_as_they_are():
    state = reference.random_state(embed_dims=8, depths=SHALLOW, predictors=3)
    ours = convert(state, 'dynamic-convnext').state_dict
    again = convert(ours, 'dynamic-convnext')
    assert again.format == 'DynamicConvNeXt, mmdyn' and again.predictors == 3
    assert again.state_dict.keys() == ours.keys() and not again.dropped
    assert all(torch.equal(again.state_dict[key], value) for key, value in ours.items())


@pytest.mark.parametrize('conv_mlp', [False, True])
def test_timms_and_fairs_layout_of_one_model_become_the_same(conv_mlp):
    fair = reference.random_state(embed_dims=8, depths=SHALLOW, predictors=0)
    model = timm_model(conv_mlp=conv_mlp)
    model.load_state_dict(timm.models.convnext.checkpoint_filter_fn(dict(fair), model))
    ours = convert(fair, 'dynamic-convnext')
    same = convert(model.state_dict(), 'dynamic-convnext')
    assert (ours.format, same.format) == ('ConvNeXt, FAIR', 'ConvNeXt, timm')
    assert ours.parts and set(ours.state_dict) == set(same.state_dict)
    assert set(ours.state_dict) - set(ours.parts) == names_of(SHALLOW, new=False)
    for key, value in ours.state_dict.items():
        assert torch.equal(value, same.state_dict[key]), key


def test_mmpretrains_pointwise_convolutions_become_linear():
    linear = convert(timm_model().state_dict(), 'dynamic-convnext').state_dict
    linear = {key: value for key, value in linear.items() if not key.startswith('head.')}
    state = {k: v[..., None, None] if 'wise_conv1.w' in k else v for k, v in linear.items()}
    state = {f'backbone.{key}': value for key, value in state.items()}
    state['head.fc.weight'] = torch.zeros(10, 64)
    done = convert(state, 'dynamic-convnext')
    assert done.format == 'ConvNeXt, mmpretrain' and done.parts == ('head.weight',)
    for key, value in linear.items():
        assert torch.equal(done.state_dict[f'backbone.{key}'], value), key


def test_a_norm_before_pooling_is_the_last_maps_norm():
    model = timm_model(head_norm_first=True)
    done = convert(model.state_dict(), 'dynamic-convnext').state_dict
    assert torch.equal(done['norm3.weight'], model.norm_pre.weight)


@pytest.mark.parametrize(
    ('kwargs', 'said'),
    [
        (dict(use_grn=True, ls_init_value=None), r"mlp.grn.weight': ConvNeXt V2"),
        (dict(stem_type='overlap'), r"other keys, 'stem\.2\.weight'"),
    ],
    ids=['V2', 'another stem'],
)
def test_other_convnexts_are_refused(kwargs, said):
    with pytest.raises(ValueError, match=said):
        convert(timm_model(**kwargs).state_dict(), 'dynamic-convnext')


@pytest.mark.parametrize('predictors', [0, 3])
def test_the_reference_is_timms_model_where_everything_is_kept(predictors):
    state = reference.random_state(embed_dims=8, depths=SHALLOW, predictors=predictors)
    dense = {k: v for k, v in state.items() if 'fast_path' not in k and 'predictor' not in k}
    model = timm_model()
    model.load_state_dict(timm.models.convnext.checkpoint_filter_fn(dense, model))
    images = torch.randn(2, 3, 96, 64)
    settings = dict(depths=SHALLOW, sparse_blocks=(1, 2, 3)[:predictors])
    with torch.no_grad():
        theirs = model.head.norm(model.forward_features(images)).flatten(2).transpose(1, 2)
        ours = reference.last_map(state, images, keep_ratios=ALL, **settings)
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    if predictors:
        with torch.no_grad():
            sparse = reference.last_map(state, images, keep_ratios=(0.7, 0.5, 0.3), **settings)
        assert (sparse - theirs).abs().max() > 1e-2 * theirs.abs().max()
