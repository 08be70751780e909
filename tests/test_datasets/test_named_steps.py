"""Errors of a pipeline name the file, whatever reads it."""

import numpy as np
import pytest

from mmdyn.datasets import NamedSteps
from mmdyn.errors import BadDataError


class ReadNumbers:
    """Reads labels from numpy's files."""

    def __call__(self, data):
        return data | dict(gt_seg_map=np.load(data['seg_map_path']))


class PackNothing:
    """The last step."""

    def __call__(self, data):
        return data


def read(path, labels):
    np.save(path, labels)
    steps = NamedSteps([ReadNumbers(), PackNothing()], num_classes=300)
    return steps(dict(seg_map_path=str(path), img=np.zeros((2, 2, 3))))


def test_labels_that_are_no_picture_may_be_of_any_size(tmp_path):
    labels = np.full((2, 2), 257, np.int64)
    assert np.array_equal(read(tmp_path / 'labels.npy', labels)['gt_seg_map'], labels)


def test_they_are_checked_too(tmp_path):
    with pytest.raises(BadDataError, match=r'labels\.npy has label 300 in 4 pixels.*0 to 299'):
        read(tmp_path / 'labels.npy', np.full((2, 2), 300, np.int64))


def test_a_step_that_fails_names_the_file(tmp_path):
    with pytest.raises(BadDataError, match=r"gone\.npy can't be used, ReadNumbers of the pipeline"):
        NamedSteps([ReadNumbers()])(dict(seg_map_path=str(tmp_path / 'gone.npy')))
