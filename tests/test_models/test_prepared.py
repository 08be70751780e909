"""Prepared models against the originals: stock models and ours, of both hosts."""

import copy
import io

import pytest
import torch
from mmcv.cnn import ConvModule
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map

import mmdyn
from mmdyn.convolutions.kernels import Choices
from mmdyn.convolutions.products import PackedLinear
from mmdyn.models import prepared
from mmdyn.models.prepared import prepare_for_inference
from tests.test_models.traced import CHANNELS, build, images_for, tensors
from tests.torch_line import needs_whole_graphs

SIZES = [(1, 64, 64), (2, 70, 97), (3, 33, 129)]


class Forced(Choices):
    """Chooses one algorithm always, without measuring."""

    def __init__(self, winograd):
        super().__init__()
        self.winograd = winograd

    def __contains__(self, key):
        return True

    def __getitem__(self, key):
        return self.winograd


@pytest.fixture(params=[True, False], ids=['winograd', 'direct'])
def algorithm(request, monkeypatch):
    monkeypatch.setattr(prepared, 'Choices', lambda dtype: Forced(request.param))


@pytest.fixture
def winograd(monkeypatch):
    monkeypatch.setattr(prepared, 'Choices', lambda dtype: Forced(True))


@pytest.fixture
def direct(monkeypatch):
    monkeypatch.setattr(prepared, 'Choices', lambda dtype: Forced(False))


