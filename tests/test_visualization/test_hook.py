"""DecisionVisualizationHook in a run."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip('mmseg')

from matplotlib.figure import Figure
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement, PixelData

import mmdyn.visualization.hook as hook_module
from mmdyn.engine.loading import load_model
from mmdyn.engine.prepare import prepare_testing
from mmdyn.engine.recording import Recording
from mmdyn.visualization.hook import DecisionVisualizationHook, _picture
from mmdyn.visualization.inference import predicted
from tests.test_tools.segmentation import write_config, write_data

HOOK = {'custom_hooks': [dict(type='mmdyn.DecisionVisualizationHook', pictures=2, width=300)]}


@pytest.fixture
def drawn(monkeypatch):
    """Inferences to be drawn, without drawing, which is slow."""
    seen = []

    def spy(inference, **_):
        seen.append(inference)
        predicted(inference)
        return Figure(figsize=(1, 1))

    monkeypatch.setattr(hook_module, 'draw', spy)
    return seen


@pytest.mark.parametrize('flips', [(1.0, 0.0), (1.0, 1.0)])
def test_with_test_time_augmentation_the_view_as_it_is_shows_the_decisions(flips, tmp_path, drawn):
    config = write_config(tmp_path, write_data(tmp_path / 'data', count=2))
    loaded = load_model(str(config))
    torch.save(dict(state_dict=loaded.model.state_dict()), tmp_path / 'weights.pth')
    plain, steps = {}, ['LoadImageFromFile', 'LoadAnnotations', 'PackSegInputs']
    views = [
        [dict(type='RandomFlip', prob=prob) for prob in flips],
        *([dict(type=name)] for name in steps[1:]),
    ]
    pipeline = [dict(type=steps[0]), dict(type='TestTimeAug', transforms=views)]
    for tta in (False, True):
        cfg, _ = prepare_testing(
            str(config),
            str(tmp_path / 'weights.pth'),
            work_dir=str(tmp_path / 'work'),
            tta=tta,
            cfg_options={**HOOK, 'tta_pipeline': pipeline, 'visualizer.name': f'{flips}{tta}'},
        )
        Runner.from_cfg(cfg).test()
        plain[tta], drawn[:] = list(drawn), []
    assert len(plain[True]) == len(plain[False]) == 2
    for shown, expected in zip(plain[True], plain[False], strict=True):
        if flips == (1.0, 1.0):
            assert shown.choices == ()
            continue
        assert len(shown.choices) == 3
        for ours, alone in zip(shown.choices, expected.choices, strict=True):
            assert np.array_equal(ours.kept, alone.kept)
            assert np.array_equal(ours.scores, alone.scores)


@pytest.mark.parametrize('value', [0, 3])
def test_what_a_panoptic_metric_leaves_is_no_object(value, tmp_path, drawn):
    """mmdet's metric writes 0 for no class, over the prediction's number of classes."""
    Image.new('RGB', (6, 4)).save(tmp_path / 'a.png')
    ids = torch.full((1, 4, 6), value, dtype=torch.int32)
    ids[:, :2] = 1000  # a thing of class 0
    meta = dict(img_path=str(tmp_path / 'a.png'), img_shape=(4, 6))
    sample = BaseDataElement(metainfo=meta, pred_panoptic_seg=PixelData(sem_seg=ids))
    visualizer = SimpleNamespace(
        dataset_meta=dict(classes=('cat', 'dog', 'sky'), thing_classes=['cat', 'dog']),
        add_image=lambda *args, **kwargs: None,
    )
    runner = SimpleNamespace(model=torch.nn.Identity(), visualizer=visualizer, iter=0)
    batch = dict(inputs=[torch.zeros(3, 4, 6)], data_samples=[sample])
    DecisionVisualizationHook().draw(runner, Recording(), batch, [sample], 'val')
    assert [one['area'] for one in drawn[0].segments()] == [12]
    assert (sample.pred_panoptic_seg.sem_seg == ids).all()


@pytest.mark.parametrize(('value', 'error'), [(0, ValueError), (True, TypeError), ('4', TypeError)])
def test_wrong_arguments(value, error):
    with pytest.raises(error, match=repr(value)):
        DecisionVisualizationHook(pictures=value)


@pytest.mark.parametrize('flip', [None, 'horizontal', 'vertical'])
def test_a_picture_is_shown_as_it_was_before_the_pipeline(flip):
    image = np.zeros((40, 60, 4), np.uint8)
    image[:20, :30] = 200
    half = torch.from_numpy(image[::2, ::2].copy()).permute(2, 0, 1)
    if flip is not None:
        half = half.flip(2 if flip == 'horizontal' else 1)
    else:
        half = torch.nn.functional.pad(half, (0, 9, 0, 7))  # as in detectors that pad first
    meta = dict(ori_shape=(40, 60), scale_factor=(0.5, 0.5), img_path='a/b.tif')
    shown = _picture(half, dict(meta, flip=flip is not None, flip_direction=flip), 0)
    assert shown.name == 'b' and shown.image.shape == (40, 60, 4)
    assert (np.abs(shown.rgb.astype(int) - image[..., :3]) > 100).mean() < 0.05
    assert _picture(half, dict(ori_shape=half.shape[1:]), 3).name == 'picture_3'
