import numpy as np
import pytest
import torch

pytest.importorskip('mmseg')

from mmdyn.apis import DynamicInferencer, Picture
from mmdyn.app.comparing import Comparer
from mmdyn.engine.loading import load_model
from tests.test_tools.segmentation import write_config, write_data


@pytest.fixture(scope='session')
def tiny(tmp_path_factory):
    """A config of a tiny sparse segmentor; its data lie beside it."""
    root = tmp_path_factory.mktemp('tiny')
    return str(write_config(root, write_data(root / 'data')))


@pytest.fixture(scope='session')
def weights(tiny, tmp_path_factory):
    """A checkpoint of the segmentor."""
    path = tmp_path_factory.mktemp('weights') / 'weights.pth'
    torch.save(dict(state_dict=load_model(tiny).model.state_dict()), path)
    return str(path)


@pytest.fixture(scope='session')
def comparer(tiny):
    return Comparer(DynamicInferencer(tiny, device='cpu', max_pixels=0.1), seconds=0)


@pytest.fixture(scope='session')
def picture():
    return Picture('one', np.random.default_rng(0).integers(0, 255, (128, 160, 3), dtype=np.uint8))
