"""Counting of multiply-adds: operators by hand, parts of models, completeness."""

import contextlib
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmdyn.analysis.counting import count_executed, count_macs
from mmdyn.models import DynamicConvNeXt, DynamicSwin, DynamicViT
from mmdyn.sparsity import GumbelPolicy, RandomPolicy, StaticPolicy, ThresholdPolicy, TopKPolicy

SWIN = dict(embed_dims=16, depths=(1, 1, 5, 1), num_heads=(1, 2, 4, 8))
CONVNEXT = dict(arch=dict(depths=(1, 1, 5, 1), channels=(8, 16, 32, 64)))
VIT = dict(embed_dims=16, num_layers=6, num_heads=2)
BACKBONES = [(DynamicSwin, SWIN), (DynamicConvNeXt, CONVNEXT), (DynamicViT, VIT)]

X, MAP = torch.zeros(5, 8), torch.zeros(2, 4, 9, 7)
WEIGHT = torch.zeros(6, 8)
QUERY, KEY = torch.zeros(2, 3, 10, 16), torch.zeros(2, 3, 12, 16)
ATTENTION = 2 * 3 * 10 * 12 * (16 + 16)


MODES = [contextlib.nullcontext, torch.inference_mode]


def conv(*args, layer=nn.Conv2d, **kwargs):
    layer = layer(*args, **kwargs)
    return lambda: layer(MAP)


transposed = partial(conv, layer=nn.ConvTranspose2d)


PRODUCTS = {
    'linear': (lambda: F.linear(X, WEIGHT), 5 * 8 * 6),
    'linear with bias': (lambda: F.linear(X, WEIGHT, torch.zeros(6)), 5 * 8 * 6),
    'in place': (lambda: torch.zeros(5, 6).addmm_(X, WEIGHT.T), 5 * 8 * 6),
    'written to': (lambda: torch.mm(X, WEIGHT.T, out=torch.zeros(5, 6)), 5 * 8 * 6),
    'matrix and vector': (lambda: X @ X[0], 5 * 8),
    'vectors': (lambda: X[0] @ X[0], 8),
    'batched': (lambda: torch.zeros(3, 5, 8) @ torch.zeros(3, 8, 2), 3 * 5 * 8 * 2),
    'batched onto': (
        lambda: torch.baddbmm(torch.zeros(1), torch.zeros(3, 5, 8), torch.zeros(3, 8, 2)),
        3 * 5 * 8 * 2,
    ),
    'einsum': (lambda: torch.einsum('nc,mc->nm', X, WEIGHT), 5 * 8 * 6),
    'convolution': (conv(4, 6, 3, padding=1), 2 * 9 * 7 * 6 * 4 * 9),
    'strided': (conv(4, 6, 2, stride=2), 2 * 4 * 3 * 6 * 4 * 4),
    'grouped': (conv(4, 6, 3, padding=1, groups=2), 2 * 9 * 7 * 6 * 2 * 9),
    'depthwise': (conv(4, 4, 3, padding=1, groups=4), 2 * 9 * 7 * 4 * 9),
    '1d': (lambda: F.conv1d(X[None], torch.zeros(3, 5, 3)), 6 * 3 * 5 * 3),
    'transposed': (transposed(4, 6, 2, stride=2), 2 * 9 * 7 * 4 * 6 * 4),
    'transposed and grouped': (
        transposed(4, 6, 2, stride=2, groups=2),
        2 * 9 * 7 * 4 * 3 * 4,
    ),
    'attention': (lambda: F.scaled_dot_product_attention(QUERY, KEY, KEY), ATTENTION),
    'attention with a mask': (
        lambda: F.scaled_dot_product_attention(QUERY, KEY, KEY, torch.zeros(1, 3, 10, 12)),
        ATTENTION,
    ),
    'attention with dropout': (
        lambda: F.scaled_dot_product_attention(QUERY, KEY, KEY, dropout_p=0.5),
        ATTENTION,
    ),
}


