"""The parts of a config: dicts within lists and dicts, and where they stand."""

import contextlib
from collections.abc import Collection, Iterator
from typing import Any

from mmengine.registry import MODELS, Registry


def parts(
    node: Any, place: str, skip: Collection[str] = (), only: Collection[str] | None = None
) -> Iterator[tuple[str, dict]]:
    """Every dict in a part of a config, outer ones first.

    A dict's values may be replaced between its turn and the next.

    Args:
        node: The part; what is neither dict nor list has none.
        place: Where it stands, such as 'model'.
        skip: Keys whose values are left out.
        only: The keys whose values are looked into; None = all that are not left out.

    Yields:
        The place, such as 'model.auxiliary_head.0', and the dict.
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
    """The name of a part's class: 'SwinTransformer', of 'mmseg.SwinTransformer' too.

    The type may be text or the class, the part an object (a hook); '' without a type.
    """
    kind = (part.get('type') or '') if isinstance(part, dict) else type(part)
    return getattr(kind, '__name__', str(kind)).rpartition('.')[2]


def is_pretrained(part: Any) -> bool:
    """Whether a part is an ``init_cfg`` that loads a checkpoint, ``Pretrained`` or its class."""
    return isinstance(part, dict) and type_name(part).removesuffix('Init').endswith('Pretrained')


def class_of(kind: Any, scope: str | None, root: Registry = MODELS) -> Any:
    """The class that a part of a config names; None if there is none of that name.

    Args:
        kind: Its ``type``: a registered name, a whole one (``'mmseg.models.FCNHead'``, as dumped
            pure-Python configs have it), or the class itself.
        scope: The config's ``default_scope``.
        root: mmengine's registry of such parts.
    """
    if not isinstance(kind, str):
        return kind
    with root.switch_scope_and_registry(scope) as registry:
        if '.' in kind:
            try:
                return registry.get(kind)
            except RuntimeError:  # mmengine's, where what it took for a module fails
                return None
        # Not by its get(): of a name that is not registered it imports the module, should there
        # be one, such as a user's nms.py.
        while registry is not None:
            registry.import_from_location()
            if kind in registry.module_dict:
                return registry.module_dict[kind]
            registry = registry.parent
    return None


@contextlib.contextmanager
def noting_parts() -> Iterator[None]:
    """Notes on an error which part of a config was being built; see :func:`part_at_fault`."""
    build = Registry.build

    def noting(self: Registry, cfg: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return build(self, cfg, *args, **kwargs)
        except Exception as error:
            # The innermost part comes first, and stays.
            if isinstance(cfg, dict) and 'type' in cfg and part_at_fault(error) is None:
                error.config_part = dict(cfg)  # type: ignore[attr-defined]
            raise

    Registry.build = noting
    try:
        yield
    finally:
        Registry.build = build


def part_at_fault(error: Exception) -> dict[str, Any] | None:
    """The innermost part of a config on whose building an error came; None without one."""
    return getattr(error, 'config_part', None)
