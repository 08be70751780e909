"""DynamicEncoderDecoder in mmseg."""

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData

pytest.importorskip('mmseg')

from mmseg.models import CascadeEncoderDecoder, DepthEstimator, EncoderDecoder
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import nn

from mmdyn.models import DynamicSwin, losses
from mmdyn.models.adapters import adapter_of, check_adapted, use_adapter
from mmdyn.models.adapters.mmseg import WeightedCrossEntropyLoss
from mmdyn.models.losses import known_pixels
from mmdyn.models.shapes import real_shapes

BACKBONE = dict(
    type='mmdyn.DynamicSwin',
    embed_dims=16,
    depths=(1, 1, 5, 1),
    num_heads=(1, 2, 4, 8),
    drop_path_rate=0.0,
)


def segmentor_cfg(**kwargs):
    settings = dict(
        type='mmdyn.DynamicEncoderDecoder',
        data_preprocessor=dict(type='SegDataPreProcessor', size=(96, 96), seg_pad_val=255),
        backbone=dict(BACKBONE),
        decode_head=dict(
            type='UPerHead',
            in_channels=[16, 32, 64, 128],
            in_index=[0, 1, 2, 3],
            channels=16,
            num_classes=4,
            align_corners=False,
        ),
        train_cfg=dict(),
        test_cfg=dict(mode='whole'),
    )
    return {**settings, **kwargs}


@pytest.fixture
def build():
    init_default_scope('mmseg')

    def make(**kwargs):
        torch.manual_seed(0)
        model = MODELS.build(config_of(**kwargs).model)
        model.init_weights()
        return model

    return make


def batch(shapes=((96, 96), (96, 96))):
    samples = []
    for hw in shapes:
        sample = SegDataSample(gt_sem_seg=PixelData(data=torch.randint(0, 4, (1, *hw))))
        sample.set_metainfo(dict(img_shape=hw, ori_shape=hw, pad_shape=hw))
        samples.append(sample)
    images = [torch.randint(0, 255, (3, *hw), dtype=torch.uint8) for hw in shapes]
    return dict(inputs=images, data_samples=samples)


def losses_of(model, shapes=((96, 96), (96, 96))):
    return model(**model.data_preprocessor(batch(shapes), training=True), mode='loss')


def config_of(**kwargs):
    return Config(dict(model=segmentor_cfg(**kwargs), default_scope='mmseg'))


def test_loss_holds_the_ratio_loss_and_logs_the_kept_fractions(build):
    model = build().train()
    losses = losses_of(model)
    assert {'decode.loss_ce', 'loss_keep_ratio'} <= set(losses)
    fractions = [losses[f'keep_ratio_{i}'] for i in range(3)]
    assert all(0 < f < 1 and not f.requires_grad for f in fractions)
    total, logged = model.parse_losses(losses)
    expected = losses['decode.loss_ce'] + losses['loss_keep_ratio']
    torch.testing.assert_close(total, expected)
    assert 'keep_ratio_0' in logged
    total.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_losses_are_the_hosts_at_ratio_one(build):
    ones = dict(BACKBONE, keep_ratios=(1.0, 1.0, 1.0))
    sparse = build(backbone=ones).eval()
    dense = build(type='EncoderDecoder', backbone=dict(BACKBONE, type='SwinTransformer'))
    loaded = sparse.load_state_dict(dense.state_dict(), strict=False)
    assert all('predictors.' in k or 'fast_path' in k for k in loaded.missing_keys)
    dense.backbone.eval(), dense.eval()
    torch.manual_seed(0)
    data = dense.data_preprocessor(batch(), training=True)
    with torch.no_grad():
        ours, theirs = (m(**data, mode='loss')['decode.loss_ce'] for m in (sparse, dense))
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        logits = [m(data['inputs'], mode='tensor') for m in (sparse, dense)]
    torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('mode', ['whole', 'slide'])
def test_predict_gives_maps_of_the_original_size(build, mode):
    test_cfg = dict(mode=mode)
    if mode == 'slide':
        test_cfg.update(crop_size=(64, 64), stride=(48, 48))
    model = build(test_cfg=test_cfg, data_preprocessor=dict(type='SegDataPreProcessor')).eval()
    with torch.no_grad():
        results = model.test_step(batch([(96, 80)]))
    assert results[0].pred_sem_seg.shape == (96, 80)
    # 6x5 locations in the whole image, 4x4 in a window.
    expected = [int(n * r) / n for n in (16 if mode == 'slide' else 30,) for r in (0.7, 0.5, 0.3)]
    assert results[0].kept_fractions == pytest.approx(expected)


