"""The hosts' tools and torch's tracer on our models."""

import importlib
import runpy
import sys
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from mmengine import Config
from mmengine.analysis import FlopAnalyzer, get_model_complexity_info
from mmengine.model import BaseModel, revert_sync_batchnorm
from mmengine.registry import init_default_scope
from torch import nn

import mmdyn
from mmdyn.analysis.counting import count_executed
from mmdyn.models import DynamicConvNeXt, DynamicSwin, DynamicViT

ROOT = Path(__file__).resolve().parents[2]

# Operators that the hosts' counter counts and ours does not.
FREE = (
    'layer_norm',
    'batch_norm',
    'adaptive_avg_pool2d',
    'upsample_nearest2d',
    'upsample_bilinear2d',
)

SWIN = dict(embed_dims=8, depths=(1, 1, 4, 1), num_heads=(1, 1, 2, 2), window_size=4)
CONVNEXT = dict(arch=dict(depths=(1, 1, 4, 1), channels=(8, 16, 32, 64)))
VIT = dict(embed_dims=32, num_layers=4, num_heads=2, sparse_blocks=(1, 2, 3), out_indices=(1, 3))
SMALL_ADE20K = {
    **{f'model.backbone.{name}': value for name, value in SWIN.items()},
    'model.backbone.init_cfg': None,
    'model.decode_head.in_channels': [8, 16, 32, 64],
    'model.decode_head.channels': 8,
    'model.auxiliary_head.in_channels': 32,
}
STOCK = {'model.type': 'EncoderDecoder'}


def make(module, *args, **settings):
    """A model in evaluation mode, with weights that make its decisions differ."""
    torch.manual_seed(0)
    model = module(*args, **settings).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.3)
    return model


def check_counts_agree(model, images):
    """The hosts' counter and ours agree, except attention, which it counts as 0."""
    torch.manual_seed(0)  # mmdet's test batches have random boxes
    count, _ = count_executed(lambda: model(images))
    ours = sum(macs for name, macs in count.by_op().items() if 'attention' not in name)
    torch.manual_seed(0)
    analyzer = FlopAnalyzer(model, images)
    analyzer.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    theirs = sum(macs for name, macs in analyzer.by_operator().items() if name not in FREE)
    assert not count.unknown
    assert ours == theirs > 0


@pytest.mark.parametrize(
    ('backbone', 'settings'),
    [(DynamicSwin, SWIN), (DynamicConvNeXt, CONVNEXT), (DynamicViT, VIT)],
    ids=lambda v: getattr(v, '__name__', ''),
)
def test_mmengine_counts_what_we_count_of_a_backbone(backbone, settings):
    model = make(backbone, **settings)
    assert get_model_complexity_info(model, (3, 72, 104))['flops'] > 0
    check_counts_agree(model, torch.randn(1, 3, 72, 104))


@pytest.mark.parametrize('policy', ['ThresholdPolicy', 'RandomPolicy', 'StaticPolicy'])
def test_mmengine_counts_what_we_count_with_other_policies(policy):
    model = make(DynamicSwin, **SWIN, policy=dict(type=f'mmdyn.{policy}'))
    # A tracer omits a predictor that keeps everything, as nothing depends on it.
    images = torch.randn(2, 3, 64, 64)
    assert not any(decision.all_slow for decision in model.forward_sparse(images).decisions)
    check_counts_agree(model, images)


def build(name, changes, scope):
    """A model of our config, built like in the hosts' tools."""
    registry = importlib.import_module(f'{scope}.registry').MODELS
    init_default_scope(scope)
    config = Config.fromfile(ROOT / 'configs' / f'{name}.py')
    config.merge_from_dict(changes)
    torch.manual_seed(0)
    return revert_sync_batchnorm(registry.build(config.model)).eval()


