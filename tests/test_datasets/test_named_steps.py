"""Errors of a pipeline name the file."""

import numpy as np
import pytest
from mmengine.config import Config
from PIL import EpsImagePlugin, Image

from mmdyn.datasets import NamedSteps
from mmdyn.engine.loaders import with_named_steps
from mmdyn.errors import BadDataError


class ReadNumbers:
    """Loads labels from numpy files."""

    def __call__(self, data):
        return data | dict(gt_seg_map=np.load(data['seg_map_path']))


class ReadThousands:
    """Loads classes encoded with instance numbers."""

    def __call__(self, data):
        return data | dict(gt_seg_map=np.asarray(Image.open(data['seg_map_path'])) // 1000)


class PackNothing:
    """A packing step that does nothing."""

    def __call__(self, data):
        return data


def read(path, labels):
    np.save(path, labels)
    steps = NamedSteps([ReadNumbers(), PackNothing()], num_classes=300)
    return steps(dict(seg_map_path=str(path), img=np.zeros((2, 2, 3))))


@pytest.mark.parametrize('shape', [(2, 2), (4, 8, 8)])
def test_labels_of_any_reader_and_size_and_volumes_pass(tmp_path, shape):
    labels = np.full(shape, 257, np.int64)
    assert np.array_equal(read(tmp_path / 'labels.npy', labels)['gt_seg_map'], labels)


@pytest.mark.parametrize(
    ('shape', 'said'),
    [((2, 2), 'has label 300 in 4 pixels.*0 to 299'), ((2, 2, 3), 'its pixels have 3 channels')],
)
def test_labels_of_any_reader_are_checked(tmp_path, shape, said):
    with pytest.raises(BadDataError, match=rf'labels\.npy.*{said}'):
        read(tmp_path / 'labels.npy', np.full(shape, 300))


def test_a_step_that_fails_names_the_file(tmp_path):
    with pytest.raises(BadDataError, match=r"gone\.npy can't be used: ReadNumbers of the pipeline"):
        NamedSteps([ReadNumbers()])(dict(seg_map_path=str(tmp_path / 'gone.npy')))


def test_a_reader_that_makes_small_labels_of_large_ones_is_left_alone(tmp_path):
    path = tmp_path / 'labels.png'
    Image.fromarray(np.full((2, 2), 3001, np.uint16)).save(path)
    steps = NamedSteps([ReadThousands(), PackNothing()], num_classes=4)
    steps(dict(seg_map_path=str(path), img=np.zeros((2, 2, 3))))
    with pytest.raises(BadDataError, match='has label 3 in 4 pixels'):
        NamedSteps([ReadThousands(), PackNothing()], num_classes=3)(dict(seg_map_path=str(path)))


def test_a_pipeline_below_a_mixing_wrapper_packs_nothing_and_is_checked(tmp_path):
    np.save(tmp_path / 'labels.npy', np.full((2, 2), 77))
    with pytest.raises(BadDataError, match='has label 77'):
        NamedSteps([ReadNumbers()], num_classes=2)(
            dict(seg_map_path=str(tmp_path / 'labels.npy'), img=np.zeros((2, 2, 3)))
        )


def test_what_model_or_metric_ignores_is_no_wrong_label():
    dataset = dict(type='mmseg.BaseSegDataset', pipeline=[dict(type='Load')])
    cfg = Config(
        dict(
            default_scope='mmengine',
            model=dict(decode_head=dict(ignore_index=254)),
            val_evaluator=[dict(type='IoUMetric', ignore_index=66)],
            test_evaluator=dict(type='IoUMetric', ignore_index=77),
        )
    )
    (step,) = with_named_steps(dict(dataset=dataset), cfg)['dataset']['pipeline']
    assert step['ignored'] == [66, 77, 254, 255]


def test_what_a_users_last_step_returns_is_its_own(tmp_path):
    def last(data):
        return data['img'], 1

    assert NamedSteps([last])(dict(img='picture')) == ('picture', 1)


@pytest.mark.parametrize('key', ['img_path', 'seg_map_path'])
def test_no_file_is_given_to_ghostscript(tmp_path, monkeypatch, key):
    monkeypatch.setattr(EpsImagePlugin, 'Ghostscript', lambda *_, **__: pytest.fail('it ran'))
    path = tmp_path / 'x.png'
    path.write_bytes(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n')
    step = dict(type='mmcv.LoadImageFromFile')
    if key == 'seg_map_path':
        step = dict(type='mmcv.LoadAnnotations', with_bbox=False, with_label=False, with_seg=True)
    steps = NamedSteps([dict(step, imdecode_backend='pillow')])
    with pytest.raises(BadDataError, match=r'x\.png.*PostScript'):
        steps({key: str(path)})
