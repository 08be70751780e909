"""Formulas of the backbones, against executed and published multiply-adds."""

import pytest
import torch

from mmdyn.analysis.counting import count_executed
from mmdyn.models import DynamicConvNeXt, DynamicSwin, DynamicViT
from mmdyn.sparsity import RandomPolicy, ThresholdPolicy, TopKPolicy
from tests.reference.multiply_adds import (
    FORMULAS,
    BackboneMacs,
    convnext_macs,
    kept_by,
    swin_macs,
    vit_macs,
)
from tests.test_analysis.test_counting import CONVNEXT, SWIN, VIT

BACKBONES = [
    (DynamicSwin, SWIN),
    (DynamicSwin, SWIN | dict(window_size=4, mlp_ratio=2, in_channels=1, sparse_blocks=(0, 2, 4))),
    (DynamicSwin, SWIN | dict(sparse_stage=1, sparse_blocks=(0,), keep_ratios=(0.5,))),
    (
        DynamicSwin,
        SWIN | dict(depths=(1, 1, 10), num_heads=(1, 2, 4), strides=(4, 2, 2), out_indices=(2,)),
    ),
    (DynamicConvNeXt, CONVNEXT),
    (
        DynamicConvNeXt,
        dict(
            arch=dict(depths=(1, 1, 12), channels=(6, 10, 14)), stem_patch_size=2, out_indices=(2,)
        ),
    ),
    (DynamicViT, VIT),
    (DynamicViT, VIT | dict(with_cls_token=False, patch_size=8, out_indices=(4,), mlp_ratio=3)),
    (DynamicViT, VIT | dict(fast_path=True)),
]
# Windows of 7 divide only the first size; nothing divides the last.
SIZES = [(224, 224), (64, 96), (101, 67)]


def executed(model, x, **kwargs):
    """Executed multiply-adds, and the decisions."""
    count, out = count_executed(lambda: model.forward_sparse(x, **kwargs), model)
    groups = count.by_group()
    return BackboneMacs(groups['backbone'], groups.get('predictors', 0)), out.decisions


@pytest.mark.parametrize(('backbone', 'arguments'), BACKBONES)
@pytest.mark.parametrize('hw', SIZES)
def test_formula_is_what_is_executed(backbone, arguments, hw):
    model, formula = backbone(**arguments).eval(), FORMULAS[backbone]
    channels = arguments.get('in_channels', 3)
    given = {key: value for key, value in arguments.items() if key != 'keep_ratios'}
    for batch in (1, 3):
        x = torch.randn(batch, channels, *hw)
        for falls in (0.0, 0.3, 0.9):
            ratios = tuple(1 - falls * (i + 1) / 3 for i in range(len(model.predictors)))
            model.set_keep_ratios(ratios)
            counted, _ = executed(model, x, policy=TopKPolicy())
            assert counted == formula(hw, batch=batch, keep_ratios=ratios, **given)


@pytest.mark.parametrize(('backbone', 'arguments'), BACKBONES)
def test_formula_holds_for_whatever_was_decided(backbone, arguments):
    torch.manual_seed(0)
    model = backbone(**arguments).eval()
    x = torch.randn(3, arguments.get('in_channels', 3), 96, 80)
    shapes = [(96, 80), (50, 64), (96, 33)]
    with torch.no_grad():
        for predictor in model.predictors:
            predictor.out_proj[-1].weight *= 1e3  # scores far from each other
    for policy in (ThresholdPolicy(0.5), RandomPolicy(1)):
        counted, decisions = executed(model, x, policy=policy, valid_shapes=shapes)
        kept = kept_by(decisions)
        formula = FORMULAS[backbone]((96, 80), kept=kept, valid_shapes=shapes, **arguments)
        assert counted == formula
    assert all(len(set(counts)) > 1 for counts in kept)  # images keep different numbers


S, B = dict(depths=(2, 2, 18, 2)), dict(depths=(2, 2, 18, 2), embed_dims=128)


def normalised_by_swin(depths=(2, 2, 6, 2), embed_dims=96):
    """Elements normalised in a Swin at 224x224: two norms per block, embedding, mergings."""
    maps = [(56 // 2**i) ** 2 * embed_dims * 2**i for i in range(4)]
    blocks = sum(2 * depth * size for depth, size in zip(depths, maps, strict=True))
    return blocks + maps[0] + sum(2 * size for size in maps[1:]) + maps[3]


def normalised_by_convnext(arch):
    """The same for a ConvNeXt: one norm per block, stem, before each downsampling."""
    depth, width = dict(tiny=(9, 96), small=(27, 96), base=(27, 128))[arch]
    maps = [(56 // 2**i) ** 2 * width * 2**i for i in range(4)]
    blocks = sum(d * size for d, size in zip((3, 3, depth, 3), maps, strict=True))
    return blocks + maps[0] + sum(maps[:3])


# G at 224x224, dense and at keep ratios 0.7, 0.5, 0.3; from a tool that counts 5 operations per
# normalised element, including the classifier of 1000 classes.
@pytest.mark.parametrize(
    ('formula', 'arguments', 'normalised', 'dense', 'sparse'),
    [
        (swin_macs, {}, normalised_by_swin(), 4.51, 4.06),
        (swin_macs, S, normalised_by_swin(**S), 8.77, 6.88),
        (swin_macs, B, normalised_by_swin(**B), 15.47, 12.10),
        (convnext_macs, dict(arch='tiny'), normalised_by_convnext('tiny'), 4.47, 3.59),
        (convnext_macs, dict(arch='small'), normalised_by_convnext('small'), 8.70, 5.79),
        (convnext_macs, dict(arch='base'), normalised_by_convnext('base'), 15.38, 10.21),
    ],
    ids=['Swin-T', 'Swin-S', 'Swin-B', 'ConvNeXt-T', 'ConvNeXt-S', 'ConvNeXt-B'],
)
def test_formula_is_what_was_published(formula, arguments, normalised, dense, sparse):
    width = 128 if arguments in (B, dict(arch='base')) else 96
    others = 5 * normalised + 8 * width * 1000
    full = formula((224, 224), keep_ratios=(1.0, 1.0, 1.0), **arguments).backbone
    assert (full + others) / 1e9 == pytest.approx(dense, abs=0.006)
    own = formula((224, 224), **arguments)
    others += 5 * 3 * 14 * 14 * 4 * width  # the predictors' norms
    # The original multiplies the constant half at every location.
    others += 3 * (14 * 14 - 1) * (2 * width) ** 2
    assert (own.backbone + own.predictors + others) / 1e9 == pytest.approx(sparse, abs=0.01)


@pytest.mark.parametrize(('width', 'published'), [(384, 4.6), (768, 17.6)], ids=['S', 'B'])
def test_formula_is_what_was_published_of_deit(width, published):
    dense = vit_macs((224, 224), embed_dims=width, keep_ratios=(1.0, 1.0, 1.0)).backbone
    assert (dense + width * 1000) / 1e9 == pytest.approx(published, abs=0.05)
