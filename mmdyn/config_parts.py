"""Parts of a config: nested dicts and their paths."""

import contextlib
from collections.abc import Collection, Iterator
from typing import Any

from mmengine.registry import MODELS, Registry


def parts(
    node: Any, place: str, skip: Collection[str] = (), only: Collection[str] | None = None
) -> Iterator[tuple[str, dict]]:
    """Iterate over all dicts in a part of a config, outer ones first.

    The values of a dict may be replaced before the next one is requested.

    Args:
        node: the part; anything but a dict or list yields nothing.
        place: its path, such as 'model'.
        skip: keys whose values are skipped.
        only: keys whose values are searched; None = all others.

    Yields:
        The path, such as 'model.auxiliary_head.0', and the dict.
    """
    if isinstance(node, list | tuple):
        for index, item in enumerate(node):
            yield from parts(item, f'{place}.{index}', skip, only)
    elif isinstance(node, dict):
        yield place, node
        for key, value in node.items():
            if key not in skip and (only is None or key in only):
                yield from parts(value, f'{place}.{key}', skip, only)


def add_hook(cfg: Any, name: str) -> None:
    """Add the hook ``mmdyn.NAME`` to a config unless it has one of that name."""
    hooks = list(cfg.get('custom_hooks') or [])
    if not any(type_name(hook) == name for hook in hooks):
        cfg.custom_hooks = [*hooks, dict(type=f'mmdyn.{name}')]


def type_name(part: Any) -> str:
    """Name of a part's class: 'SwinTransformer', also for 'mmseg.SwinTransformer'.

    The type may be a string or a class, the part an object (a hook); '' without a type.
    """
    kind = (part.get('type') or '') if isinstance(part, dict) else type(part)
    return getattr(kind, '__name__', str(kind)).rpartition('.')[2]


def is_pretrained(part: Any) -> bool:
    """Whether a part is an ``init_cfg`` of type ``Pretrained``, by name or class."""
    return isinstance(part, dict) and type_name(part).removesuffix('Init').endswith('Pretrained')


def class_of(kind: Any, scope: str | None, root: Registry = MODELS) -> Any:
    """Resolve the type of a part to its class; None if it is not registered.

    Args:
        kind: a registered name, a full one (``'mmseg.models.FCNHead'``, as in dumped pure-Python
            configs), or the class itself.
        scope: the config's ``default_scope``.
        root: mmengine's registry of such parts.
    """
    if not isinstance(kind, str):
        return kind
    with root.switch_scope_and_registry(scope) as registry:
        if '.' in kind:
            try:
                return registry.get(kind)
            except RuntimeError:  # raised by mmengine if importing the module fails
                return None
        # Not registry.get(): for unregistered names it imports a module of that name, if there is
        # one, such as a user's nms.py.
        while registry is not None:
            registry.import_from_location()
            if kind in registry.module_dict:
                return registry.module_dict[kind]
            registry = registry.parent
    return None


@contextlib.contextmanager
def noting_parts() -> Iterator[None]:
    """Attach to errors the part of the config being built; see :func:`part_at_fault`."""
    build = Registry.build

    def noting(self: Registry, cfg: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return build(self, cfg, *args, **kwargs)
        except Exception as error:
            # Set by the innermost part only.
            if isinstance(cfg, dict) and 'type' in cfg and part_at_fault(error) is None:
                error.config_part = dict(cfg)  # type: ignore[attr-defined]
            raise

    Registry.build = noting
    try:
        yield
    finally:
        Registry.build = build


def part_at_fault(error: Exception) -> dict[str, Any] | None:
    """The innermost part of a config whose building raised an error; None if unknown."""
    return getattr(error, 'config_part', None)
