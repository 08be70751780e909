"""Sparse backbones in mmdet's detectors."""

from copy import deepcopy

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

import mmdyn  # noqa: F401, registers the config look-up

pytest.importorskip('mmdet')

from mmdet.models import MaskRCNN
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.testing import demo_mm_inputs

from mmdyn.config_lookup import resolve_config_path
from mmdyn.models.adapters import adapter_of, check_adapted, use_adapter

BACKBONE = dict(
    type='mmdyn.DynamicSwin',
    embed_dims=8,
    depths=(1, 1, 5, 1),
    num_heads=(1, 1, 2, 4),
    window_size=4,
    drop_path_rate=0.0,
)
CONFIGS = {
    'MaskRCNN': 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    'CascadeRCNN': 'cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py',
    'RetinaNet': 'retinanet/retinanet_r50_fpn_1x_coco.py',
    'DeformableDETR': 'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
}


def detector_cfg(name, **changes):
    """mmdet's config with a tiny backbone, narrowed for speed."""
    cfg = Config.fromfile(resolve_config_path(f'mmdet::{CONFIGS[name]}'))
    model = cfg.model
    levels = model.neck.in_channels
    model.backbone = dict(BACKBONE, out_indices=tuple(range(4 - len(levels), 4)))
    model.neck.in_channels = [8 * 2**i for i in model.backbone.out_indices]
    heads = model.get('roi_head', {}).get('bbox_head', [])
    for head in heads if isinstance(heads, list) else [heads]:
        head.fc_out_channels = 16
    if 'roi_head' in model:
        model.roi_head.mask_head.num_convs = 1
        model.train_cfg.rpn_proposal.max_per_img = model.test_cfg.rpn.max_per_img = 100
        model.test_cfg.rcnn.max_per_img = 20
    model.update(changes)
    return cfg


def build(name='MaskRCNN', adapt=True, backbone=None, **changes):
    init_default_scope('mmdet')
    cfg = detector_cfg(name, **changes)
    cfg.model.backbone.update(backbone or {})
    if adapt:
        assert f'mmdyn.Dynamic{name}' in use_adapter(cfg)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    return model


def batch(model, shapes=([3, 96, 64], [3, 64, 96]), training=True):
    data = demo_mm_inputs(len(shapes), list(shapes), num_classes=80, with_mask=True)
    return model.data_preprocessor(data, training)


@pytest.mark.parametrize('name', CONFIGS)
def test_any_detector_trains_and_predicts_with_the_same_losses_and_figures(name):
    model = build(name).train()
    data = batch(model)
    losses = model(**data, mode='loss')
    assert losses['loss_keep_ratio'] > 0
    assert all(0 < losses[f'keep_ratio_{i}'] < 1 for i in range(3))
    total, _ = model.parse_losses(losses)
    total.backward()
    new = [p.grad for n, p in model.named_parameters() if 'predictors' in n or 'fast_path' in n]
    assert new and all(grad is not None and grad.isfinite().all() for grad in new)
    # 96x96 after padding; 6x4 and 4x6 locations are real.
    results = model.eval()(**batch(model, training=False), mode='predict')
    expected = [int(24 * ratio) / 24 for ratio in (0.7, 0.5, 0.3)]
    assert [r.kept_fractions for r in results] == [pytest.approx(expected)] * 2


def raw_outputs(model, images):
    """FPN maps, RPN scores and RPN boxes of the first image, before any selection."""
    samples = [DetDataSample(metainfo=dict(img_shape=tuple(i.shape[1:]))) for i in images]
    data = model.data_preprocessor(dict(inputs=list(images), data_samples=samples), False)
    inputs, metas = data['inputs'], [sample.metainfo for sample in data['data_samples']]
    with torch.no_grad():
        if hasattr(model, 'extract_sparse'):
            feats = model.extract_sparse(inputs, metas)[0].feats
        else:
            feats = model.extract_feat(inputs)
        return [m[:1] for maps in (feats, *model.rpn_head(feats)) for m in maps]


def test_a_larger_neighbour_moves_an_image_less_than_in_the_dense_detector():
    dense = build(adapt=False, backbone=dict(type='SwinTransformer'))
    sparse = build()
    sparse.load_state_dict(dense.state_dict(), strict=False)
    dense.backbone.eval(), dense.eval(), sparse.eval()
    found = []
    for hw in ((150, 192), (96, 120)):
        image, larger = (255 * torch.rand(3, *shape) for shape in (hw, (256, 288)))
        moved = []
        for model in (sparse, dense):
            beside, alone = raw_outputs(model, [image, larger]), raw_outputs(model, [image])
            pairs = [
                (a, b[..., : a.shape[-2], : a.shape[-1]])
                for a, b in zip(alone, beside, strict=True)
            ]
            moved.append([((b - a).norm() / a.norm()).item() for a, b in pairs])
        found.append(moved)
    # The mean over images, for each of the 15 maps: 5 levels of FPN, scores and boxes.
    ours, theirs = torch.tensor(found).mean(dim=0)
    assert ours.shape == (15,) and (ours <= theirs).all()
    # The remaining difference is from the heads' convolutions over padding.
    assert (ours[:5] < 1e-4).all() and (theirs[:5] > 0.05).all()