def test_shapes_that_say_nothing_about_the_batch_are_not_used():
    shapes = [dict(img_shape=(64, 32, 3)), dict(img_shape=(10, 64))]
    assert real_shapes(shapes, 2, (64, 64)) == [(64, 32), (10, 64)]
    assert real_shapes([dict(img_shape=(64, 64)), dict(img_shape=(65, 64))], 2, (64, 64)) is None
    assert real_shapes([dict(), dict()], 2, (64, 64)) is None


def test_a_dense_backbone_is_refused(build):
    with pytest.raises(TypeError, match=r'mmdyn\.DynamicSwin, got SwinTransformer'):
        build(backbone=dict(BACKBONE, type='SwinTransformer'))


@pytest.mark.parametrize(
    'model',
    [
        segmentor_cfg(type='EncoderDecoder', backbone=dict(type='SwinTransformer')),
        segmentor_cfg(type='SomethingElse'),
        segmentor_cfg(),
        dict(type='EncoderDecoder'),
    ],
)
def test_use_adapter_leaves_everything_else_alone(model):
    cfg = Config(dict(model=model))
    assert use_adapter(cfg) is None
    assert cfg.model.type == model['type']


@pytest.mark.parametrize(
    ('stock', 'backbone'),
    [
        ('EncoderDecoder', 'mmdyn.DynamicSwin'),
        ('mmseg.EncoderDecoder', DynamicSwin),
        (EncoderDecoder, 'mmdyn.models.DynamicSwin'),
        ('mmseg.models.EncoderDecoder', 'mmdyn.DynamicSwin'),
    ],
)
def test_use_adapter_replaces_a_stock_model_and_says_so(build, stock, backbone):
    cfg = config_of(type=stock, backbone=dict(BACKBONE, type=backbone))
    assert 'mmdyn.DynamicEncoderDecoder' in use_adapter(cfg)
    assert type(MODELS.build(cfg.model)) is adapter_of(EncoderDecoder)
    assert use_adapter(cfg) is None


class Own(EncoderDecoder):
    """A custom segmentor that inherits how images are read."""


class Upscaling(EncoderDecoder):
    """One that reads the images itself."""

    def encode_decode(self, inputs, batch_img_metas):
        return super().encode_decode(inputs.float(), batch_img_metas)


@MODELS.register_module(name='TestsSwin')
class OwnSwin(DynamicSwin):
    """A custom backbone."""


@MODELS.register_module()
class TestsBody(nn.Module):
    """A custom backbone with a sparse one inside."""

    __test__ = False

    def __init__(self, frozen):
        super().__init__()
        self.body = DynamicSwin(**{k: v for k, v in BACKBONE.items() if k != 'type'})
        self.body.requires_grad_(not frozen)

    def forward(self, x):
        return self.body(x)


def test_a_segmentor_of_ones_own_is_adapted_if_it_can_be(build):
    cfg = config_of(type=Own, backbone=dict(BACKBONE, type='TestsSwin'))
    assert 'Own' in use_adapter(cfg)
    # As read from a dumped config: the class is in no registry.
    cfg = Config.fromstring(cfg.pretty_text, '.py')
    assert use_adapter(cfg) is None
    model = MODELS.build(cfg.model).train()
    assert isinstance(model, Own) and isinstance(model.backbone, OwnSwin)
    assert losses_of(model)['loss_keep_ratio'] > 0


@pytest.mark.parametrize(
    'stock', [Upscaling, DepthEstimator, 'MultimodalEncoderDecoder', nn.Conv2d]
)
def test_a_segmentor_that_cannot_be_adapted_is_refused_by_name(build, stock):
    cfg = config_of(type=stock)
    with pytest.raises(ValueError, match=getattr(stock, '__name__', stock)):
        use_adapter(cfg)
    assert use_adapter(cfg, training=False) is None  # results need no ratio loss
    assert cfg.model.type == stock


@pytest.mark.parametrize('place', ['auxiliary_head', 'neck', 'segmentor'])
def test_a_sparse_backbone_elsewhere_is_refused_with_its_place(build, place):
    dense = dict(type='SwinTransformer')
    model = segmentor_cfg(type='EncoderDecoder', backbone=dense)
    cfg = Config(dict(model={**model, place: [dict(body=BACKBONE)]}, default_scope='mmseg'))
    with pytest.raises(ValueError, match=rf'model\.{place}\.0\.body'):
        use_adapter(cfg)
    cfg = Config(dict(model={**model, 'teacher_model': dict(backbone=BACKBONE)}))
    assert use_adapter(cfg) is None


