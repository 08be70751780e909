"""The tools of an installed mmdyn: ``mmdyn train CONFIG``, or ``python -m mmdyn train ...``."""

import argparse
import ast
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from mmdyn import cli
from mmdyn.config_lookup import config_root

# Commands shorter than their file names.
_SHORT = {'convert_checkpoint': 'convert', 'get_flops': 'flops'}


def find_tools() -> dict[str, Path]:
    """Names and files of the Python tools, in alphabetical order."""
    folder = config_root().parent / 'tools'
    return {_SHORT.get(path.stem, path.stem): path for path in sorted(folder.glob('*.py'))}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool named first with the remaining arguments; returns its exit code."""
    return cli.run(lambda: _main(list(sys.argv[1:] if argv is None else argv)))


def _main(arguments: list[str]) -> int:
    with cli.exit_on_bad_input():
        tools = find_tools()
    parser = argparse.ArgumentParser(
        prog='mmdyn',
        description='Dynamic spatial sparsity for mmseg and mmdet.',
        epilog='mmdyn TOOL --help shows the arguments of a tool.',
    )
    commands = parser.add_subparsers(dest='tool', metavar='TOOL', required=True)
    for name, path in tools.items():
        commands.add_parser(name, help=_summary(path), add_help=False)
    # The tool parses its own arguments.
    name = parser.parse_args(arguments[:1]).tool
    program, sys.argv[0] = sys.argv[0], f'mmdyn {name}'  # shown in the tool's usage
    try:
        return runpy.run_path(str(tools[name]))['main'](arguments[1:])
    finally:
        sys.argv[0] = program


def _summary(path: Path) -> str:
    """First line of a file's docstring, without running the file."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))) or ''
    return docstring.partition('\n')[0]


if __name__ == '__main__':
    sys.exit(main())