def liven_norms(model):
    """Random statistics as after training, as initial norms are the identity."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None:
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.running_mean)
    return model


def liven(model):
    """The same, and larger weights."""
    for name, value in liven_norms(model).named_parameters():
        if value.dim() > 1 and 'bias_table' not in name:
            nn.init.normal_(value, std=value[0].numel() ** -0.5)
            if '_reg.' in name:  # small offsets of boxes
                value.data *= 0.1
        elif name.endswith('bias'):
            nn.init.normal_(value, std=0.3)
        else:
            nn.init.uniform_(value, 0.5, 1.5)
    return model


def pair(model):
    """A model in evaluation mode, and a prepared copy."""
    model = liven(model)
    model.eval()
    return model, prepare_for_inference(copy.deepcopy(model))


def check_close(ours, theirs, factor=1e-4):
    """Check that tensors agree, relative to the largest value."""
    ours, theirs = tensors(ours), tensors(theirs)
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        if one.numel():
            assert (one - other).abs().max() <= factor * other.abs().max()


# --- mmseg

SWIN = dict(embed_dims=8, depths=(1, 2, 4, 1), num_heads=(1, 1, 2, 2), window_size=4)
RESNET = dict(type='ResNetV1c', depth=18, base_channels=8, stem_channels=8)
VIT = dict(img_size=64, patch_size=8, embed_dims=32, num_heads=2, num_layers=5)
BACKBONES = {
    'swin': dict(type='SwinTransformer', **SWIN),
    'dynamic-swin': dict(type='mmdyn.DynamicSwin', **SWIN),
    'dynamic-convnext': dict(
        type='mmdyn.DynamicConvNeXt', arch=dict(depths=(1, 1, 4, 1), channels=CHANNELS)
    ),
    'dynamic-vit': dict(
        type='mmdyn.DynamicViT', out_indices=(1, 2, 3, 4), sparse_blocks=(1, 2, 3), **VIT
    ),
    'resnet': RESNET,
}
NORMS = {'BN': dict(type='BN'), 'SyncBN': dict(type='SyncBN'), 'GN': dict(type='GN', num_groups=2)}


def segmentor(backbone='swin', norm='BN', align_corners=False, neck=None, **head):
    """An EncoderDecoder, by default with a UPerHead."""
    init_default_scope('mmseg')
    from mmseg.registry import MODELS

    body = dict(BACKBONES[backbone])
    if backbone == 'resnet':
        body['norm_cfg'] = NORMS[norm]
    settings = dict(
        type='UPerHead',
        in_channels=[32] * 4 if backbone == 'dynamic-vit' else list(CHANNELS),
        in_index=[0, 1, 2, 3],
        channels=8,
        num_classes=5,
        norm_cfg=NORMS[norm],
        align_corners=align_corners,
    )
    model = dict(
        type='mmdyn.DynamicEncoderDecoder' if 'dynamic' in backbone else 'EncoderDecoder',
        data_preprocessor=dict(type='SegDataPreProcessor', size_divisor=32),
        backbone=body,
        decode_head=settings | head,
        train_cfg=dict(),
        test_cfg=dict(mode='whole'),
    )
    if neck is not None:
        model['neck'] = neck
    return MODELS.build(Config(model))


def semantic_fpn(norm='BN'):
    neck = dict(type='FPN', in_channels=list(CHANNELS), out_channels=8, num_outs=4)
    return segmentor(
        'resnet',
        norm,
        neck=neck | dict(norm_cfg=NORMS[norm]),
        type='FPNHead',
        in_channels=[8] * 4,
        feature_strides=[4, 8, 16, 32],
    )


def fcn(norm='BN'):
    return segmentor('resnet', norm, type='FCNHead', in_channels=64, in_index=3, num_convs=2)


SEGMENTORS = {
    **{f'upernet-{name}': lambda name=name: segmentor(name) for name in BACKBONES},
    'upernet-corners': lambda: segmentor(align_corners=True),
    **{f'upernet-{n}': lambda n=n: segmentor('resnet', n) for n in ('SyncBN', 'GN')},
    'upernet-bare': lambda: segmentor(norm_cfg=None),
    **{
        f'tiles-{ratio}': lambda ratio=ratio: segmentor(
            'dynamic-swin', type='mmdyn.DynamicUPerHead', tile_size=8, tile_ratio=ratio
        )
        for ratio in (0.0, 0.4, 1.0)
    },
    'tiles-corners': lambda: segmentor(
        'swin', align_corners=True, type='mmdyn.DynamicUPerHead', tile_size=4, tile_ratio=0.4
    ),
    **{f'semantic-fpn-{norm}': lambda norm=norm: semantic_fpn(norm) for norm in NORMS},
    **{f'fcn-{norm}': lambda norm=norm: fcn(norm) for norm in NORMS},
}


@pytest.mark.parametrize('name', SEGMENTORS)
def test_a_segmentor_has_the_same_logits_and_labels(name, algorithm):
    pytest.importorskip('mmseg')
    before, after = pair(SEGMENTORS[name]())
    for batch, height, width in SIZES:
        x = torch.randn(batch, 3, height, width)
        with torch.no_grad():
            theirs, ours = (model(x, mode='tensor') for model in (before, after))
        check_close(ours, theirs)
        assert (ours.argmax(1) == theirs.argmax(1)).float().mean() >= 0.9999


@pytest.mark.parametrize('name', ['upernet-swin', 'tiles-0.4', 'fcn-BN'])
def test_a_padded_batch_is_predicted_alike(name, algorithm):
    pytest.importorskip('mmseg')
    from tests.test_models.test_mmseg_adapter import batch

    before, after = pair(SEGMENTORS[name]())
    torch.manual_seed(0)
    data = before.data_preprocessor(batch([(64, 96), (50, 70), (96, 33)]), training=True)
    with torch.no_grad():
        theirs, ours = (model.predict(**copy.deepcopy(data)) for model in (before, after))
    for one, other in zip(ours, theirs, strict=True):
        check_close(one.seg_logits.data, other.seg_logits.data)
        same = one.pred_sem_seg.data == other.pred_sem_seg.data
        assert same.float().mean() >= 0.9999


# --- mmdet

FPN_NORMS = {
    'none': {},
    'BN': dict(norm_cfg=dict(type='BN'), act_cfg=dict(type='ReLU')),
    'SyncBN': dict(norm_cfg=dict(type='SyncBN')),
    'GN': dict(norm_cfg=dict(type='GN', num_groups=4)),
}


def detector(name, backbone='swin', norm='none', sparse=False):
    """A detector from mmdet's configs with a tiny backbone, optionally with our neck and RPN."""
    init_default_scope('mmdet')
    from mmdet.registry import MODELS

    from tests.test_models.test_dynamic_fpn import SPARSE
    from tests.test_models.test_mmdet_adapter import detector_cfg

    model = detector_cfg(name).model
    levels = model.backbone.out_indices
    body = dict(BACKBONES[backbone], out_indices=levels)
    if backbone == 'resnet':
        body |= dict(type='ResNet', out_indices=tuple(levels), norm_cfg=dict(type='BN'))
    model.backbone = body
    model.neck = dict(
        type='FPN', in_channels=[CHANNELS[i] for i in levels], out_channels=16, num_outs=5
    )
    model.neck.update(FPN_NORMS[norm])
    if name == 'RetinaNet':
        model.bbox_head.update(in_channels=16, feat_channels=16, stacked_convs=2, num_classes=3)
        if norm == 'GN':
            model.bbox_head.norm_cfg = FPN_NORMS[norm]['norm_cfg']
        if norm == 'SyncBN':  # a convolution for all levels, with a norm for each
            model.bbox_head.update(type='RetinaSepBNHead', num_ins=5, norm_cfg=dict(type='SyncBN'))
    else:
        model.rpn_head.update(in_channels=16, feat_channels=16)
        model.roi_head.bbox_roi_extractor.out_channels = 16
        model.roi_head.mask_roi_extractor.out_channels = 16
        model.roi_head.bbox_head.update(in_channels=16, num_classes=3)
        model.roi_head.mask_head.update(in_channels=16, conv_out_channels=16, num_classes=3)
        if sparse:
            model.neck.update(SPARSE['neck'])
            model.rpn_head.update(SPARSE['rpn_head'])
    return MODELS.build(model)


