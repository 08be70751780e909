"""Initialisation in which checkpoints are loaded last."""

from __future__ import annotations

from collections.abc import Callable

from mmengine.model import BaseModule, initialize

from mmdyn.config_parts import is_pretrained
from mmdyn.guard import checkpoints_as_data


@checkpoints_as_data()
def init_then_load(
    module: BaseModule, host: Callable[[], None], own: Callable[[], None] = lambda: None
) -> None:
    """Initialise a module once, loading the checkpoint of its ``init_cfg`` last.

    mmengine loads at the end of its own ``init_weights``, so initialisation by a subclass after
    that would overwrite the checkpoint. ``host`` is the inherited ``init_weights``, ``own`` the
    additional initialisation.
    """
    if module.is_init:
        return BaseModule.init_weights(module)  # warns; a host's own might reinitialise
    given = module.init_cfg
    inits = [given] if isinstance(given, dict) else list(given or ())
    module.init_cfg = [init for init in inits if not is_pretrained(init)]
    try:
        host()
        own()
    finally:
        module.init_cfg = given
    return initialize(module, list(filter(is_pretrained, inits)))
