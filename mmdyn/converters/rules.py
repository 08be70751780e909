"""Rules that rename the keys of a state dict, one table per layout."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Rule:
    """What holds for the keys of one pattern.

    Attributes:
        pattern: a whole key, in which ``{i}`` (any letter) stands for a number
            and ``*`` for the rest of the key.
    """

    pattern: str

    def match(self, key: str) -> re.Match[str] | None:
        """The numbers and the rest of a key, if the pattern fits all of it."""
        return _regex(self.pattern).fullmatch(key)


@dataclass(frozen=True)
class Rename(Rule):
    """The key gets another name.

    Attributes:
        target: the new name, with the pattern's ``{i}`` and ``*``.
    """

    target: str

    def name(self, found: re.Match[str]) -> str:
        """The new name of a key that :meth:`Rule.match` found."""
        parts = found.groupdict()
        return self.target.format(**parts).replace('*', parts.get('rest', ''))


@dataclass(frozen=True)
class Drop(Rule):
    """The key is left out on purpose.

    Attributes:
        reason: what it holds.
    """

    reason: str


@dataclass(frozen=True)
class Refuse(Rule):
    """The key belongs to a model that is not ours.

    Attributes:
        reason: which, and what to take instead.
    """

    reason: str


@dataclass(frozen=True)
class Renamed:
    """A state dict after its rules.

    Attributes:
        state_dict: tensors under their new names.
        dropped: old name and reason of each tensor left out on purpose.
        unknown: tensors that no rule covers, under their old names.
        added: names of tensors that the source leaves implicit.
    """

    state_dict: dict[str, Tensor]
    dropped: dict[str, str]
    unknown: dict[str, Tensor]
    added: tuple[str, ...] = ()


def keep(*patterns: str) -> tuple[Rename, ...]:
    """Rules of names that stay as they are."""
    return tuple(Rename(pattern, pattern) for pattern in patterns)


def rename(
    state: Mapping[str, Tensor],
    rules: Iterable[Rule],
    adjust: Callable[[str, Tensor], Tensor] | None = None,
) -> Renamed:
    """Rename the keys of a state dict.

    Args:
        state: the tensors.
        rules: the first that matches a key decides on it.
        adjust: gives a tensor its new form, called with its new name.

    Raises:
        ValueError: if a rule refuses a key, or two keys get one name.
    """
    rules = tuple(rules)
    result = Renamed({}, {}, {})
    for key, value in state.items():
        rule, found = next(((r, m) for r in rules if (m := r.match(key))), (None, None))
        if isinstance(rule, Refuse):
            raise ValueError(f'{key!r}: {rule.reason}')
        if isinstance(rule, Drop):
            result.dropped[key] = rule.reason
        elif isinstance(rule, Rename):
            name = rule.name(found)
            if name in result.state_dict:
                raise ValueError(
                    f'{key!r} and another key both mean {name!r}: remove the one that is not the '
                    "model's"
                )
            result.state_dict[name] = adjust(name, value) if adjust else value
        else:
            result.unknown[key] = value
    return result


@functools.cache
def _regex(pattern: str) -> re.Pattern[str]:
    escaped = re.escape(pattern)
    escaped = re.sub(r'\\{(\w)\\}', r'(?P<\1>[0-9]+)', escaped)
    return re.compile(escaped.replace(r'\*', '(?P<rest>.+)'))
