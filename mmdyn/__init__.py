"""Dynamic spatial sparsity for hierarchical backbones in mmseg and mmdet.

Importing mmdyn checks the versions of mmengine and mmcv and lets configs name ours in ``_base_``
(``'mmdyn::...'``). Models and data sets are imported when a registry or the user asks for them.
"""

from mmdyn import compat, config_lookup
from mmdyn.version import __version__

compat.check_versions()
config_lookup.install()

__all__ = ['__version__']
