"""Prepared models of the hosts' configs return the same maps."""

import copy
import importlib

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmdyn.config_lookup import resolve_config_path
from mmdyn.engine.loading import build_model
from mmdyn.models import prepared
from mmdyn.models.prepared import prepare_for_inference
from tests.test_models.test_prepared import Forced, check_close, liven_norms

CONFIGS = [
    'mmseg::bisenetv2/bisenetv2_fcn_4xb8-160k_cityscapes-1024x1024.py',
    'mmseg::ccnet/ccnet_r50-d8_4xb4-80k_ade20k-512x512.py',
    'mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb4-80k_isaid-896x896.py',
    'mmseg::dpt/dpt_vit-b16_8xb2-160k_ade20k-512x512.py',
    'mmseg::knet/knet-s3_r50-d8_fcn_8xb2-adamw-80k_ade20k-512x512.py',
    'mmseg::ocrnet/ocrnet_hr48_4xb4-80k_ade20k-512x512.py',
    'mmseg::pidnet/pidnet-l_2xb6-120k_1024x1024-cityscapes.py',
    'mmseg::pspnet/pspnet_r50-d8_4xb4-80k_isaid-896x896.py',
    'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
    'mmseg::segnext/segnext_mscan-t_1xb16-adamw-160k_ade20k-512x512.py',
    'mmseg::twins/twins_svt-b_uperhead_8xb2-160k_ade20k-512x512.py',
    'mmdet::atss/atss_r50_fpn_1x_coco.py',
    'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
    'mmdet::efficientnet/retinanet_effb3_fpn_8xb4-crop896-1x_coco.py',
    'mmdet::gn/mask-rcnn_r50_fpn_gn-all_3x_coco.py',
    'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
    'mmdet::nas_fpn/retinanet_r50_fpn_crop640-50e_coco.py',
    'mmdet::res2net/htc_res2net-101_fpn_20e_coco.py',
    'mmdet::resnest/mask-rcnn_s50_fpn_syncbn-backbone+head_ms-1x_coco.py',
    'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
    'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py',
    'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py',
]


def maps_of(model, x):
    """Outputs of a model before any selection."""
    torch.manual_seed(0)  # SegNeXt's head draws bases
    with torch.no_grad():
        if hasattr(model, 'decode_head'):
            return model(x, mode='tensor')
        feats = model.extract_feat(x)
        head = getattr(model, 'rpn_head', None) or getattr(model, 'bbox_head', None)
        return [*feats, *([head(feats)] if head and not hasattr(model, 'encoder') else [])]


@pytest.mark.slow
@pytest.mark.parametrize('name', CONFIGS)
def test_a_model_of_the_hosts_computes_the_same(name, monkeypatch):
    host = name.partition('::')[0]
    pytest.importorskip(host)
    importlib.import_module(f'{host}.registry')
    monkeypatch.setattr(prepared, 'Choices', lambda dtype: Forced(True))
    init_default_scope(host)
    before = liven_norms(build_model(Config.fromfile(resolve_config_path(name))))
    before.eval()
    x = torch.randn(1, 3, 128, 160)
    expected = maps_of(before, x)
    check_close(maps_of(prepare_for_inference(copy.deepcopy(before)), x), expected)
