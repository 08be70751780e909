"""Data sets: generated scenes for demos and tests, and real street scenes.

``mini_scenes`` and ``scene_renderer`` need no host; the data set classes of a host are
here only if it is installed.
"""

from mmdyn.compat import has_host
from mmdyn.datasets.named_steps import NamedSteps

__all__ = ['NamedSteps']
_HOSTS = dict(
    CamVidDataset='mmsegmentation',
    MiniScenesDataset='mmsegmentation',
    MiniScenesInstanceDataset='mmdet',
)

if has_host('mmseg'):
    from mmdyn.datasets.camvid import CamVidDataset
    from mmdyn.datasets.mini_scenes_seg import MiniScenesDataset

    __all__ += ['CamVidDataset', 'MiniScenesDataset']

if has_host('mmdet'):
    from mmdyn.datasets.mini_scenes_det import MiniScenesInstanceDataset

    __all__ += ['MiniScenesInstanceDataset']


def __getattr__(name):
    if name in _HOSTS:
        raise ImportError(f'mmdyn.datasets.{name} needs {_HOSTS[name]}, which is not installed')
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