def test_a_dense_checkpoint_loads_and_detections_stay_at_ratio_one():
    dense = build(adapt=False, backbone=dict(type='SwinTransformer'))
    sparse = build(backbone=dict(keep_ratios=(1.0, 1.0, 1.0)))
    for model in (dense, sparse):
        model.roi_head.test_cfg.score_thr = 0.0  # untrained scores are low
    for weight in dense.roi_head.bbox_head.parameters():
        torch.nn.init.normal_(weight, std=0.03)  # and hardly depend on the features
    missing, unexpected = sparse.load_state_dict(dense.state_dict(), strict=False)
    assert missing and not unexpected
    assert all('predictors.' in key or 'fast_path' in key for key in missing)
    dense.backbone.eval(), dense.eval()
    data = batch(dense, training=False)
    # As in both hosts, padding takes the slow path at ratio 1.
    with torch.no_grad():
        # The hosts write into the given samples.
        theirs, ours = (m(**deepcopy(data), mode='predict') for m in (dense, sparse.eval()))
    assert len(theirs[0].pred_instances) > 0
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.pred_instances.bboxes, b.pred_instances.bboxes)
        torch.testing.assert_close(a.pred_instances.scores, b.pred_instances.scores)
        assert torch.equal(a.pred_instances.masks, b.pred_instances.masks)


def test_a_teacher_teaches_features():
    model = build(teacher='self').train()
    losses = model(**batch(model), mode='loss')
    assert {key for key in losses if 'distill' in key} == {'loss_distill_feature'}
    assert losses['loss_distill_feature'] > 0
    assert not any('teacher' in name for name, _ in model.named_parameters())
    ones = build(teacher='self', backbone=dict(keep_ratios=(1.0, 1.0, 1.0))).train()
    assert ones(**batch(ones), mode='loss')['loss_distill_feature'] < 1e-10


class Unchanged(MaskRCNN):
    """A custom detector that inherits how images are read."""


class Peeking(Unchanged):
    """One that reads the images itself."""

    def loss(self, batch_inputs, batch_data_samples):
        return {**super().loss(batch_inputs, batch_data_samples), 'mean': batch_inputs.mean()}


def test_a_detector_of_ones_own_is_adapted_if_it_can_be():
    assert adapter_of(Unchanged).__name__ == 'DynamicUnchanged'
    with pytest.raises(ValueError, match='Peeking does not read its images through'):
        adapter_of(Peeking)


def test_a_detector_of_ones_own_is_not_taken_for_mmdets_of_the_same_name():
    own = type('MaskRCNN', (Peeking,), {})
    cfg = detector_cfg('MaskRCNN', type=own)
    with pytest.raises(ValueError, match='MaskRCNN does not read its images through'):
        use_adapter(cfg)
    cfg.model.type = type('MaskRCNN', (Unchanged,), {})
    init_default_scope('mmdet')
    assert use_adapter(cfg)
    assert isinstance(MODELS.build(cfg.model), Unchanged)


@pytest.mark.parametrize('inner', ['FasterRCNN', 'mmdyn.DynamicFasterRCNN'])
def test_a_sparse_backbone_in_a_semi_supervised_detector_is_refused(inner):
    init_default_scope('mmdet')
    config = 'soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py'
    cfg = Config.fromfile(resolve_config_path(f'mmdet::{config}'))
    cfg.model.detector.type = inner
    assert use_adapter(cfg) is None
    cfg.model.detector.backbone = dict(BACKBONE)
    cfg.model.detector.neck.in_channels = [8, 16, 32, 64]
    for kind in ('SoftTeacher', 'SemiBaseDetector'):
        cfg.model.type = kind
        with pytest.raises(ValueError, match=kind):
            use_adapter(cfg)
    # The student of a built model is found as well; the frozen teacher is not reported.
    cfg.model.detector.backbone.init_cfg = cfg.model.detector.init_cfg = None
    with pytest.raises(ValueError, match=r'SemiBaseDetector .*model\.student\.backbone'):
        check_adapted(MODELS.build(cfg.model))


def test_detectors_that_read_images_otherwise_are_refused_by_name():
    init_default_scope('mmdet')
    cfg = detector_cfg('RetinaNet')
    cfg.default_scope = 'mmdet'
    cfg.model.type = 'KnowledgeDistillationSingleStageDetector'
    with pytest.raises(ValueError, match='KnowledgeDistillationSingleStageDetector does not read'):
        use_adapter(cfg)
