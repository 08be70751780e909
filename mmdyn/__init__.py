"""Dynamic spatial sparsity for hierarchical backbones in mmseg and mmdet.

Importing mmdyn lets configs use ``'mmdyn::...'`` in ``_base_`` if mmengine is installed, and checks
the versions of mmengine and mmcv if mmengine is already imported; otherwise the check runs on first
use. Models and data sets are imported on demand. :mod:`mmdyn.sparsity` needs torch only.
"""

import importlib
import sys

from mmdyn import compat, config_lookup
from mmdyn.version import __version__

# Not only in the registry, as mmengine suppresses ImportErrors there.
if sys.modules.get('mmengine'):
    compat.check_versions()
config_lookup.install()

__all__ = ['__version__', 'compile_model', 'prepare_for_inference']

# Imported on demand, as they need mmengine and the models.
_LAZY = {
    'compile_model': 'mmdyn.models.compiled',
    'prepare_for_inference': 'mmdyn.models.prepared',
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(_LAZY[name]), name)
