import numpy as np
import torch

from mmdyn.sparsity import Decision
from mmdyn.visualization import dim_dropped, draw_panels, kept_map

MASK = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0]])
DECISION = Decision(scores=MASK, keep_mask=MASK, keep_ratio=0.5, hw=(2, 2))


def test_kept_map_scales_locations_to_pixels():
    kept = kept_map(DECISION, 0, (4, 6))
    assert kept.shape == (4, 6)
    assert kept[:2, :3].all() and kept[2:, 3:].all() and kept.sum() == 12
    assert kept_map(DECISION, 1, (4, 6)).sum() == 6


def test_dropped_locations_are_dimmed_and_kept_ones_untouched():
    image = np.full((4, 6, 3), 200, np.uint8)
    dimmed = dim_dropped(image, DECISION, 0)
    assert dimmed.dtype == np.uint8
    assert set(np.unique(dimmed)) == {50, 200}
    assert (dimmed[:2, :3] == 200).all()


def test_panels_hold_one_picture_per_predictor(tmp_path):
    image = np.zeros((4, 6, 3), np.uint8)
    figure = draw_panels(image, np.zeros((4, 6), int), [DECISION] * 3, [[0, 0, 0]])
    assert len(figure.axes) == 5
    assert 'predictor 2: 50% on the slow path' in figure.axes[4].get_title()
    figure.savefig(tmp_path / 'panels.png')
