"""Converted Swin checkpoints of other code bases compute the original function."""

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from timm.models.swin_transformer import SwinTransformer as TimmSwin

from mmdyn.converters.additions import is_new
from mmdyn.converters.formats import convert
from mmdyn.models import DynamicSwin
from tests.reference import dynamic_swin as reference
from tests.test_converters.random_weights import initialised, randomise

TINY = dict(embed_dims=8, heads=(1, 2, 2, 4), window=7)
DEPTHS = (2, 2, 6, 2)
ALL = (1.0, 1.0, 1.0)


def build(**kwargs):
    return DynamicSwin(**dict(embed_dims=8, num_heads=TINY['heads'], depths=DEPTHS) | kwargs)


@pytest.mark.parametrize('depths, sparse_blocks', [(DEPTHS, (1, 2, 3)), ((2, 2, 18, 2), (2, 4, 6))])
@pytest.mark.parametrize('batch', [1, 4])
def test_an_original_dynamic_swin_keeps_its_function(tmp_path, depths, sparse_blocks, batch):
    state = reference.random_state(depths=depths, predictors=3, **TINY)
    model = initialised(build(depths=depths), {'model': state}, tmp_path)
    images = torch.randn(batch, 3, 448, 448, generator=torch.Generator().manual_seed(1))
    for ratios in ((0.7, 0.5, 0.3), (0.9, 0.81, 0.729)):
        model.set_keep_ratios(ratios)
        with torch.no_grad():
            ours = model(images)[-1].flatten(2).transpose(1, 2)
            theirs = reference.last_map(
                state,
                images,
                depths=depths,
                heads=TINY['heads'],
                window=TINY['window'],
                sparse_blocks=sparse_blocks,
                keep_ratios=ratios,
            )
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@pytest.mark.parametrize('depths, first', [(DEPTHS, 1), ((2, 2, 18, 2), 2)], ids=str)
def test_nothing_of_an_original_checkpoint_is_lost(tmp_path, depths, first):
    state = reference.random_state(depths=depths, predictors=3, **TINY)
    done = convert(state, 'dynamic-swin')
    assert (done.format, done.predictors) == ('DynamicSwin, original', 3)
    model = build(depths=depths, out_indices=(3,))
    assert set(done.state_dict) - set(done.parts) == {name for name, _ in model.named_parameters()}
    # Index buffers, and the fast paths of blocks before the first predictor.
    gone = [k for k in state if k.endswith('_index')]
    gone += [k for k in state if any(f'.2.blocks.{j}.fastmlp' in k for j in range(first))]
    assert len(gone) == len(done.dropped) == len(state) - len(done.state_dict)
    arguments = dict(embed_dims=8, depths=depths, num_heads=TINY['heads'], window_size=7)
    assert done.arguments == arguments
    direct = initialised(build(depths=depths), state, tmp_path).state_dict()
    own = {key: value for key, value in done.state_dict.items() if key not in done.parts}
    assert all(torch.equal(direct[key], value) for key, value in own.items())


def test_a_plain_swin_gives_all_but_the_new_parameters():
    state = reference.random_state(depths=DEPTHS, predictors=0, **TINY)
    done = convert(state, 'dynamic-swin')
    assert done.format == 'Swin, Microsoft'
    names = {name for name, _ in build().named_parameters()}
    lacking = names - set(done.state_dict)
    assert set(done.state_dict) - names == set(done.parts) == {'head.weight', 'head.bias'}
    norms = {f'norm{stage}.{part}' for stage in range(3) for part in ('weight', 'bias')}
    assert {name for name in lacking if not is_new(name)} == set(done.missing) == norms
    assert done.predictors == 0


@pytest.mark.parametrize(
    'kwargs',
    [
        dict(num_heads=(2, 2, 4, 4), mlp_ratio=2),
        dict(qkv_bias=False, patch_norm=False),
        dict(in_channels=4, patch_size=2, strides=(2, 2, 2, 2)),
        dict(use_abs_pos_embed=True, pretrain_img_size=64, window_size=5),
        dict(sparse_blocks=(2, 3), keep_ratios=(0.9, 0.5)),
        dict(sparse_blocks=(0, 1, 3)),
        dict(sparse_stage=1, depths=(1, 4, 2, 1)),
        dict(depths=(1, 1, 4), num_heads=(1, 1, 1), strides=(4, 2, 2), out_indices=(0, 1, 2)),
        dict(depths=(4,), num_heads=(1,), strides=(4,), out_indices=(0,), sparse_stage=0),
    ],
    ids=str,
)
def test_any_model_of_ours_passes_as_it_is(kwargs):
    state = build(**kwargs).state_dict()
    done = convert(state, 'dynamic-swin')
    assert done.format == 'DynamicSwin, mmdyn' and not done.missing
    assert all(torch.equal(value, state[key]) for key, value in done.state_dict.items())
    dense = {key: value for key, value in state.items() if not is_new(key)}
    assert convert(dense, 'dynamic-swin').format == 'Swin, mmseg, mmdet or mmpretrain'


def test_timms_swin_keeps_its_function(tmp_path):
    dense = TimmSwin(
        img_size=448, embed_dim=8, depths=DEPTHS, num_heads=TINY['heads'], num_classes=10
    )
    randomise(dense).eval()
    assert convert(dense.state_dict(), 'dynamic-swin').format == 'Swin, timm'
    model = initialised(build(keep_ratios=ALL), dense.state_dict(), tmp_path)
    images = torch.randn(2, 3, 448, 448)
    with torch.no_grad():
        ours, theirs = model(images)[-1], dense.forward_features(images).permute(0, 3, 1, 2)
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def dense_and_sparse(host):
    """A host's model, and the same with our backbone at keep ratio 1."""
    if host == 'mmdet':
        from tests.test_models.test_mmdet_adapter import build as make

        dense = make(adapt=False, backbone=dict(type='SwinTransformer'))
        return randomise(dense).eval(), make(backbone=dict(keep_ratios=ALL)).eval()
    from tests.test_models.test_mmseg_adapter import BACKBONE, MODELS, segmentor_cfg

    init_default_scope('mmseg')
    swin = dict(BACKBONE, type='SwinTransformer')
    dense = MODELS.build(Config(segmentor_cfg(type='EncoderDecoder', backbone=swin)))
    sparse = MODELS.build(Config(segmentor_cfg(backbone=dict(BACKBONE, keep_ratios=ALL))))
    return randomise(dense).eval(), sparse.eval()


def outputs(model, host, images):
    """Logits of a segmentor, or a detector's maps after the neck."""
    with torch.no_grad():
        return [model(images)] if host == 'mmseg' else list(model.extract_feat(images))


@pytest.mark.parametrize('converted', [False, True], ids=['as it is', 'converted'])
@pytest.mark.parametrize('host', ['mmseg', 'mmdet'])
def test_a_hosts_whole_model_keeps_its_function(host, converted):
    pytest.importorskip(host)
    dense, sparse = dense_and_sparse(host)
    state = dense.state_dict()
    if converted:
        done = convert(state, 'dynamic-swin')
        assert set(done.parts) == {key for key in state if not key.startswith('backbone.')}
        state = done.state_dict
    missing, unexpected = sparse.load_state_dict(state, strict=False)
    assert not unexpected
    assert missing and all(is_new(name) for name in missing)
    images = torch.randn(1, 3, 96, 128)
    ours, theirs = (outputs(model, host, images) for model in (sparse, dense))
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()
