"""Whole checkpoints of the original's classifiers, heads included."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmdyn.converters.formats import convert
from mmdyn.registry import MODELS
from tests.reference import dynamic_convnext, dynamic_lvvit, dynamic_swin, dynamic_vit

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / 'configs' / 'imagenet').glob('*_imagenet.py'))
DEPTHS = dict(t=(2, 2, 6, 2), s=(2, 2, 18, 2), b=(2, 2, 18, 2))
CNN_DEPTHS = dict(t=(3, 3, 9, 3), s=(3, 3, 27, 3), b=(3, 3, 27, 3))


def original(name):
    """(family, random state dict of the original's layout) for a config's model, 1000 classes."""
    kind, size = name.removesuffix('_imagenet').split('-')
    if kind == 'dyndeit':
        width = {'256': 256, 's': 384, 'b': 768}[size]
        return 'dynamic-vit', dynamic_vit.random_state(
            embed_dims=width, depth=12, predictors=3, classes=1000
        )
    if kind == 'dynlvvit':
        width, depth = dict(s=(384, 16), m=(512, 20))[size]
        return 'dynamic-lvvit', dynamic_lvvit.random_state(
            embed_dims=width, depth=depth, predictors=3, classes=1000
        )
    if kind == 'dynswin':
        heads = (4, 8, 16, 32) if size == 'b' else (3, 6, 12, 24)
        return 'dynamic-swin', dynamic_swin.random_state(
            embed_dims=32 * heads[0], depths=DEPTHS[size], heads=heads, window=7,
            predictors=3, classes=1000,
        )  # fmt: skip
    return 'dynamic-convnext', dynamic_convnext.random_state(
        embed_dims=128 if size == 'b' else 96, depths=CNN_DEPTHS[size], predictors=3, classes=1000
    )


def build(path):
    with torch.device('meta'):
        return MODELS.build(Config.fromfile(path).model)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_an_original_classifier_fits_its_config(path):
    family, state = original(path.stem)
    done = convert(state, family)
    assert {'head.weight', 'head.bias'} <= set(done.parts)
    assert torch.equal(done.state_dict['head.weight'], state['head.weight'])
    model = build(path)
    model.load_state_dict(done.state_dict, strict=True, assign=True)
    again = convert(done.state_dict, family)
    assert set(again.state_dict) == set(done.state_dict) and 'mmdyn' in again.format


def loaded(name, state, family, **backbone):
    cfg = Config.fromfile(ROOT / 'configs' / 'imagenet' / f'{name}_imagenet.py').model
    cfg.backbone.update(backbone)
    cfg.num_classes = 10
    model = MODELS.build(cfg).eval()
    model.load_state_dict(convert(state, family).state_dict, strict=True)
    return model


@pytest.mark.parametrize('batch', [1, 4])
@pytest.mark.parametrize('name', ['s', 'm'])
def test_lvvits_logits_are_the_originals(name, batch):
    depth, blocks = dict(s=(16, (4, 8, 12)), m=(20, (5, 10, 15)))[name]
    state = dynamic_lvvit.random_state(embed_dims=96, depth=depth, predictors=3)
    model = loaded(f'dynlvvit-{name}', state, 'dynamic-lvvit', embed_dims=96, num_heads=3)
    images = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    for ratios in ((0.7, 0.49, 0.343), (0.5, 0.25, 0.125)):
        model.backbone.set_keep_ratios(ratios)
        with torch.no_grad():
            ours = model(images, mode='tensor')
            theirs = dynamic_lvvit.logits(
                state, images, depth=depth, heads=3, sparse_blocks=blocks, keep_ratios=ratios
            )
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@pytest.mark.parametrize('batch', [1, 4])
def test_deits_logits_are_the_originals(batch):
    sparse = dict(sparse_blocks=(3, 6, 9), keep_ratios=(0.7, 0.49, 0.343))
    state = dynamic_vit.random_state(embed_dims=64, depth=12, predictors=3)
    model = loaded('dyndeit-s', state, 'dynamic-vit', embed_dims=64, num_heads=2)
    images = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        token, _, _ = dynamic_vit.tokens(state, images, depth=12, heads=2, **sparse)
        theirs = token @ state['head.weight'].T + state['head.bias']
        ours = model(images)
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@pytest.mark.parametrize('batch', [1, 4])
@pytest.mark.parametrize('name', ['t', 's'])
def test_swins_logits_are_the_originals(name, batch):
    """At 224x224, where the last stage is one window."""
    sizes = dict(depths=DEPTHS[name], heads=(1, 1, 2, 2), window=7)
    blocks = (1, 2, 3) if name == 't' else (2, 4, 6)
    state = dynamic_swin.random_state(embed_dims=16, predictors=3, **sizes)
    backbone = dict(embed_dims=16, num_heads=(1, 1, 2, 2))
    model = loaded(f'dynswin-{name}', state, 'dynamic-swin', **backbone)
    images = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs = dynamic_swin.logits(
            state, images, sparse_blocks=blocks, keep_ratios=(0.7, 0.5, 0.3), **sizes
        )
        ours = model(images)
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@pytest.mark.parametrize('batch', [1, 4])
@pytest.mark.parametrize('name', ['t', 's'])
def test_convnexts_logits_are_the_originals(name, batch):
    depths, blocks = CNN_DEPTHS[name], (1, 2, 3) if name == 't' else (3, 6, 9)
    state = dynamic_convnext.random_state(embed_dims=16, depths=depths, predictors=3)
    arch = dict(depths=depths, channels=(16, 32, 64, 128))
    model = loaded(f'dynconvnext-{name}', state, 'dynamic-convnext', arch=arch)
    images = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs = dynamic_convnext.logits(
            state, images, depths=depths, sparse_blocks=blocks, keep_ratios=(0.7, 0.5, 0.3)
        )
        ours = model(images)
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@pytest.mark.parametrize('name', ['dyndeit-s', 'dynlvvit-s', 'dynswin-t', 'dynconvnext-t'])
def test_a_dense_backbone_takes_a_classifiers_weights(name, tmp_path):
    """As ``init_cfg`` of a segmentor's backbone: the converted file, and a trained classifier's."""
    family, state = original(f'{name}_imagenet')
    config = Config.fromfile(ROOT / 'configs' / 'imagenet' / f'{name}_imagenet.py').model
    model = MODELS.build(config)
    converted = convert(state, family).state_dict
    model.load_state_dict(converted, strict=True)
    torch.save(dict(state_dict=converted), tmp_path / 'converted.pth')
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'trained.pth')
    for file in ('converted', 'trained'):
        source = dict(type='Pretrained', checkpoint=str(tmp_path / f'{file}.pth'))
        backbone = MODELS.build({**config.backbone, 'init_cfg': source})
        backbone.init_weights()
        found = backbone.state_dict()
        for key, value in model.backbone.state_dict().items():
            assert torch.equal(found[key], value), key
