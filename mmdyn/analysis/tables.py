"""Tables for terminals and Markdown."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

WIDTH = 120
"""Width in characters without a terminal."""


def print_table(
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    title: str = '',
    *,
    total: Sequence[str] | None = None,
) -> None:
    """Print a table with right-aligned numbers; ``total`` is a last row, below a rule."""
    table = Table(title=title or None, title_justify='left')
    for number, heading in enumerate(headings):
        left = number == 0 or heading == 'note'
        table.add_column(heading, justify='left' if left else 'right')
    for row in rows:
        table.add_row(*row)
    if total is not None:
        table.add_section()
        table.add_row(*total)
    _console().print(table)


def print_text(text: str) -> None:
    """Print a paragraph, wrapped to the width of tables."""
    _console().print(text, markup=False)


def _console() -> Console:
    return Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)


def to_markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a Markdown table."""
    lines = [headings, ('---',) * len(headings), *rows]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines) + '\n'
