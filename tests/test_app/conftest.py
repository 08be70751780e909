import numpy as np
import pytest

pytest.importorskip('mmseg')

from mmdyn.apis import DynamicInferencer, Picture
from mmdyn.app.comparing import Comparer
from mmdyn.app.reading import Limits
from tests.test_tools.segmentation import write_config, write_data


@pytest.fixture(scope='session')
def tiny(tmp_path_factory):
    """A config of a tiny sparse segmentor; its data lie beside it."""
    root = tmp_path_factory.mktemp('tiny')
    return str(write_config(root, write_data(root / 'data')))


@pytest.fixture(scope='session')
def comparer(tiny):
    return Comparer(DynamicInferencer(tiny, device='cpu'), seconds=0)


@pytest.fixture(scope='session')
def picture():
    return Picture('one', np.random.default_rng(0).integers(0, 255, (128, 160, 3), dtype=np.uint8))


@pytest.fixture
def limits():
    return Limits(upload=1, pixels=0.1, side=200)