MKLDNN = torch.ops.mkldnn
POINTWISE = ('none', [], '')
FUSED = {
    'linear': (lambda: MKLDNN._linear_pointwise(X, WEIGHT, None, *POINTWISE), 5 * 8 * 6),
    'linear, packed': (
        lambda: MKLDNN._linear_pointwise(
            X, MKLDNN._reorder_linear_weight(WEIGHT, 5), None, *POINTWISE
        ),
        5 * 8 * 6,
    ),
    'linear and sum': (
        lambda: MKLDNN._linear_pointwise.binary(
            X, torch.zeros(5, 6), MKLDNN._reorder_linear_weight(WEIGHT, 5), None, 'add'
        ),
        5 * 8 * 6,
    ),
    'linear on its tensors': (
        lambda: torch.ops.aten.mkldnn_linear(X.to_mkldnn(), WEIGHT).to_dense(),
        5 * 8 * 6,
    ),
    'convolution': (
        lambda: MKLDNN._convolution_pointwise(
            MAP, torch.zeros(6, 2, 3, 3), None, [1, 1], [1, 1], [1, 1], 2, *POINTWISE
        ),
        2 * 9 * 7 * 6 * 2 * 9,
    ),
    'transposed convolution': (
        lambda: MKLDNN._convolution_transpose_pointwise(
            MAP, torch.zeros(4, 6, 2, 2), None, [0, 0], [0, 0], [2, 2], [1, 1], 1, *POINTWISE
        ),
        2 * 9 * 7 * 4 * 6 * 4,
    ),
}


CASES = {
    f'{name}, {mode.__name__}': (*case, mode) for name, case in PRODUCTS.items() for mode in MODES
}
CASES |= {f'fused {name}': (*case, MODES[0]) for name, case in FUSED.items()}


@pytest.mark.parametrize(('run', 'expected', 'mode'), CASES.values(), ids=CASES)
def test_counts_products_convolutions_and_attention(run, expected, mode):
    with mode():
        count, _ = count_executed(run)
    assert count.total == expected
    assert not count.unknown


def test_counts_products_in_int8():
    if torch.backends.quantized.engine not in ('x86', 'onednn', 'fbgemm'):
        pytest.skip(f'torch multiplies int8 by {torch.backends.quantized.engine!r} here')
    rounded = torch.quantize_per_tensor(WEIGHT, 0.1, 0, torch.qint8)
    packed = torch.ops.quantized.linear_prepack(rounded, None)
    count, _ = count_executed(lambda: torch.ops.quantized.linear_dynamic(X, packed))
    assert count.total == 5 * 8 * 6
    assert not count.unknown


def test_deformable_convolution_counts_for_its_product_alone():
    ops = pytest.importorskip('mmcv.ops')
    layer = ops.DeformConv2dPack(4, 6, 3, padding=1)
    offsets = 2 * 9 * 7 * 18 * 4 * 9
    count, _ = count_executed(lambda: layer(MAP))
    assert count.total == offsets + 2 * 9 * 7 * 6 * 4 * 9
    assert count.free['mmcv.deform_conv_forward'] == 1


def test_mmcvs_compiled_operators_are_seen_and_left_as_they_were():
    ops = pytest.importorskip('mmcv.ops')
    extension = sys.modules['mmcv._ext']
    before = dict(vars(extension))
    boxes = torch.tensor([[0, 0, 0, 4.0, 4.0]])
    count, _ = count_executed(lambda: ops.roi_align(MAP, boxes, (3, 3)))
    assert count.free['mmcv.roi_align_forward'] == 1
    assert not count.unknown
    count, _ = count_executed(
        lambda: ops.points_in_boxes_cpu(torch.zeros(1, 5, 3), torch.ones(1, 2, 7))
    )
    assert count.unknown == {'mmcv.points_in_boxes_cpu_forward': 1}
    assert vars(extension) == before


