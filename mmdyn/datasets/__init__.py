"""Data sets: generated scenes for demos and tests, and real street scenes.

``mini_scenes`` and ``scene_renderer`` need no host; the data set classes need mmseg and
are here only if it is installed.
"""

from mmdyn.compat import has_host

__all__ = []

if has_host('mmseg'):
    from mmdyn.datasets.camvid import CamVidDataset
    from mmdyn.datasets.mini_scenes_seg import MiniScenesDataset

    __all__ += ['CamVidDataset', 'MiniScenesDataset']
else:

    def __getattr__(name):
        if name in ('CamVidDataset', 'MiniScenesDataset'):
            raise ImportError(f'mmdyn.datasets.{name} needs mmsegmentation, which is not installed')
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