@pytest.mark.parametrize(
    ('name', 'changes'),
    [
        ('upernet_dynswin_mini', {}),
        ('upernet_dynswin_mini', STOCK),
        ('upernet_dynhead_mini', {}),
        ('upernet_dynswin_ade20k', SMALL_ADE20K),
        ('upernet_dynhead_dynswin_ade20k', SMALL_ADE20K),
        ('upernet_dynhead_dynswin_ade20k_static', SMALL_ADE20K),
    ],
    ids=lambda v: v if isinstance(v, str) else 'stock' * (v is STOCK),
)
@pytest.mark.filterwarnings('ignore')
def test_mmengine_counts_what_we_count_of_a_segmentor(name, changes):
    pytest.importorskip('mmseg')
    model = build(name, changes, 'mmseg')
    data = model.data_preprocessor(dict(inputs=[torch.rand(3, 64, 96)]))
    check_counts_agree(model, data['inputs'])


@pytest.mark.parametrize('name', ['mask_rcnn_dynswin_mini', 'mask_rcnn_dynfpn_dynswin_mini'])
@pytest.mark.filterwarnings('ignore')
def test_mmengine_counts_what_we_count_of_a_detector(name):
    pytest.importorskip('mmdet')
    from mmdet.testing import demo_mm_inputs

    model = build(name, {}, 'mmdet')
    data = model.data_preprocessor(demo_mm_inputs(1, [[3, 64, 96]]))
    model.forward = partial(model.forward, data_samples=data['data_samples'])
    check_counts_agree(model, data['inputs'])


def run_host_tool(monkeypatch, host, name, *argv):
    """Run a tool of a host, as from the command line."""
    folder = Path(importlib.import_module(host).__file__).parent / '.mim/tools/analysis_tools'
    if not folder.is_dir():
        pytest.skip(f'{host} is installed without its tools')
    monkeypatch.setattr(sys, 'argv', [name, *map(str, argv)])
    runpy.run_path(str(folder / f'{name}.py'), run_name='__main__')


def on_three_scenes(folder, name, **model):
    """Write a config of ours that tests on three small scenes; returns its path."""
    data = dict(data_root=str(folder / 'scenes'), size=64, train=1, val=3)
    path = folder / 'config.py'
    path.write_text(
        f'_base_ = {str(ROOT / "configs" / f"{name}.py")!r}\n'
        f'model = {model}\n'
        f'val_dataloader = test_dataloader = dict(dataset={data})\n'
    )
    return path


@pytest.mark.parametrize('name', ['upernet_dynswin_mini', 'upernet_dynhead_mini'])
@pytest.mark.filterwarnings('ignore')
def test_mmsegs_tools_run(name, tmp_path, monkeypatch, capsys):
    pytest.importorskip('mmseg')
    config = on_three_scenes(tmp_path, name, data_preprocessor=dict(size=(64, 64)))
    run_host_tool(monkeypatch, 'mmseg', 'get_flops', config, '--shape', 64, 96)
    assert 'Flops: ' in capsys.readouterr().out
    run_host_tool(monkeypatch, 'mmseg', 'benchmark', config, 'none.pth', '--work-dir', tmp_path)
    assert 'Average fps' in capsys.readouterr().out


@pytest.mark.filterwarnings('ignore')
def test_mmdets_tools_run(tmp_path, monkeypatch, capsys):
    pytest.importorskip('mmdet')
    pytest.importorskip('psutil', reason="mmdet's benchmark needs it")
    from mmdet.utils import benchmark

    config = on_three_scenes(tmp_path, 'mask_rcnn_dynfpn_dynswin_mini')
    run_host_tool(monkeypatch, 'mmdet', 'get_flops', config, '--num-images', 1)
    assert 'Flops: ' in capsys.readouterr().out
    # A tool for GPUs only.
    monkeypatch.setattr(BaseModel, 'cuda', lambda self: self)
    monkeypatch.setattr(torch.cuda, 'synchronize', lambda: None)
    monkeypatch.setattr(benchmark, 'get_max_cuda_memory', lambda: 0)
    cfg = Config.fromfile(config)
    torch.save(build('mask_rcnn_dynfpn_dynswin_mini', {}, 'mmdet').state_dict(), tmp_path / 'a.pth')
    run = benchmark.InferenceBenchmark(
        cfg, str(tmp_path / 'a.pth'), False, True, max_iter=3, log_interval=1, num_warmup=1
    )
    assert run.run()['avg_fps'] > 0


