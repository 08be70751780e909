"""Fenced code blocks of Markdown pages, and how to test each.

Python is run, a config is built, commands are parsed by their tools. A comment right before a fence
can change that::

    <!-- run -->                             these commands are run, too
    <!-- run with OLD => NEW; OLD => NEW --> this Python is run with smaller numbers

A block of Python whose first line is ``# NAME.py`` is a file of that name.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / 'README.md',
    *sorted((ROOT / 'docs').glob('*.md')),
    *sorted((ROOT / 'benchmarks').glob('results_*.md')),
]
"""The pages whose blocks are run."""

_FENCE = re.compile(
    r'^ *(`{3,}|~{3,})[ ]*([^\s`]*)[^\n`]*\n(.*?)^ *\1 *$', re.MULTILINE | re.DOTALL
)
_COMMENT = re.compile(r'<!--(?:(?!-->).)*-->\s*\Z', re.DOTALL)
# Commands with arguments in a text; `python tools/test.py ...` ends there.
_INLINE = re.compile(r'`((?:python (?:tools|benchmarks)/|bash tools/|mmdyn |make )[^`]+)`')


@dataclass(frozen=True)
class Fence:
    """A fenced block; ``note`` is the comment before it, ``line`` counts from 1."""

    page: Path
    line: int
    language: str
    text: str
    note: str = ''

    @property
    def file_name(self) -> str | None:
        """File name in its first line, if any."""
        named = re.match(r'# (\w+\.py)\n', self.text)
        return named and named[1]

    @property
    def kind(self) -> str:
        """``'python'``, ``'config'``, ``'module'``, ``'run'``, or a language that is not run.

        Raises:
            ValueError: on an unknown language or comment.
        """
        if (self.language, self.note) == ('bash', 'run'):
            return 'run'
        if self.language == 'python':
            if re.search('^_base_ = ', self.text, re.M):
                return 'config'
            if not self.note or self.note.startswith('run with '):
                return 'module' if self.file_name else 'python'
        elif not self.note and re.fullmatch(r'bash|text|\{[\w-]+\}', self.language):
            return self.language
        raise ValueError(f'{self.page.name}:{self.line}: {self.language!r}, {self.note!r}?')

    def code(self) -> str:
        """The text to run, after replacements by its comment."""
        text = self.text
        for pair in self.note.removeprefix('run with ').split(';') if self.note else ():
            old, _, new = (part.strip() for part in pair.partition('=>'))
            if old not in text:
                raise ValueError(f'{self.page.name}:{self.line}: nothing to replace, {old!r}')
            text = text.replace(old, new)
        return text

    def write(self, folder: Path) -> Path:
        """Write the file."""
        path = folder / (self.file_name or f'config_{self.line}.py')
        path.write_text(self.code())
        return path


def fences_of(page: Path) -> list[Fence]:
    """All fenced blocks of a page, in order."""
    text = page.read_text(encoding='utf-8')
    assert not re.search(r'^ *(```|~~~)', _FENCE.sub('', text), re.MULTILINE), f'{page}: open fence'
    found = []
    for match in _FENCE.finditer(text):
        before = text[: match.start()]
        comment = _COMMENT.search(before)
        note = ' '.join(comment[0].strip()[4:-3].split()) if comment else ''
        found.append(Fence(page, before.count('\n') + 1, match[2], match[3], note))
    return found


def without_fences(text: str) -> str:
    """A page's text without its fenced blocks."""
    return _FENCE.sub('', text)


def commands_of(script: str) -> list[list[str]]:
    """Commands of a script, split into words."""
    script = re.sub(r'<[a-z ]+>', 'PLACEHOLDER', script).replace('\\\n', ' ')
    commands: list[list[str]] = [[]]
    for line in script.splitlines():
        for word in shlex.split(line, comments=True):
            if word == '&&':
                commands.append([])
            elif commands[-1] or not re.match(r'[A-Z_]+=', word):  # not the environment
                commands[-1].append(word)
        commands.append([])
    return list(filter(None, commands))


def inline_commands(page: Path) -> list[list[str]]:
    """Commands in the text and tables of a page, up to '...'."""
    commands = []
    for text in _INLINE.findall(without_fences(page.read_text(encoding='utf-8'))):
        (words,) = commands_of(' '.join(re.sub(r'[][]', '', text).split()))
        if '...' in words:
            del words[words.index('...') :]
            if words[-1].startswith('--'):
                words.pop()
        commands.append(words)
    return commands
