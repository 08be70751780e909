"""Bootstrap intervals of a mean IoU."""

import numpy as np
import pytest
import torch

from mmdyn.analysis.intervals import bootstrap_miou


def areas(images, accuracy, classes=4, seed=0):
    """(images, classes) intersections and unions around an IoU of ``accuracy``."""
    generator = torch.Generator().manual_seed(seed)
    unions = torch.randint(50, 150, (images, classes), generator=generator).float()
    share = (accuracy + 0.1 * torch.randn(images, classes, generator=generator)).clamp(0, 1)
    return unions * share, unions


def miou(intersections, unions):
    return 100 * (intersections.sum(0) / unions.sum(0)).mean().item()


def test_interval_holds_the_estimate_and_narrows_with_more_images():
    few, many = areas(20, 0.6), areas(500, 0.6)
    widths = []
    for sample in (few, many):
        low, high = bootstrap_miou(sample)
        assert low < miou(*sample) < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 3


def test_interval_covers_the_truth_about_as_often_as_it_says():
    hits = 0
    for seed in range(100):
        low, high = bootstrap_miou(areas(60, 0.6, seed=seed))
        hits += low < 60 < high
    assert 87 <= hits


def test_a_difference_on_the_same_images_is_known_better_than_its_parts():
    intersections, unions = areas(50, 0.6)
    gain = 0.1 * torch.rand(unions.shape, generator=torch.Generator().manual_seed(1))
    better = (intersections + gain * unions).minimum(unions)
    low, high = bootstrap_miou((better, unions), (intersections, unions))
    assert 0 < low < miou(better, unions) - miou(intersections, unions) < high
    alone = bootstrap_miou((intersections, unions))
    assert high - low < (alone[1] - alone[0]) / 3


def test_a_class_that_no_image_has_does_not_count():
    intersections, unions = areas(30, 0.5, classes=3)
    nothing = torch.zeros(30, 1)
    absent = torch.cat([intersections, nothing], 1), torch.cat([unions, nothing], 1)
    with_absent = bootstrap_miou(absent)
    assert with_absent == pytest.approx(bootstrap_miou((intersections, unions)))
    assert np.isfinite(with_absent).all()


def test_a_class_that_few_images_have_counts_where_it_is_drawn():
    """One image in 40 has the second class, at IoU 0; the first class is always at 1."""
    unions = torch.zeros(40, 2)
    unions[:, 0], unions[0, 1] = 100, 100
    intersections = unions * torch.tensor([1.0, 0.0])
    # Without that image the mean is 100, with it 50; it is missing from 0.36 of all draws.
    low, high = bootstrap_miou((intersections, unions))
    assert (low, high) == (50, 100)


@pytest.mark.parametrize(
    ('shapes', 'fill', 'said'),
    [
        ([(5, 4), (5, 4)], 0, 'labelled pixel'),
        ([(5, 4), (5, 3)], 1, 'shape'),
        ([(0, 4), (0, 4)], 1, 'at least one image'),
    ],
)
def test_bad_input_is_refused(shapes, fill, said):
    with pytest.raises(ValueError, match=said):
        bootstrap_miou(tuple(torch.full(shape, float(fill)) for shape in shapes))