@pytest.mark.parametrize('run', [lambda: torch.fft.rfft(X), lambda: nn.LSTM(8, 8)(X)])
def test_what_is_not_known_is_named(run):
    count, _ = count_executed(run)
    assert len(count.unknown) == 1 and count.total == 0
    (name,) = count.unknown
    with pytest.warns(UserWarning, match=f'lower bound.*{name}'):
        assert count_macs(run) == 0


class Head(nn.Module):
    """A head that is not called through ``__call__``, like the hosts'."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 2)

    def predict(self, x):
        return self.layer.forward(x) + (x @ x.mT).sum()


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(8, 8))
        self.neck = nn.Identity()
        self.roi_head = nn.ModuleDict(dict(bbox_head=nn.Linear(8, 4), mask_head=Head()))

    def predict(self, x):
        x = self.neck(self.backbone(x))
        return self.roi_head.mask_head.predict(x), self.roi_head['bbox_head'](x), x[0] @ x[1]


def test_multiply_adds_are_told_apart_by_part_however_it_is_run():
    model = Model()
    count, out = count_executed(lambda: model.predict(X), model)
    expected = dict(backbone=5 * 64, mask_head=5 * 8 * 2 + 25 * 8, bbox_head=5 * 8 * 4, other=8)
    assert count.by_group() == expected
    assert count.by_op().total() == count.total == sum(expected.values())
    assert (count + count).total == 2 * count.total and len(out) == 3
    assert count.without('other').total == count.total - 8
    # Without a model everything is one group.
    assert count_executed(lambda: model.predict(X))[0].by_group() == {'other': count.total}


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize(('backbone', 'arguments'), BACKBONES)
def test_nothing_that_a_backbone_executes_is_unknown(backbone, arguments, mode):
    model, x = backbone(**arguments).eval(), torch.randn(2, 3, 90, 70)
    policies = [TopKPolicy(), RandomPolicy(), StaticPolicy(), ThresholdPolicy(), GumbelPolicy()]
    for policy in policies:
        for execution in ('gathered', 'masked'):
            with mode():
                count, _ = count_executed(
                    lambda policy=policy, execution=execution: model.forward_sparse(
                        x, policy=policy, execution=execution, valid_shapes=[(90, 70), (50, 60)]
                    ),
                    model,
                )
            assert not count.unknown
            assert set(count.by_group()) == {'backbone', 'predictors'}


def segmentor():
    pytest.importorskip('mmseg')
    from tests.test_models.test_mmseg_adapter import batch, segmentor_cfg

    init_default_scope('mmseg')
    model = MODELS.build(Config(dict(model=segmentor_cfg())).model).eval()
    return model, model.data_preprocessor(batch(), training=False)


def detector(name):
    pytest.importorskip('mmdet')
    from tests.test_models.test_mmdet_adapter import batch, build

    model = build(name).eval()
    if name == 'MaskRCNN':
        model.test_cfg.rpn.max_per_img = 20
        # An untrained detector finds nothing; a few boxes make the mask head run.
        model.roi_head.test_cfg.update(score_thr=0.0, max_per_img=2)
    return model, batch(model, training=False)


@pytest.mark.parametrize(
    ('make', 'parts'),
    [
        (segmentor, {'decode_head'}),
        (lambda: detector('MaskRCNN'), {'neck', 'rpn_head', 'bbox_head', 'mask_head'}),
        (lambda: detector('RetinaNet'), {'neck', 'bbox_head'}),
    ],
    ids=['UperNet', 'Mask R-CNN', 'RetinaNet'],
)
def test_nothing_that_a_model_executes_is_unknown_or_of_no_part(make, parts):
    model, data = make()
    count, _ = count_executed(lambda: model(**data, mode='predict'), model)
    assert not count.unknown
    assert set(count.by_group()) == {'backbone', 'predictors'} | parts
    assert all(macs > 0 for macs in count.macs.values())