@pytest.mark.parametrize('name', ['upernet_dynhead_mini', 'mask_rcnn_dynfpn_dynswin_mini'])
@pytest.mark.filterwarnings('ignore')
def test_norms_that_mmcv_fuses_change_nothing(name):
    host = 'mmseg' if name.startswith('upernet') else 'mmdet'
    pytest.importorskip(host)
    from mmcv.cnn import fuse_conv_bn

    model = build(name, {}, host)
    for layer in model.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = model.extract_feat(image), model(image) if host == 'mmseg' else ()
        fuse_conv_bn(model)
        actual = model.extract_feat(image), model(image) if host == 'mmseg' else ()
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


class Neck(nn.Module):
    """A neck and RPN with sparse tiles."""

    def __init__(self):
        from mmdyn.models.heads import DynamicRPNHead
        from mmdyn.models.necks import DynamicFPN

        super().__init__()
        self.neck = DynamicFPN([8, 16, 32], 8, 3, tile_size=4, tile_ratio=0.25)
        self.rpn_head = DynamicRPNHead(in_channels=8, feat_channels=8)

    def forward(self, *maps):
        levels = self.neck(maps)
        scores, boxes = self.rpn_head(levels)
        return (*levels, *scores, *boxes)


class Head(nn.Module):
    """A decode head that takes its maps as separate arguments."""

    def __init__(self, tile_ratio):
        from mmdyn.models.heads import DynamicUPerHead

        super().__init__()
        self.head = DynamicUPerHead(
            in_channels=[8, 16, 32],
            in_index=[0, 1, 2],
            channels=8,
            num_classes=5,
            pool_scales=(1, 2),
            coarse_stride=16,
            tile_size=4,
            tile_ratio=tile_ratio,
        )

    def forward(self, *maps):
        return self.head(maps)


def maps():
    return tuple(torch.randn(2, 8 * 2**i, 36 // 2**i, 52 // 2**i) for i in range(3))


def images():
    return (torch.randn(2, 3, 72, 104),)


TRACED = {
    'swin': (DynamicSwin, SWIN, images),
    'dense': (DynamicSwin, dict(**SWIN, keep_ratios=(1, 1, 1)), images),
    'convnext': (DynamicConvNeXt, CONVNEXT, images),
    'vit': (DynamicViT, VIT, images),
    'tiles': (Head, dict(tile_ratio=0.25), maps),
    'static': (Head, dict(tile_ratio=0.0), maps),
    'neck': (Neck, {}, maps),
}


@pytest.mark.parametrize('name', TRACED)
@pytest.mark.filterwarnings('ignore')
def test_a_traced_model_computes_the_same_of_another_image(name, tmp_path):
    """Traced like by TensorBoard's add_graph: with torch's checks and gradients enabled."""
    pytest.importorskip('mmseg' if name in ('tiles', 'static') else 'mmengine')
    pytest.importorskip('mmdet' if name == 'neck' else 'mmengine')
    module, settings, inputs = TRACED[name]
    model = make(module, **settings)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        traced = torch.jit.trace(model, inputs())
    assert not [w for w in caught if Path(w.filename).is_relative_to(Path(mmdyn.__file__).parent)]
    traced.save(tmp_path / 'model.pt')  # fails with Python operators
    other = inputs()
    for program in (traced, torch.jit.load(tmp_path / 'model.pt')):
        torch.testing.assert_close(program(*other), model(*other))
