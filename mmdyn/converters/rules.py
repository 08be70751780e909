"""Renames the keys of a state dict by a table of rules, one table per layout.

In a pattern, ``{i}`` (any letter) matches a number and ``*`` the rest of the key. It must match the
whole key.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class Drop(NamedTuple):
    """Drop the key; ``reason`` says what it is."""

    reason: str


class Refuse(NamedTuple):
    """The key belongs to an unsupported model; ``reason`` says which, and the alternative."""

    reason: str


Rules = Mapping[str, str | Drop | Refuse]
"""Action by pattern, a new name with the pattern's ``{i}`` and ``*`` or one of the above. The first
matching pattern applies."""


@dataclass(frozen=True)
class Renamed:
    """A renamed state dict.

    Attributes:
        state_dict: tensors under their new names.
        dropped: old name and reason of each dropped tensor.
        unknown: tensors that no rule covers, under their old names.
    """

    state_dict: dict[str, Tensor]
    dropped: dict[str, str]
    unknown: dict[str, Tensor]


def keep(*patterns: str) -> Rules:
    """Rules for names that are kept."""
    return {pattern: pattern for pattern in patterns}


def last_norm(state: Mapping[str, Tensor], *patterns: str) -> Rules:
    """Rules that make the norm after the last stage that stage's output norm."""
    found = (re.match(r'(?:layers|stages)\.([0-9]+)\.', key) for key in state)
    last = max((int(match[1]) for match in found if match), default=0)
    return dict.fromkeys(patterns, f'norm{last}.*')


def fits(pattern: str, key: str) -> re.Match[str] | None:
    """Match a key against a pattern; None if it doesn't match."""
    return _regex(pattern).fullmatch(key)


def rename(
    state: Mapping[str, Tensor],
    rules: Rules,
    adjust: Callable[[str, Tensor], Tensor] = lambda _, value: value,
) -> Renamed:
    """Rename the keys of a state dict; ``adjust(new name, tensor)`` converts tensors.

    Raises:
        ValueError: if a rule refuses a key, or two keys get the same name.
    """
    result = Renamed({}, {}, {})
    for key, value in state.items():
        found = ((rule, m) for pattern, rule in rules.items() if (m := fits(pattern, key)))
        rule, match = next(found, (None, None))
        if rule is None:
            result.unknown[key] = value
        elif isinstance(rule, Refuse):
            raise ValueError(f'{key!r}: {rule.reason}')
        elif isinstance(rule, Drop):
            result.dropped[key] = rule.reason
        else:
            parts = match.groupdict()
            name = rule.format(**parts).replace('*', parts.get('rest', ''))
            if name in result.state_dict:
                raise ValueError(
                    f'{key!r} and another key both mean {name!r}: remove the one that does not '
                    'belong to the model'
                )
            result.state_dict[name] = adjust(name, value)
    return result


@functools.cache
def _regex(pattern: str) -> re.Pattern[str]:
    escaped = re.sub(r'\\{(\w)\\}', r'(?P<\1>[0-9]+)', re.escape(pattern))
    return re.compile(escaped.replace(r'\*', '(?P<rest>.+)'))
