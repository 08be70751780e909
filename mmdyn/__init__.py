"""Dynamic spatial sparsity for hierarchical backbones in mmseg and mmdet.

Importing mmdyn lets configs name ours in ``_base_`` (``'mmdyn::...'``) where mmengine is installed,
and checks the versions of mmengine and mmcv if the program uses mmengine already; otherwise that
waits for the first use. Models and data sets are imported when a registry or the user asks for
them. :mod:`mmdyn.sparsity` needs torch only.
"""

import importlib
import sys

from mmdyn import compat, config_lookup
from mmdyn.version import __version__

# Here and not in the registry alone, whose ImportErrors mmengine keeps to itself.
if sys.modules.get('mmengine'):
    compat.check_versions()
config_lookup.install()

__all__ = ['__version__', 'compile_model', 'prepare_for_inference']

# Needs mmengine and the models: imported when it is asked for.
_LAZY = {
    'compile_model': 'mmdyn.models.compiled',
    'prepare_for_inference': 'mmdyn.models.prepared',
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(_LAZY[name]), name)
