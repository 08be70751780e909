"""Fenced code blocks of Markdown pages, and what is to be done with each.

A comment right before a fence may say so; without one a block of Python is run, a config's is
built, and commands are parsed by the tools they call::

    <!-- run -->                             these commands, too, are run
    <!-- run with OLD => NEW; OLD => NEW --> this Python, with smaller numbers
    <!-- config on mmdyn::NAME.py -->        a part of a config, with what it is added to
    <!-- not run: REASON -->                 shown only

A block of Python whose first line is ``# NAME.py`` is a file of that name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

_FENCE = re.compile(
    r'^ *(`{3,}|~{3,})[ ]*([^\s`]*)[^\n`]*\n(.*?)^ *\1 *$', re.MULTILINE | re.DOTALL
)
_COMMENT = re.compile(r'<!--(?:(?!-->).)*-->\s*\Z', re.DOTALL)
_NAME = re.compile(r'# (\w+\.py)\n')


@dataclass(frozen=True)
class Fence:
    """A fenced block.

    Attributes:
        page: the file it stands in.
        line: where it begins, from 1.
        language: what follows the backticks.
        text: what stands between them.
        note: the comment right before it, without its brackets; may be empty.
    """

    page: Path
    line: int
    language: str
    text: str
    note: str = ''

    @property
    def where(self) -> str:
        """For messages and the tests' names."""
        return f'{self.page.name}:{self.line}'

    @property
    def file_name(self) -> str | None:
        """The name of the file that it is, if it says so in its first line."""
        named = _NAME.match(self.text)
        return named and named[1]

    @property
    def base(self) -> str | None:
        """The config that a part of a config is added to."""
        return self._after('config on ')

    def code(self) -> str:
        """The text as it is run, with the replacements that the comment asks for.

        Raises:
            ValueError: if something is to be replaced that is not there.
        """
        text = self.text
        for pair in filter(None, (self._after('run with ') or '').split(';')):
            old, _, new = (part.strip() for part in pair.partition('=>'))
            if not old or old not in text:
                raise ValueError(f'{self.where}: nothing to replace, {old!r}')
            text = text.replace(old, new)
        return text

    def kind(self) -> str:
        """What is to be done with it.

        Returns:
            ``'config'``, ``'module'`` (a file to be imported), ``'python'``, ``'bash'``
            (parsed), ``'run'`` (commands that are run), ``'text'``, ``'sphinx'`` (checked by
            its build) or ``'skip'``.

        Raises:
            ValueError: on a language or a comment of which it is not known.
        """
        if re.fullmatch(r'not run: \S.*', self.note, re.DOTALL):
            return 'skip'
        if self.language == 'python':
            if self.base or re.search(r'^_base_ = ', self.text, re.MULTILINE):
                return self._if_note('config', 'config on ')
            return self._if_note('module' if self.file_name else 'python', 'run with ')
        if self.language == 'bash':
            return 'run' if self.note == 'run' else self._if_note('bash')
        if self.language == 'text':
            return self._if_note('text')
        if re.fullmatch(r'\{[\w-]+\}', self.language):
            return self._if_note('sphinx')
        raise ValueError(f'{self.where}: language {self.language!r}, what is to be done with it?')

    def _if_note(self, kind: str, start: str | None = None) -> str:
        if self.note and not (start and self.note.startswith(start)):
            raise ValueError(f'{self.where}: comment {self.note!r}, what is to be done?')
        return kind

    def _after(self, start: str) -> str | None:
        return self.note[len(start) :] if self.note.startswith(start) else None


def fences_of(page: Path) -> list[Fence]:
    """All fenced blocks of a page, in order.

    Raises:
        ValueError: if one is not closed.
    """
    text = page.read_text(encoding='utf-8')
    found = []
    for match in _FENCE.finditer(text):
        comment = _COMMENT.search(text[: match.start()])
        note = ' '.join(comment[0].strip()[4:-3].split()) if comment else ''
        line = text[: match.start()].count('\n') + 1
        found.append(Fence(page, line, match[2], match[3], note))
    rest = _FENCE.sub('', text)
    if re.search(r'^ *(```|~~~)', rest, re.MULTILINE):
        raise ValueError(f'{page.name}: a fence is not closed')
    return found


def without_fences(text: str) -> str:
    """A page's text with empty lines in the place of its fenced blocks."""
    return _FENCE.sub(lambda match: '\n' * match[0].count('\n'), text)


PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
"""The pages whose blocks are run."""
