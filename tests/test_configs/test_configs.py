"""Every config in configs/ matches its name, builds, and takes a training step."""

import math
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import load
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData

import mmdyn  # noqa: F401, registers the config look-up

pytest.importorskip('mmseg')

from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

from mmdyn.config_lookup import resolve_config_path
from mmdyn.config_parts import parts
from mmdyn.models.adapters import use_adapter

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(
    path for head in ('upernet', 'semantic_fpn') for path in (ROOT / 'configs').glob(f'{head}_*.py')
)
DETECTORS = sorted((ROOT / 'configs').glob('*mask_rcnn_*.py'))
# Backbone by config name.
BACKBONES = {
    'dynswin': 'mmdyn.DynamicSwin',
    'dynconvnext': 'mmdyn.DynamicConvNeXt',
    'dynvit': 'mmdyn.DynamicViT',
}


@pytest.fixture(params=CONFIGS, ids=lambda p: p.stem)
def config(request):
    cfg = Config.fromfile(request.param)
    init_default_scope(cfg.default_scope)
    return cfg


def test_scope_imports_and_prefixes(config):
    assert config.default_scope == 'mmseg'
    for method in re.findall(r'_(dyn[a-z]+)', Path(config.filename).stem):
        if method == 'dynhead':
            assert config.model.decode_head.type == 'mmdyn.DynamicUPerHead'
            continue
        assert config.model.backbone.type == BACKBONES[method]
        assert config.model.type == 'mmdyn.DynamicEncoderDecoder'
    if any(part.get('type', '').startswith('mmdyn.') for _, part in parts(config.model, 'model')):
        assert config.custom_imports == dict(imports=['mmdyn'], allow_failed_imports=False)


def test_model_builds_and_takes_a_training_step(config):
    config.model.backbone.init_cfg = None
    config.model.data_preprocessor.size = (64, 64)
    # SyncBN needs several processes; the tools revert it for one.
    net = revert_sync_batchnorm(MODELS.build(config.model)).train()
    if getattr(net.decode_head, 'freeze_dense', False):
        net.load_state_dict(net.state_dict())  # replaces load_from
        assert 'load_from' in config
    classes = net.decode_head.num_classes
    samples = []
    for _ in range(2):
        sample = SegDataSample(gt_sem_seg=PixelData(data=torch.randint(0, classes, (1, 64, 64))))
        sample.set_metainfo(dict(img_shape=(64, 64), ori_shape=(64, 64)))
        samples.append(sample)
    images = [torch.randint(0, 255, (3, 64, 64), dtype=torch.uint8) for _ in samples]
    data = net.data_preprocessor(dict(inputs=images, data_samples=samples), training=True)
    losses = net(**data, mode='loss')
    total, _ = net.parse_losses(losses)
    total.backward()
    assert total.isfinite()
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)
    assert ('loss_keep_ratio' in losses) == config.model.backbone.type.startswith('mmdyn.')


def test_dense_and_sparse_twins_differ_in_the_backbone_alone():
    known = [*CONFIGS, *DETECTORS]
    twins = {path: path.with_name(path.name.replace('_dyn', '_', 1)) for path in known}
    pairs = [(sparse, dense) for sparse, dense in twins.items() if sparse != dense in known]
    assert len(pairs) > 2
    for sparse, dense in pairs:
        sparse, dense = (Config.fromfile(p)._cfg_dict.to_dict() for p in (sparse, dense))
        finetuned = bool(sparse.get('load_from'))
        for cfg in (sparse, dense):
            # All variables of _base_/backbones, used or not.
            for offered in [key for key in cfg if key.endswith(('_mini', '_camvid'))]:
                cfg.pop(offered)
            cfg['model'].pop('type'), cfg['model']['backbone'].pop('type')
            for added in ('keep_ratios', 'sparse_stage', 'sparse_blocks'):
                cfg['model']['backbone'].pop(added, None)
            cfg.pop('custom_hooks', None)
            if finetuned:  # by a recipe of its own
                for own in ('load_from', 'optim_wrapper', 'param_scheduler', 'train_cfg'):
                    cfg.pop(own, None)
                cfg['default_hooks'].pop('checkpoint')
                continue
            for new in ('predictors', 'fast_path'):
                cfg['optim_wrapper'].get('paramwise_cfg', {}).get('custom_keys', {}).pop(new, None)
        assert sparse == dense


SWIN = 'swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py'
CONVNEXT = 'mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco.py'


