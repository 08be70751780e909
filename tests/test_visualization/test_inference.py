"""Drawings of an inference."""

import numpy as np
import pytest
import torch

pytest.importorskip('mmseg')

from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample

import mmdyn.visualization.inference as drawing
from mmdyn.apis import Choice, Inference, Picture
from mmdyn.visualization.inference import (
    DIM,
    decision_panels,
    dim,
    draw,
    kept_counts,
    predicted,
    to_array,
)

CLASSES, PALETTE = ('sky', 'road'), ((0, 0, 255), (255, 0, 0))


def make(sample=None, choices=2, tiles=False):
    image = np.full((8, 12, 3), 100, np.uint8)
    if sample is None:
        labels = torch.zeros(1, 8, 12, dtype=torch.long)
        labels[:, 4:] = 1
        labels[:, :, 0] = 255  # no class
        sample = SegDataSample(pred_sem_seg=PixelData(data=labels))
    kept = np.zeros((2, 3), bool)
    kept[0, 0] = True
    made = [
        Choice(
            kept | (np.arange(6).reshape(2, 3) < i),
            np.full((2, 3), 0.4, np.float32),
            kept | True,
            (2, 3),
        )
        for i in range(1, choices + 1)
    ]
    return Inference(
        Picture('one', image),
        sample,
        tuple(made),
        made[0] if tiles else None,
        CLASSES,
        PALETTE,
        0.1,
    )


def test_a_prediction_lies_over_its_picture():
    shown = predicted(make())
    assert tuple(shown[0, 5]) == (40, 40, 193) and tuple(shown[7, 5]) == (193, 40, 40)
    assert tuple(shown[3, 0]) == (100, 100, 100), 'outside the classes'


def test_instances_below_the_score_are_left_out():
    class Detection:
        pred_instances = InstanceData(
            bboxes=torch.tensor([[1.0, 1.0, 5.0, 6.0], [6.0, 2.0, 11.0, 7.0]]),
            scores=torch.tensor([0.9, 0.2]),
            labels=torch.tensor([0, 1]),
            masks=torch.zeros(2, 8, 12, dtype=torch.bool),
        )

    Detection.pred_instances.masks[0, 2:5, 2:4] = True
    inference = make(Detection())
    shown = predicted(inference, 0.3)
    assert tuple(shown[1, 1]) == (0, 0, 255) and tuple(shown[3, 3]) == (40, 40, 193)
    assert (shown[:, 6:] == 100).all()
    found = inference.to_dict(0.3)['instances']
    assert [one['class'] for one in found] == ['sky'] and found[0]['polygons']
    assert len(inference.to_dict(0.1)['instances']) == 2


def test_how_many_predictors_kept_a_location():
    counts = kept_counts(make())
    assert (
        counts.shape == (8, 12) and counts[0, 0] == 2 and counts[0, 5] == 1 and counts[7, 11] == 0
    )


def test_what_is_dropped_is_dark():
    image = np.full((2, 2, 3), 200, np.uint8)
    shown = dim(image, np.array([[True, False], [False, True]]))
    assert (shown[0, 1] == 200 * DIM).all() and (shown[0, 0] == 200).all()


@pytest.mark.parametrize(
    ('choices', 'tiles', 'titles'),
    [
        (2, False, ['predictor 0: 17%', 'predictor 1: 33%', 'predictors that', 'probability']),
        (0, True, ['tiles: 17%', 'probability']),
        (0, False, []),
    ],
)
def test_panels(choices, tiles, titles):
    inference = make(choices=max(choices, 1), tiles=tiles)
    if not choices:
        inference = Inference(**{**vars(inference), 'choices': ()})
    figure = draw(inference)
    shown = [axes.get_title() for axes in figure.axes if axes.get_title()]
    titles = ['picture', 'prediction', *titles]
    assert len(shown) == len(titles)
    assert all(one.startswith(start) for one, start in zip(shown, titles, strict=True))
    image = to_array(figure, 600)
    assert image.dtype == np.uint8 and abs(image.shape[1] - 600) <= 2 and image.std() > 0
    legend = next(axes for axes in figure.axes if axes.get_title() == 'prediction').get_legend()
    assert {text.get_text() for text in legend.get_texts()} == set(CLASSES)


def test_large_pictures_are_drawn_in_part(monkeypatch):
    monkeypatch.setattr(drawing, '_SHOWN', 5)  # of the 12 columns
    inference = make()
    figure = draw(inference)
    shown = [axes.images[0].get_array() for axes in figure.axes[:5]]
    assert [one.shape[:2] for one in shown] == [(3, 4)] * 5
    assert np.array_equal(shown[1], predicted(inference)[::3, ::3])
    assert np.array_equal(shown[4], decision_panels(inference)[2].image[::3, ::3])
