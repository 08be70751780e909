"""mmdyn's registries: children of mmengine's roots under the scope ``mmdyn``.

Configs name our types with the prefix (``type='mmdyn.DynamicSwin'``). The registry imports the
listed location on first use, so ``custom_imports = dict(imports=['mmdyn'])`` is all a config needs.
"""

from mmengine import registry as _root
from mmengine.registry import Registry

from mmdyn.compat import check_versions

check_versions()

MODELS = Registry('model', parent=_root.MODELS, scope='mmdyn', locations=['mmdyn.models'])
DATASETS = Registry('dataset', parent=_root.DATASETS, scope='mmdyn', locations=['mmdyn.datasets'])
TRANSFORMS = Registry(
    'transform', parent=_root.TRANSFORMS, scope='mmdyn', locations=['mmdyn.datasets']
)
METRICS = Registry('metric', parent=_root.METRICS, scope='mmdyn', locations=['mmdyn.engine'])
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor',
    parent=_root.OPTIM_WRAPPER_CONSTRUCTORS,
    scope='mmdyn',
    locations=['mmdyn.engine'],
)
HOOKS = Registry(
    'hook',
    parent=_root.HOOKS,
    scope='mmdyn',
    locations=['mmdyn.engine', 'mmdyn.visualization.hook'],
)
VISUALIZERS = Registry(
    'visualizer', parent=_root.VISUALIZERS, scope='mmdyn', locations=['mmdyn.visualization']
)

# For configs with our scope (classifiers), which would find mmengine's types with a warning only.
_EMPTY = [
    Registry(parent.name, parent=parent, scope='mmdyn', locations=['mmdyn.engine'])
    for parent in (
        _root.DATA_SAMPLERS,
        _root.OPTIM_WRAPPERS,
        _root.OPTIMIZERS,
        _root.PARAM_SCHEDULERS,
        _root.VISBACKENDS,
        _root.WEIGHT_INITIALIZERS,
    )
]