DETECTORS = {
    'mask-rcnn': lambda: detector('MaskRCNN'),
    'mask-rcnn-resnet': lambda: detector('MaskRCNN', 'resnet', 'BN'),
    'mask-rcnn-ours': lambda: detector('MaskRCNN', 'dynamic-swin', sparse=True),
    'mask-rcnn-ours-BN': lambda: detector('MaskRCNN', 'dynamic-convnext', 'BN', sparse=True),
    'retinanet-resnet': lambda: detector('RetinaNet', 'resnet', 'BN'),
    'retinanet-GN': lambda: detector('RetinaNet', 'dynamic-swin', 'GN'),
    'retinanet-SepBN': lambda: detector('RetinaNet', 'swin', 'SyncBN'),
}


def maps_of(model, x):
    """The neck's maps, and outputs of the first head."""
    feats = model.extract_feat(x)
    head = getattr(model, 'rpn_head', None) or model.bbox_head
    return [*feats, head(feats)]


@pytest.mark.parametrize('name', DETECTORS)
def test_a_detector_has_the_same_maps_and_boxes(name, algorithm):
    pytest.importorskip('mmdet')
    from tests.test_models.test_mmdet_adapter import batch

    before, after = pair(DETECTORS[name]())
    for shapes in ([(3, 64, 96)], [(3, 70, 97), (3, 96, 64)]):
        torch.manual_seed(0)
        data = batch(before, shapes, training=False)
        with torch.no_grad():
            check_close(maps_of(after, data['inputs']), maps_of(before, data['inputs']))
            theirs, ours = (
                [r.pred_instances for r in model(**copy.deepcopy(data), mode='predict')]
                for model in (before, after)
            )
        for one, other in zip(ours, theirs, strict=True):
            assert len(one) == len(other) > 0
            assert torch.equal(one.labels, other.labels)
            check_close([one.bboxes, one.scores], [other.bboxes, other.scores])
            if 'masks' in one:
                assert (one.masks == other.masks).float().mean() >= 0.9999


# --- what is not replaced


def test_weights_are_not_copied(direct):
    model = segmentor(norm='GN')
    kept = {name: value.data_ptr() for name, value in model.named_parameters()}
    names = list(model.state_dict())
    prepare_for_inference(model)
    assert {name: value.data_ptr() for name, value in model.named_parameters()} == kept
    assert list(model.state_dict()) == names


@pytest.mark.parametrize(
    'head',
    [
        dict(conv_cfg=dict(type='ConvWS')),  # normalises its kernel in every call
        dict(conv_cfg=dict(type='Conv2d')),
        dict(act_cfg=dict(type='LeakyReLU')),
        dict(in_channels=list(CHANNELS[:2]), in_index=[0, 1], pool_scales=(1, 2)),
        dict(in_channels=[CHANNELS[3]], in_index=[3]),
    ],
)
def test_a_head_with_other_layers(head, algorithm):
    pytest.importorskip('mmseg')
    before, after = pair(segmentor(**head))
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        check_close(after(x), before(x))


