import numpy as np
import torch

from mmdyn.sparsity import Decision
from mmdyn.visualization import dim_dropped, draw_panels, kept_map

MASK = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0]])
DECISION = Decision(scores=MASK, keep_mask=MASK, keep_ratio=0.5, hw=(2, 2))


def test_kept_map_scales_locations_to_pixels():
    kept = kept_map(DECISION, 0, (4, 6), 3)
    assert kept.shape == (4, 6)
    # The last row of locations is cut off by the picture's edge.
    assert kept[:3, :3].all() and kept[3:, 3:].all() and kept.sum() == 12
    assert kept_map(DECISION, 1, (4, 6), 3).sum() == 3


def test_kept_map_leaves_the_padding_of_a_batch_out():
    assert kept_map(DECISION, 0, (2, 2), 2).all()
    assert not kept_map(DECISION, 1, (2, 2), 2).any()


def test_dropped_locations_are_dimmed_and_kept_ones_untouched():
    image = np.full((4, 6, 3), 200, np.uint8)
    dimmed = dim_dropped(image, DECISION, 3)
    assert dimmed.dtype == np.uint8
    assert set(np.unique(dimmed)) == {50, 200}
    assert (dimmed[:2, :2] == 200).all()


def test_panels_hold_one_picture_per_predictor(tmp_path):
    image = np.zeros((4, 6, 3), np.uint8)
    figure = draw_panels(image, np.zeros((4, 6), int), [DECISION] * 3, [[0, 0, 0]], 3)
    assert len(figure.axes) == 5
    assert 'predictor 2: 50% on the slow path' in figure.axes[4].get_title()
    figure.savefig(tmp_path / 'panels.png')