@pytest.mark.parametrize('frozen', [True, False])
def test_a_backbone_that_a_class_builds_by_itself_is_found(build, frozen):
    hidden = dict(type='TestsBody', frozen=frozen)
    model = build(type='EncoderDecoder', backbone=hidden)
    assert use_adapter(config_of(type='EncoderDecoder', backbone=hidden)) is None
    if frozen:
        check_adapted(model)
        return
    with pytest.raises(ValueError, match=r'EncoderDecoder .*model\.backbone\.body'):
        check_adapted(model)
    check_adapted(build())
    # A class that declares that it adds the loss itself is accepted by both.
    careful = type('Careful', (EncoderDecoder,), dict(adds_keep_ratio_loss=True))
    cfg = config_of(type=careful)
    assert use_adapter(cfg) is None
    check_adapted(MODELS.build(cfg.model))


def cascade(last, **kwargs):
    first = dict(segmentor_cfg()['decode_head'], type='FPNHead', feature_strides=[4, 8, 16, 32])
    heads = dict(
        OCRHead=dict(in_channels=16, in_index=0, channels=16, ocr_channels=8),
        PointHead=dict(in_channels=[16], in_index=[0], channels=16, num_fcs=1),
    )
    settings = dict(
        type='CascadeEncoderDecoder',
        num_stages=2,
        decode_head=[first, dict(heads[last], type=last, num_classes=4, align_corners=False)],
        train_cfg=dict(num_points=32, oversample_ratio=3, importance_sample_ratio=0.75),
        test_cfg=dict(mode='whole', subdivision_steps=1, subdivision_num_points=32, scale_factor=2),
    )
    return settings | kwargs


