"""The parts of a config: dicts within lists and dicts, and where they stand."""

from collections.abc import Collection, Iterator
from typing import Any


def parts(node: Any, place: str, skip: Collection[str] = ()) -> Iterator[tuple[str, dict]]:
    """Every dict in a part of a config, outer ones first.

    A dict's values may be replaced between its turn and the next.

    Args:
        node: The part; what is neither dict nor list has none.
        place: Where it stands, such as 'model'.
        skip: Keys whose values are left out.

    Yields:
        The place, such as 'model.auxiliary_head.0', and the dict.
    """
    if isinstance(node, list | tuple):
        for index, item in enumerate(node):
            yield from parts(item, f'{place}.{index}', skip)
    elif isinstance(node, dict):
        yield place, node
        for key, value in node.items():
            if key not in skip:
                yield from parts(value, f'{place}.{key}', skip)


def type_name(part: dict) -> str:
    """The name of the class that a part is of, whether it stands there as text or as the class.

    Args:
        part: A dict of a config.

    Returns:
        Such as 'SwinTransformer', of 'mmseg.SwinTransformer' too; '' if it has no type.
    """
    kind = part.get('type') or ''
    return getattr(kind, '__name__', str(kind)).rpartition('.')[2]


def is_pretrained(part: dict) -> bool:
    """Whether an ``init_cfg`` loads a checkpoint: ``Pretrained``, or mmengine's class for it.

    Args:
        part: A dict of a config.
    """
    return type_name(part).removesuffix('Init').endswith('Pretrained')
