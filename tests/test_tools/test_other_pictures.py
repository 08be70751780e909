"""The tools on pictures with four 16-bit channels, and on too large and too small ones."""

import json
import shutil

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

pytest.importorskip('mmseg')
pytest.importorskip('tifffile')

import tifffile

from mmdyn.apis import DynamicInferencer
from mmdyn.app.comparing import Comparer
from mmdyn.deploy.parity import made_up_images
from tests.test_reliability.tiny import call, save_weights
from tests.test_tools.segmentation import write_config, write_data
from tests.torch_line import EXPORTS

FOUR = """
_base_ = './tiny.py'
_four = dict(
    type='LoadImageFromFile', color_type='unchanged', imdecode_backend='tifffile',
    to_float32=True)
data_preprocessor = dict(mean=[1000.0], std=[500.0], bgr_to_rgb=False)
model = dict(data_preprocessor=data_preprocessor, backbone=dict(in_channels=4))
_pipeline = [_four, dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
train_dataloader = dict(dataset=dict(img_suffix='.tif', pipeline=_pipeline))
val_dataloader = dict(dataset=dict(img_suffix='.tif', pipeline=_pipeline))
test_dataloader = val_dataloader
custom_hooks = [dict(type='mmdyn.DecisionVisualizationHook', pictures=1, width=300)]
"""
CONVNEXT = """
_base_ = '{}'
model = dict(backbone=dict(
    _delete_=True, type='mmdyn.DynamicConvNeXt', out_indices=(3,),
    arch=dict(depths=[1, 1, 4, 1], channels=[8, 16, 32, 64])))
"""


@pytest.fixture(scope='module')
def four(tmp_path_factory):
    """Config, checkpoint and pictures."""
    root = tmp_path_factory.mktemp('four')
    data = write_data(root / 'data')
    for path in list((data / 'images').iterdir()):
        grey = np.asarray(Image.open(path).convert('L')).astype(np.uint16)
        tifffile.imwrite(path.with_suffix('.tif'), np.dstack([grey * (4 + i) for i in range(4)]))
        path.unlink()
    write_config(root, data)
    (root / 'four.py').write_text(FOUR)
    return root / 'four.py', save_weights(root / 'four.py'), data / 'images'


def test_a_training_outlives_the_drawings_of_its_validation(four, tmp_path):
    config, _, pictures = four
    data = tmp_path / 'data'
    shutil.copytree(pictures.parent, data)
    for path in (data / 'images').iterdir():  # floats, which OpenCV can't write
        tifffile.imwrite(path, tifffile.imread(path) / np.float32(7))
    assert call('train', config, '--work-dir', tmp_path / 'work', '--data-root', data)[0] == 0
    (drawn,) = tmp_path.rglob('vis_image/*.png')
    assert drawn.name == 'val_0_2.png' and np.ptp(np.asarray(Image.open(drawn))) > 0


def test_infer_reads_what_test_reads(four, tmp_path):
    config, checkpoint, pictures = four
    dense = ['--keep-ratio', 1, '--device', 'cpu', '--labels']
    assert call('infer', config, checkpoint, pictures, '--out', tmp_path / 'out', *dense)[0] == 0
    assert len(json.loads((tmp_path / 'out' / 'results.json').read_text())) == 4
    argv = ['--work-dir', tmp_path, '--out', tmp_path / 'labels', '--keep-ratio', 1]
    assert call('test', config, checkpoint, *argv, '--show-dir', tmp_path / 'shown')[0] == 0
    for number in range(4):
        ours = Image.open(tmp_path / 'out' / f'{number}_labels.png')
        assert np.array_equal(ours, Image.open(tmp_path / 'labels' / f'{number}.png'))
        assert (tmp_path / 'out' / f'{number}.png').stat().st_size > 1000
    infer = DynamicInferencer(str(config), str(checkpoint), device='cpu')
    values = tifffile.imread(pictures / '0.tif')
    (from_file,), (from_array,) = infer(pictures / '0.tif'), infer(values)
    assert np.array_equal(from_file.labels, from_array.labels)
    with pytest.raises(ValueError, match=r'4\).*\(64, 64, 3\)'):
        infer(values[..., :3])


def test_made_up_and_real_pictures_have_the_models_channels(four, tmp_path):
    config, checkpoint, pictures = four
    assert call('get_flops', config, '--shape', 64)[0] == 0
    assert call('get_flops', config, checkpoint, '--images', pictures)[0] == 0
    few = ('--rounds', 1, '--num-images', 1, '--device', 'cpu')
    assert call('benchmark', config, '--shape', 64, 64, *few, '--images', pictures)[0] == 0
    gone = ('--cfg-options', 'val_dataloader=None')
    assert call('benchmark', config, '--shape', 64, 64, *few, *gone)[0] == 0


