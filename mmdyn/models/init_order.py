"""The order of initialisation: what a checkpoint holds comes last."""

from __future__ import annotations

from collections.abc import Callable

from mmengine.model import BaseModule, initialize

from mmdyn.config_parts import is_pretrained
from mmdyn.guard import checkpoints_as_data


@checkpoints_as_data()
def init_then_load(
    module: BaseModule, host: Callable[[], None], own: Callable[[], None] = lambda: None
) -> None:
    """Initialise a module, once; what its ``init_cfg`` loads overwrites everything else.

    mmengine loads at the end of its own ``init_weights``: what a subclass initialises after that
    would overwrite the checkpoint. ``host`` is the ``init_weights`` that the module inherits,
    ``own`` what it initialises on top.
    """
    if module.is_init:
        return BaseModule.init_weights(module)  # warns; a host's own might begin anew
    given = module.init_cfg
    inits = [given] if isinstance(given, dict) else list(given or ())
    module.init_cfg = [init for init in inits if not is_pretrained(init)]
    try:
        host()
        own()
    finally:
        module.init_cfg = given
    return initialize(module, list(filter(is_pretrained, inits)))