class Layers(nn.Module):
    """Convolutions and norms that must not be replaced."""

    def __init__(self):
        super().__init__()
        norm = dict(type='BN')
        orders = dict(
            first=('norm', 'conv', 'act'),
            between=('conv', 'act', 'norm'),
            last=('conv', 'norm', 'act'),
        )
        for name, order in orders.items():
            setattr(self, name, ConvModule(8, 8, 3, padding=1, norm_cfg=norm, order=order))
        self.spectral = ConvModule(8, 8, 3, padding=1, norm_cfg=norm, with_spectral_norm=True)
        self.reflect = ConvModule(8, 8, 3, padding=1, norm_cfg=norm, padding_mode='reflect')
        self.lean = ConvModule(8, 8, 3, padding=1, norm_cfg=norm, efficient_conv_bn_eval=True)
        self.conv = nn.Conv2d(8, 8, 3, padding='same')
        self.batch_norm = nn.BatchNorm2d(8, track_running_stats=False)
        self.one, self.one_norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.two, self.two_norm = self.one, nn.BatchNorm2d(8)
        self.fewer, self.norm = nn.Conv2d(8, 5, 1), nn.BatchNorm2d(8, affine=False)
        self.strided = nn.Sequential(
            nn.Conv2d(8, 8, 3, stride=2, groups=2, bias=False), nn.BatchNorm2d(8)
        )
        self.dilated = nn.Conv2d(8, 8, 3, padding=2, dilation=2)
        self.valid = nn.Conv2d(8, 8, 3)

    def forward(self, x):
        for layer in (self.first, self.between, self.last, self.spectral, self.reflect, self.lean):
            x = layer(x)
        x = self.batch_norm(self.conv(x))
        x = self.two_norm(self.two(self.one_norm(self.one(x))))
        return self.fewer(self.norm(x)), self.strided(x), self.valid(self.dilated(x))


def test_layers_that_are_no_plain_ones(algorithm):
    before, after = pair(Layers())
    for x in (
        torch.randn(2, 8, 17, 13),
        torch.randn(1, 8, 8, 9).to(memory_format=torch.channels_last),
    ):
        with torch.no_grad():
            check_close(after(x), before(x))


def test_empty_batches_and_single_maps(algorithm):
    layers = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 3, 1), nn.Linear(5, 2))
    before, after = pair(layers)
    for shape in ((0, 4, 5, 5), (4, 5, 5), (1, 4, 1, 5)):
        with torch.no_grad():
            check_close(after(torch.ones(shape)), before(torch.ones(shape)))


def test_prepared_twice_it_stays_the_same(direct):
    before, after = pair(build('head'))
    kinds = [type(module) for module in after.modules()]
    assert prepare_for_inference(after) is after
    assert [type(module) for module in after.modules()] == kinds
    x = images_for('head', 1, 64, 96)
    with torch.no_grad():
        check_close(after(x), before(x))


def test_training_and_other_weights_are_refused():
    _, model = pair(build('convnext'))
    model.eval()
    model.train(False)
    for whole in (model, nn.Sequential(model), copy.deepcopy(model)):
        with pytest.raises(ValueError, match=r'prepared for inference.*load its checkpoint'):
            whole.train()
    with pytest.raises(ValueError, match='can not load other weights'):
        model.load_state_dict(model.state_dict())


def test_a_bare_backbone_of_the_hosts(direct):
    pytest.importorskip('mmseg')
    from mmseg.models import SwinTransformer

    before, after = pair(SwinTransformer(**SWIN))  # whose eval() returns None
    x = torch.randn(1, 3, 50, 70)
    with torch.no_grad():
        check_close(after(x), before(x))


def test_it_measures_by_itself():
    before, after = pair(build('head'))
    x = images_for('head', 1, 64, 96)
    with torch.no_grad():
        check_close(after(x), before(x))
    assert mmdyn.prepare_for_inference is prepare_for_inference


# --- copies, devices, dtypes, graphs

PARTS = ['swin', 'convnext', 'vit', 'vit_fast_path', 'head', 'detector']


def prepared_part(part):
    before, after = pair(build(part))
    x = images_for(part, 2, 64, 96)
    with torch.no_grad():
        expected = before(x)
        check_close(after(x), expected)
    return after, x, expected