@pytest.mark.skipif(not EXPORTS, reason='this torch exports nothing')
def test_a_graph_takes_the_models_channels(four, tmp_path):
    onnx = pytest.importorskip('onnx')
    pytest.importorskip('onnxruntime')
    config, checkpoint, pictures = four
    out = tmp_path / 'four.onnx'
    argv = ('--out', out, '--report', tmp_path / 'report.json', '--images', pictures / '0.tif')
    assert call('export', config, checkpoint, *argv)[0] in (0, 1)  # untrained: scores may be equal
    graph = onnx.load(out)
    sizes = [axis.dim_value for axis in graph.graph.input[0].type.tensor_type.shape.dim]
    assert sizes == [1, 4, 64, 64]
    about = {prop.key: prop.value for prop in graph.metadata_props}
    assert '(B, 4, h, w)' in about['images']
    assert made_up_images(2, (16, 24), channels=4).shape == (2, 4, 16, 24)


def test_the_page_shows_them(four, tmp_path, monkeypatch):
    gr = pytest.importorskip('gradio')
    from mmdyn.app.page import make_update

    config, checkpoint, pictures = four
    comparer = Comparer(DynamicInferencer(str(config), str(checkpoint), device='cpu'), seconds=0)
    update = make_update(comparer, 48)
    monkeypatch.setenv('GRADIO_TEMP_DIR', str(pictures))
    shown, *_ = update({'path': str(pictures / '0.tif')}, 0.7)
    assert shown['value'][0].shape == (48, 48, 3)
    monkeypatch.setenv('GRADIO_TEMP_DIR', str(tmp_path))
    Image.new('RGB', (64, 64)).save(tmp_path / 'three.png')
    with pytest.raises(gr.Error, match=r'three\.png is not a readable picture'):
        update({'path': str(tmp_path / 'three.png')}, 0.7)


def test_nothing_is_given_to_ghostscript(segmentor, tmp_path, monkeypatch):
    monkeypatch.setattr(EpsImagePlugin, 'Ghostscript', lambda *_, **__: pytest.fail('it ran'))
    (tmp_path / 'x.png').write_bytes(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n')
    first = "dict(type='LoadImageFromFile', imdecode_backend='pillow')"
    config, out = tmp_path / 'other.py', ('--out', tmp_path / 'out', '--device', 'cpu')
    config.write_text(
        f"_base_ = '{segmentor.config}'\ntest_dataloader = dict(dataset=dict(pipeline=[{first}]))\n"
    )
    for argv in (
        ('infer', config, segmentor.checkpoint, tmp_path, *out),
        ('infer', config, segmentor.checkpoint, tmp_path / '*.png', *out),
        ('get_flops', config, '--images', tmp_path),
    ):
        code, _, error = call(*argv)
        assert code == 2 and error.count('x.png is not a readable picture') == 1


def test_a_limit_of_pixels_and_how_to_lift_it(segmentor, tmp_path):
    Image.new('L', (120, 100)).save(tmp_path / 'large.png')
    Image.new('1', (20000, 20000)).save(tmp_path / 'huge.png')
    argv = ('infer', segmentor.config, segmentor.checkpoint, '--out', tmp_path / 'out')
    for most, expected in (('0.01', 2), ('0.012', 0), ('inf', 0), ('0', 2), ('nan', 2)):
        code, _, error = call(*argv, tmp_path / 'large.png', '--max-pixels', most)
        assert code == expected
        assert (most in error and 'max_pixels' in error) is (code == 2)
    code, _, error = call(*argv, tmp_path / 'huge.png')
    assert code == 2
    assert 'huge.png' in error and '400000000' in error and error.count('\n') == 1


def test_pictures_too_small_for_the_model_are_named(segmentor, tmp_path):
    config, pictures = tmp_path / 'convnext.py', tmp_path / 'pictures'
    config.write_text(CONVNEXT.format(segmentor.config))
    pictures.mkdir()
    for name, size in (('a', (64, 64)), ('b', (1, 1)), ('c', (5000, 1))):
        Image.new('RGB', size).save(pictures / f'{name}.png')
    argv = ('infer', config, save_weights(config), '--out', tmp_path / 'out')
    for source, name in ((pictures / 'b.png', 'b'), (pictures / 'c.png', 'c'), (pictures, 'b')):
        code, _, error = call(*argv, source)
        assert code == 2
        assert f'{name}.png' in error and '32 pixels' in error
    # Earlier results are kept.
    (result,) = json.loads((tmp_path / 'out' / 'results.json').read_text())
    assert result['name'] == 'a'