@pytest.mark.parametrize(
    ('base', 'backbone', 'kind'),
    [
        (f'mmseg::swin/{SWIN}', dict(type='mmdyn.DynamicSwin'), 'DynamicEncoderDecoder'),
        (f'mmdet::convnext/{CONVNEXT}', dict(type='mmdyn.DynamicConvNeXt'), 'DynamicMaskRCNN'),
        ('mmdyn::upernet_dynswin_ade20k.py', {}, 'DynamicEncoderDecoder'),
    ],
)
def test_a_users_config_inherits_another_and_changes_the_backbone_alone(
    tmp_path, base, backbone, kind
):
    backbone['keep_ratios'] = (0.9, 0.8, 0.7)
    (tmp_path / 'mine.py').write_text(
        f'_base_ = {base!r}\n'
        "custom_imports = dict(imports=['mmdyn'], allow_failed_imports=False)\n"
        f'model = dict(backbone={backbone})\n'
    )
    cfg = Config.fromfile(tmp_path / 'mine.py')
    init_default_scope(cfg.default_scope)
    assert (f'mmdyn.{kind}' in (use_adapter(cfg) or '')) is ('type' in backbone)
    assert cfg.model.type == f'mmdyn.{kind}'
    built = ROOT_MODELS.build(cfg.model.backbone)
    assert built.keep_ratios == (0.9, 0.8, 0.7) and built.out_indices == (0, 1, 2, 3)
    assert built.init_cfg['checkpoint'].endswith('.pth')


@pytest.mark.parametrize('path', DETECTORS, ids=lambda p: p.stem)
def test_detector_builds_and_takes_a_training_step(path):
    pytest.importorskip('mmdet')
    from mmdet.registry import MODELS as DETECTION_MODELS
    from mmdet.testing import demo_mm_inputs

    cfg = Config.fromfile(path)
    kind = 'CascadeRCNN' if path.stem.startswith('cascade') else 'MaskRCNN'
    kind = f'mmdyn.Dynamic{kind}' if '_dyn' in path.stem else kind
    assert cfg.default_scope == 'mmdet' and cfg.model.type == kind
    init_default_scope('mmdet')
    cfg.model.backbone.init_cfg = None
    cfg.model.train_cfg.rpn_proposal.max_per_img = 50
    heads = cfg.model.train_cfg.rcnn
    for head in heads if isinstance(heads, list) else [heads]:
        head.sampler.num = 16
    net = DETECTION_MODELS.build(cfg.model).train()
    classes = net.roi_head.bbox_head
    classes = (classes[0] if kind.endswith('CascadeRCNN') else classes).num_classes
    sizes = [[3, 64, 64], [3, 64, 96]]
    # mmdet's function needs two classes, of which it never draws the first.
    batch = demo_mm_inputs(2, sizes, num_classes=max(2, classes), with_mask=True)
    for sample in batch['data_samples']:
        sample.gt_instances.labels.clamp_(max=classes - 1)
    losses = net(**net.data_preprocessor(batch, True), mode='loss')
    total, _ = net.parse_losses(losses)
    total.backward()
    assert total.isfinite() and ('loss_keep_ratio' in losses) == ('_dyn' in path.stem)
    new = [p.grad for n, p in net.named_parameters() if 'predictors' in n or 'fast_path' in n]
    assert bool(new) == ('_dyn' in path.stem)
    assert all(grad is not None and grad.isfinite().all() for grad in new)


def test_cascade_is_the_hosts_but_for_the_backbone():
    ours = Config.fromfile(ROOT / 'configs' / 'cascade_mask_rcnn_dynswin-s_coco.py').model
    base = 'mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py'
    theirs = Config.fromfile(resolve_config_path(base)).model
    assert ours.backbone.depths == [2, 2, 18, 2]
    assert ours.neck.pop('in_channels') == [96, 192, 384, 768]
    theirs.neck.pop('in_channels')
    for model in (ours, theirs):
        model.pop('backbone'), model.pop('type'), model.pop('_scope_', None)
    assert ours == theirs


def test_dense_to_sparse_detection_starts_from_the_hosts_weights_within_its_length():
    cfg = Config.fromfile(ROOT / 'configs' / 'mask_rcnn_dynswin_coco_ft.py')
    models = Path(resolve_config_path('mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py'))
    metafile = load(models.with_name('metafile.yml'))
    (row,) = (row for row in metafile['Models'] if row['Name'] == models.stem)
    assert cfg.load_from == row['Weights']
    # 117 266 images with objects, in batches of 16.
    assert cfg.auto_scale_lr.base_batch_size == 16
    iterations = cfg.train_cfg.max_epochs * math.ceil(117266 / 16)
    hold, policy = cfg.custom_hooks
    assert hold.end < policy.phases[0].begin < iterations
    assert cfg.param_scheduler[1].end == cfg.train_cfg.max_epochs


def test_every_sparse_config_is_in_one_metafile_that_mim_finds():
    index = load(ROOT / 'model-index.yml')['Import']
    assert sorted(index) == sorted(
        path.relative_to(ROOT).as_posix() for path in ROOT.glob('configs/*/metafile.yml')
    )
    metafiles = [load(ROOT / path) for path in index]
    models = [model for metafile in metafiles for model in metafile['Models']]
    collections = [c['Name'] for metafile in metafiles for c in metafile['Collections']]
    assert len(set(collections)) == len(collections)
    assert all((ROOT / c['README']).is_file() for m in metafiles for c in m['Collections'])
    assert all(model['In Collection'] in collections for model in models)
    assert all(Path(model['Config']).stem == model['Name'] for model in models)
    sparse = [path.stem for path in (ROOT / 'configs').glob('*.py') if '_dyn' in path.stem]
    assert sorted(model['Name'] for model in models) == sorted(sparse)