@pytest.mark.parametrize('last', ['OCRHead', 'PointHead'])
def test_a_cascade_of_heads_trains_and_predicts(build, last):
    cfg = config_of(**cascade(last))
    assert 'mmdyn.DynamicCascadeEncoderDecoder' in use_adapter(cfg)
    model = MODELS.build(cfg.model)
    assert isinstance(model, CascadeEncoderDecoder)
    model.init_weights()
    model.train()
    losses = losses_of(model)
    assert losses['loss_keep_ratio'] > 0
    assert any(name.startswith('decode_1.') for name in losses)
    model.parse_losses(losses)[0].backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    model.eval()
    for size, test_cfg in ((96, {}), (64, dict(mode='slide', crop_size=(64, 64), stride=(32, 32)))):
        model.test_cfg.update(test_cfg)
        with torch.no_grad():
            results = model.test_step(batch())
        assert results[0].pred_sem_seg.shape == (96, 96)
        locations = (size // 16) ** 2
        expected = [int(locations * ratio) / locations for ratio in (0.7, 0.5, 0.3)]
        assert results[0].kept_fractions == pytest.approx(expected)


def test_a_cascade_learns_features_of_a_teacher_and_no_logits(build):
    settings = cascade('OCRHead', type='mmdyn.DynamicCascadeEncoderDecoder', teacher='self')
    with pytest.raises(ValueError, match='logit_distill_loss=None'):
        build(**settings)
    model = build(**settings, logit_distill_loss=None).train()
    losses = losses_of(model)
    assert losses['loss_distill_feature'] > 0


DPT = dict(
    type='DPTHead',
    in_channels=[16, 32, 64, 128],
    in_index=[0, 1, 2, 3],
    input_transform='multiple_select',
    channels=16,
    embed_dims=16,
    post_process_channels=[8, 8, 16, 16],
    num_classes=4,
    align_corners=False,
)
BRANCHES = dict(in_channels=128, channels=16, num_classes=4)


@pytest.mark.parametrize(
    'head',
    [dict(DPT, readout_type='ignore'), dict(DPT, readout_type='project')]
    + [dict(BRANCHES, type='DDRHead'), dict(BRANCHES, type='PIDHead')],
    ids=lambda head: head['type'],
)
def test_a_head_that_was_made_for_another_backbone_is_refused(build, head):
    with pytest.raises(ValueError, match=f'{head["type"]} needs the outputs of its own backbone'):
        build(decode_head=head)


class OwnForward(EncoderDecoder):
    """A segmentor whose training bypasses ``loss``."""

    def forward(self, inputs, data_samples=None, mode='tensor'):
        if mode == 'loss':
            return self._decode_head_forward_train(self.extract_feat(inputs), data_samples)
        return super().forward(inputs, data_samples, mode)


class OwnLoss(adapter_of(EncoderDecoder)):
    """One of ours whose losses bypass ours."""

    def loss(self, inputs, data_samples):
        return self._decode_head_forward_train(self.extract_feat(inputs), data_samples)


@pytest.mark.parametrize('own', [OwnForward, OwnLoss])
def test_losses_without_the_ratio_loss_are_refused(build, own):
    model = build(type=adapter_of(own)).train()
    data = model.data_preprocessor(batch(), training=True)
    with pytest.raises(ValueError, match=f'{own.__name__} would train'):
        model(**data, mode='loss')
    model.adds_keep_ratio_loss = True
    assert 'decode.loss_ce' in model(**data, mode='loss')
    with torch.no_grad():
        assert len(model.eval()(**data, mode='predict')) == 2


def fcn(index):
    return dict(
        type='FCNHead',
        in_channels=16 << index,
        in_index=index,
        channels=8,
        num_classes=4,
        kernel_size=1,
    )


@pytest.mark.parametrize('what', ['OCRHead', 'SETRMLAHead', 'MLANeck'])
def test_what_needs_maps_of_one_size_is_refused_for_a_pyramid(build, what):
    ocr = dict(
        type='OCRHead', in_channels=128, in_index=3, channels=8, ocr_channels=8, num_classes=4
    )
    # As in mmseg's configs for ResNets, whose last stages have the same size.
    settings = cascade('OCRHead', decode_head=[fcn(2), ocr])
    settings['type'] = 'mmdyn.DynamicCascadeEncoderDecoder'
    mla = dict(
        type='SETRMLAHead',
        in_channels=[16, 32, 64, 128],
        in_index=[0, 1, 2, 3],
        channels=16,
        mla_channels=4,
        num_classes=4,
    )
    if what == 'SETRMLAHead':
        settings = dict(decode_head=mla)
    elif what == 'MLANeck':
        neck = dict(type='MLANeck', in_channels=[16, 32, 64, 128], out_channels=8)
        settings = dict(neck=neck, decode_head=dict(mla, in_channels=[8] * 4))
    with pytest.raises(ValueError, match=f'{what} needs the maps'):
        build(**settings)
    vit = dict(
        type='mmdyn.DynamicViT',
        img_size=(96, 96),
        patch_size=16,
        embed_dims=16,
        num_heads=2,
        num_layers=12,
        out_indices=(2, 5, 8, 11),
    )
    if what == 'OCRHead':
        settings['decode_head'] = [dict(fcn(0), in_index=2), dict(ocr, in_channels=16)]
    else:
        part = settings['neck' if what == 'MLANeck' else 'decode_head']
        part['in_channels'] = [16] * 4
    build(**settings, backbone=vit)(torch.randn(2, 3, 96, 96), mode='tensor')


def test_the_same_samples_may_be_predicted_on_again(build):
    model = build().eval()
    data = model.data_preprocessor(batch(), training=False)
    with torch.no_grad():
        first, second = (
            [sample.kept_fractions for sample in model(**data, mode='predict')] for _ in range(2)
        )
    assert first == second and len(first[0]) == 3


def test_a_head_that_needs_contiguous_maps_gets_them(build):
    last = dict(in_channels=128, in_index=3, channels=16, num_classes=4, align_corners=False)
    psa = dict(last, type='PSAHead', mask_size=(3, 3), psa_type='bi-direction')
    views = dict(last, type='DMHead', filter_sizes=(1, 3))
    for parts, contiguous in (
        ({}, False),
        (dict(decode_head=psa), True),
        (dict(decode_head=views), True),
    ):
        model = build(**parts).eval()
        with torch.no_grad():
            extracted, _ = model.extract_sparse(torch.randn(2, 3, 96, 96), [])
            model(torch.randn(2, 3, 96, 96), mode='tensor')
        # The last map, (2, 128, 3, 3), looks contiguous in only one of the layouts.
        assert extracted.feats[-1].is_contiguous() is contiguous


def test_class_weights_and_ignored_pixels_average_as_torchs_do():
    torch.manual_seed(0)
    weights = [1.0, 3.0, 0.5, 2.0]
    logits = torch.randn(2, 4, 5, 7, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(4, (2, 5, 7))
    labels[:, :2] = 255
    loss = WeightedCrossEntropyLoss(weights, loss_weight=0.5)
    ours = loss(logits, labels, ignore_index=255)
    theirs = 0.5 * torch.nn.functional.cross_entropy(
        logits, labels, logits.new_tensor(weights), ignore_index=255
    )
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(value, logits)[0] for value in (ours, theirs)]
    torch.testing.assert_close(*gradients)
    assert loss(logits, torch.full_like(labels, 255), ignore_index=255) == 0
    with pytest.raises(ValueError, match='use_sigmoid'):
        WeightedCrossEntropyLoss(weights, use_sigmoid=True)


CONVNEXT = dict(
    type='mmdyn.DynamicConvNeXt',
    arch=dict(depths=(1, 1, 5, 1), channels=(16, 32, 64, 128)),
    layer_scale_init_value=1.0,
)
VIT = dict(
    type='mmdyn.DynamicViT', img_size=64, embed_dims=16, num_layers=4, num_heads=2, patch_size=16
)


def vit_parts():
    """A plain ViT with a neck that makes maps of strides 4 to 32."""
    head = segmentor_cfg()['decode_head'] | dict(in_channels=[16] * 4)
    neck = dict(type='MultiLevelNeck', in_channels=[16] * 4, out_channels=16, scales=[4, 2, 1, 0.5])
    return dict(backbone=VIT, neck=neck, decode_head=head)


@pytest.mark.parametrize('fine_stride', [4, 8])
@pytest.mark.parametrize(
    'parts', [{}, dict(backbone=CONVNEXT), vit_parts()], ids=['swin', 'convnext', 'vit']
)
def test_tiles_and_known_logits_are_those_of_the_image_alone(build, parts, fine_stride):
    head = parts.get('decode_head', segmentor_cfg()['decode_head'])
    model = build(
        **parts | dict(decode_head=head | dict(
            type='mmdyn.DynamicUPerHead', tile_ratio=0.5, tile_size=4, coarse_stride=16,
            fine_stride=fine_stride,
        )),
    ).eval()  # fmt: skip
    head = model.decode_head
    for hw in [(65, 75), (66, 97), (130, 33)]:
        image = torch.randn(1, 3, *hw)
        padded = torch.nn.functional.pad(image, (0, 130 - hw[1], 0, 130 - hw[0]))
        inputs = torch.cat([padded, torch.randn(1, 3, 130, 130)])
        samples = batch([(130, 130), (130, 130)])['data_samples']
        samples[0].set_metainfo(dict(img_shape=hw))
        samples[0].gt_sem_seg.data[:, hw[0] :], samples[0].gt_sem_seg.data[..., hw[1] :] = 255, 255
        with torch.no_grad():
            alone, _ = model.extract_sparse(image, [dict(img_shape=hw)])
            beside, _ = model.extract_sparse(inputs, [sample.metainfo for sample in samples])
            single, both = (head.forward_sparse(extracted.feats) for extracted in (alone, beside))
        (decision,), (expected,) = both.decisions, single.decisions
        real = decision.valid_mask[0].view(decision.hw)
        rows, columns = expected.hw
        assert real.sum() == rows * columns and real[:rows, :columns].all()
        assert decision.valid_mask[1].all()
        size = tuple(both.feats[0].shape[-2:])
        known = known_pixels(samples, size, 255, head.fine_shapes(beside.feats, None))
        rows, columns = single.feats[0].shape[-2:]
        assert known[0].view(size).sum() == rows * columns
        assert known[0].view(size)[:rows, :columns].all() and known[1].all()


def test_the_features_that_are_distilled_are_those_of_the_image_alone(build, monkeypatch):
    seen = []
    loss = losses.feature_distill_loss
    monkeypatch.setattr(
        losses, 'feature_distill_loss', lambda *args: seen.append(args[2]) or loss(*args)
    )
    model = build(
        backbone=CONVNEXT, teacher='self', logit_distill_loss=None,
        data_preprocessor=dict(type='SegDataPreProcessor', size=(175, 140), seg_pad_val=255),
    ).train()  # fmt: skip
    # Maps of 10x8, 10x4 and 4x4 at stride 16; of 5x4, 5x2 and 2x2 at stride 32.
    shapes = [(175, 140), (163, 79), (65, 75)]
    losses_of(model, shapes)
    (mask,) = seen
    assert mask.sum(1).tolist() == [20, 10, 4]
    assert mask[2].view(5, 4).nonzero().amax(0).tolist() == [1, 1]


def test_a_batch_that_ends_inside_of_a_location_is_padded_all_the_same(build):
    model = build(decode_head=dict(
        segmentor_cfg()['decode_head'], type='mmdyn.DynamicUPerHead', tile_ratio=0.5, tile_size=4,
    ))  # fmt: skip
    metas = [dict(img_shape=(130, 130)), dict(img_shape=(70, 75))]
    finest = torch.zeros(2, 16, 32, 32)  # from a backbone that rounds down
    assert model.decode_head.shapes_of(metas, finest) == [(130, 130), (70, 75)]
    assert model.decode_head.shapes_of(metas, finest[..., :31]) is None