def stored(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize('part', PARTS)
@pytest.mark.parametrize('again', [copy.deepcopy, stored, lambda model: model.to('cpu')])
def test_copies_compute_the_same(part, again, winograd):
    model, x, expected = prepared_part(part)
    model = again(model)
    with torch.no_grad():
        check_close(model(x), expected)


def test_a_copy_has_packed_weights_of_its_own(direct):
    layer = PackedLinear(nn.Linear(4, 3))
    x = torch.randn(2, 4)
    with torch.no_grad():
        layer(x)
        other = copy.deepcopy(layer)
        other.weight.zero_()
        torch.testing.assert_close(other(x), other.bias.expand(2, -1))


@pytest.mark.parametrize('part', PARTS)
def test_on_other_devices_and_in_other_dtypes_layers_are_plain(part, winograd):
    model, x, expected = prepared_part(part)

    def run(model, x, **kind):
        with torch.no_grad():
            return model.to(**kind)(tree_map(lambda one: one.to(**kind), x))

    double = run(copy.deepcopy(model), x, dtype=torch.float64)
    assert all(one.dtype == torch.float64 for one in tensors(double))
    check_close(tree_map(torch.Tensor.float, tensors(double)), expected)
    half = run(copy.deepcopy(model), x, dtype=torch.bfloat16)
    assert all(one.isfinite().all() for one in tensors(half))
    shapes = [one.shape for one in tensors(expected)]
    meta = run(copy.deepcopy(model), x, device='meta')
    assert [one.shape for one in tensors(meta)] == shapes
    check_close(run(model, x, dtype=torch.float32), expected)


@pytest.mark.parametrize('part', ['swin', 'convnext', 'vit', 'detector'])
def test_autocast_and_gradients_go_through_plain_layers(part, winograd):
    model, x, expected = prepared_part(part)
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        assert all(one.isfinite().all() for one in tensors(model(x)))
    x = tree_map(lambda one: one.clone().requires_grad_(), x)
    out = tensors(model(x))
    check_close(out, expected)
    sum(one.square().sum() for one in out).backward()
    assert all(one.grad.isfinite().all() and one.grad.any() for one in tensors(x))
    with torch.inference_mode():
        check_close(model(tree_map(torch.Tensor.detach, x)), expected)


@pytest.mark.parametrize('part', PARTS)
def test_graphs_hold_plain_layers(part, winograd):
    model, x, expected = prepared_part(part)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = model(tree_map(mode.from_tensor, x))
    assert [one.shape for one in tensors(fake)] == [one.shape for one in tensors(expected)]
    with torch.no_grad():
        check_close(torch.jit.trace(model, (x,), check_trace=False)(x), expected)


@needs_whole_graphs
@pytest.mark.parametrize('part', ['convnext', 'head', 'detector'])
def test_whole_graphs_hold_plain_layers(part, winograd):
    torch._dynamo.reset()
    model, x, expected = prepared_part(part)
    with torch.no_grad():
        check_close(torch.compile(model, fullgraph=True, backend='eager')(x), expected)
        program = torch.export.export(model, (x,))
        check_close(program.module()(x), expected)
    assert not any('mkldnn' in str(node.target) for node in program.graph.nodes)


@needs_whole_graphs
@pytest.mark.parametrize('name', ['upernet-swin', 'semantic-fpn-BN', 'fcn-BN'])
def test_graphs_of_stock_segmentors(name, winograd):
    pytest.importorskip('mmseg')
    before, after = pair(SEGMENTORS[name]())
    x = torch.randn(1, 3, 50, 70)
    with torch.no_grad():
        expected = before(x)
        check_close(torch.jit.trace(after, (x,), check_trace=False)(x), expected)
        check_close(torch.export.export(after, (x,)).module()(x), expected)


def test_a_norm_with_an_activation_inside_stays():
    layers = pytest.importorskip('timm.layers')
    torch.manual_seed(0)
    model = liven(nn.Sequential(nn.Conv2d(4, 6, 3), layers.BatchNormAct2d(6))).eval()
    x = torch.randn(2, 4, 9, 9)
    expected = model(x).detach()
    torch.testing.assert_close(prepare_for_inference(model)(x), expected)


def test_another_precision_afterwards_is_refused():
    model = prepare_for_inference(nn.Sequential(nn.Linear(4, 4)))
    assert prepare_for_inference(model) is model
    with pytest.raises(ValueError, match='prepared in float32'):
        prepare_for_inference(model, 'bfloat16')


def test_parts_of_a_prepared_model_load_no_other_weights():
    model = prepare_for_inference(nn.Sequential(nn.Linear(4, 4)))
    with pytest.raises(ValueError, match='build a new one'):
        model[0].load_state_dict(model[0].state_dict())
