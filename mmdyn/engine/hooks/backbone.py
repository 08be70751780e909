"""What hooks that steer a sparse backbone have in common."""

from __future__ import annotations

import numbers
from typing import TYPE_CHECKING, Any

from mmengine.hooks import Hook

from mmdyn.engine.wrappers import unwrapped

if TYPE_CHECKING:
    from mmdyn.models.backbones.base import DynamicBackbone


def sparse_backbone(runner: Any, hook: Hook) -> DynamicBackbone:
    """The sparse backbone of a runner's model.

    Args:
        runner: The runner.
        hook: Who asks, for the message.

    Raises:
        TypeError: If the model's backbone is not one of mmdyn's.
    """
    # Not at the top: the tools import this package before they know which host they need.
    from mmdyn.models.backbones.base import DynamicBackbone

    backbone = unwrapped(getattr(unwrapped(runner.model), 'backbone', None))
    if not isinstance(backbone, DynamicBackbone):
        raise TypeError(
            f'{type(hook).__name__} needs a sparse backbone such as mmdyn.DynamicSwin, got '
            f'{type(backbone).__name__}; take the hook out of custom_hooks'
        )
    return backbone


def deciding_parts(runner: Any, hook: Hook) -> list[Any]:
    """The parts of a runner's model that decide: a sparse backbone, what chooses tiles.

    Args:
        runner: The runner.
        hook: Who asks, for the message.

    Raises:
        TypeError: If there is none.
    """
    # Not at the top, as above.
    from mmdyn.models.deciding import Deciding

    model = unwrapped(runner.model)
    parts = [unwrapped(getattr(model, part, None)) for part in ('backbone', 'neck', 'decode_head')]
    deciding = [part for part in parts if isinstance(part, Deciding)]
    return deciding or [sparse_backbone(runner, hook)]  # which says what is wrong


def check_iteration(name: str, value: Any, lowest: int = 0) -> int:
    """Return an iteration number, or say that it is none.

    Raises:
        TypeError: If it is not an integer.
        ValueError: If it is below ``lowest``.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f'{name} must be an iteration number, got {value!r}')
    if value < lowest:
        raise ValueError(f'{name} must be {lowest} or more, got {value}')
    return int(value)


def warn_unless_reached(runner: Any, hook: Hook, name: str, iteration: int) -> None:
    """Say in the log that an iteration a hook waits for is past the training's end.

    Args:
        runner: The runner.
        hook: Who waits.
        name: What the iteration is called there.
        iteration: The number, counted from 0.
    """
    if iteration >= runner.max_iters:
        runner.logger.warning(
            f'{type(hook).__name__}: {name}={iteration} is never reached in {runner.max_iters} '
            f'iterations; move {name} along with max_iters'
        )
