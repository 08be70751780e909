"""Data sets: generated scenes for demos and tests, and CamVid.

Classes that need a host exist only if it is installed.
"""

from mmdyn.compat import has_host
from mmdyn.datasets.class_folder import (
    ClassFolder,
    ImageNetDataset,
    PackClassInputs,
    TimmTransform,
)
from mmdyn.datasets.mini_things import MiniThingsDataset
from mmdyn.datasets.named_steps import NamedSteps

__all__ = [
    'ClassFolder',
    'ImageNetDataset',
    'MiniThingsDataset',
    'NamedSteps',
    'PackClassInputs',
    'TimmTransform',
]

if has_host('mmseg'):
    from mmdyn.datasets.camvid import CamVidDataset
    from mmdyn.datasets.mini_scenes_datasets import MiniScenesDataset
    from mmdyn.datasets.nuclei import NucleiDataset

    __all__ += ['CamVidDataset', 'MiniScenesDataset', 'NucleiDataset']

if has_host('mmdet'):
    from mmdyn.datasets.mini_scenes_datasets import MiniScenesInstanceDataset

    __all__ += ['MiniScenesInstanceDataset']


def __getattr__(name):
    host = dict(
        CamVidDataset='mmsegmentation',
        MiniScenesDataset='mmsegmentation',
        NucleiDataset='mmsegmentation',
        MiniScenesInstanceDataset='mmdet',
    ).get(name)
    if host:
        raise ImportError(f'mmdyn.datasets.{name} needs {host}, which is not installed')
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
