"""Command lines of the pages: told apart by a shell, and parsed by the tools that they call."""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from unittest import mock

from mmdyn.__main__ import find_tools
from mmdyn.config_lookup import resolve_config_path
from tests.test_docs.fences import ROOT, without_fences

# A shell in which every program only notes how it was called, and unknown ones fail.
_PROGRAMS = ('python', 'pip', 'git', 'make', 'mmdyn', 'bash', 'cd')
_PREAMBLE = 'set -eu; PATH=; ' + ' '.join(
    f'{name}() {{ printf "%s\\0" "$#" {name} "$@"; }};' for name in _PROGRAMS
)
_PLACEHOLDER = re.compile(r'<[a-z ]+>')
# Commands within a text that have arguments; `python tools/test.py ...` breaks off.
_INLINE = re.compile(r'`((?:python (?:tools|benchmarks)/|bash tools/|mmdyn |make )[^`]+)`')


class Parsed(Exception):
    """A parser took its arguments: what follows need not run."""


def commands_of(script: str) -> list[list[str]]:
    """The commands that a script would call, with variables, loops and quotes resolved.

    Raises:
        ValueError: if the shell refuses it, or it calls a program that is not known here.
    """
    text = _PLACEHOLDER.sub('PLACEHOLDER', script)
    done = subprocess.run(
        ['bash', '--noprofile', '--norc', '-c', f'{_PREAMBLE}\n{text}'],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise ValueError(f'{done.stderr.strip()} in\n{script}')
    words, commands = done.stdout.split('\0')[:-1], []
    while words:
        count = int(words[0]) + 2
        commands.append(words[1:count])
        words = words[count:]
    return commands


def inline_commands(page: Path) -> list[list[str]]:
    """The commands in the text and the tables of a page."""
    found = _INLINE.findall(without_fences(page.read_text(encoding='utf-8')))
    commands = [shlex.split(re.sub(r'[][]', '', text)) for text in found]
    return [command[: _end(command)] for command in commands]


def _end(command: list[str]) -> int:
    """Where a command breaks off: before '...' and the option that it belongs to."""
    end = command.index('...') if '...' in command else len(command)
    return end - 1 if end < len(command) and command[end - 1].startswith('--') else end


def check(command: list[str], folder: Path) -> None:
    """Check a command as far as that goes without running it.

    Args:
        command: the program and its arguments.
        folder: where files lie that the page has written.

    Raises:
        ValueError: naming what is wrong.
    """
    program, *arguments = command
    if program == 'python' and arguments[0] == '-c':
        compile(arguments[1], 'command', 'exec')
    elif program == 'python' and arguments[:2] == ['-m', 'pytest']:
        for word in arguments[2:]:
            if word.endswith('.py'):
                exists(word)
    elif program == 'python':
        parse(arguments[0], arguments[1:], folder)
    elif program == 'mmdyn':
        tools = find_tools()
        if arguments[0] not in tools:
            raise ValueError(f'mmdyn has no tool {arguments[0]}, only {", ".join(tools)}')
        if len(arguments) > 1:
            parse(str(tools[arguments[0]]), arguments[1:], folder)
    elif program == 'bash':
        exists(arguments[0])
        check_configs(arguments[1:], folder)
    elif program == 'make':
        check_make(arguments)
    elif program == 'pip':
        for word in arguments:
            if word.endswith('.txt'):
                exists(word)


def parse(script: str, arguments: list[str], folder: Path) -> None:
    """Let a tool's own parser take the arguments.

    Raises:
        ValueError: if it refuses them, with its message.
    """
    path = exists(script)
    check_configs(arguments, folder)
    with mock.patch('sys.path', [str(path.parent), *sys.path]):
        tool = runpy.run_path(str(path))
    messages = io.StringIO()
    with contextlib.redirect_stderr(messages), contextlib.suppress(Parsed):
        try:
            if 'parse_args' in tool:
                tool['parse_args'](arguments)
            else:
                with mock.patch('argparse.ArgumentParser.parse_args', _parse_and_stop):
                    tool['main'](arguments)
        except SystemExit:
            why = messages.getvalue().strip().rpartition('\n')[2]
            raise ValueError(f'{script} {shlex.join(arguments)}: {why}') from None


_PARSE_ARGS = argparse.ArgumentParser.parse_args


def _parse_and_stop(parser: argparse.ArgumentParser, argv: list[str]) -> None:
    _PARSE_ARGS(parser, argv)
    raise Parsed


def check_configs(arguments: list[str], folder: Path) -> None:
    """See that configs are there: ours, the hosts', or the page's own; CONFIG stands for any."""
    for word in arguments:
        if word.startswith('mmdyn::') or (word.endswith('.py') and not (folder / word).is_file()):
            resolve_config_path(word if '::' in word else ROOT / word)


def check_make(arguments: list[str]) -> None:
    """See that targets and variables are in the Makefile."""
    text = (ROOT / 'Makefile').read_text(encoding='utf-8')
    for word in arguments:
        name, equals, _ = word.partition('=')
        pattern = rf'^{name} \?=' if equals else rf'^{name}:'
        if not re.search(pattern, text, re.MULTILINE):
            raise ValueError(f'the Makefile has no {name}')


def exists(path: str) -> Path:
    """The path in the checkout.

    Raises:
        ValueError: if there is no such file.
    """
    if not (ROOT / path).is_file():
        raise ValueError(f'there is no {path}')
    return ROOT / path
