"""Execute a notebook top to bottom in an empty folder, and keep its outputs.

python docs/run_notebook.py docs/quickstart.ipynb
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 600
"""Longest that a cell may take."""


def execute(path: Path, folder: Path, seconds: int = SECONDS) -> nbformat.NotebookNode:
    """Executes a notebook's cells in a fresh kernel, with the checkout's mmdyn.

    Args:
        path: the notebook.
        folder: the kernel's working directory.
        seconds: longest that a cell may take.

    Returns:
        The notebook with its outputs; the file stays as it is.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell fails.
        nbclient.exceptions.CellTimeoutError: if one takes too long.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=seconds,
        resources={'metadata': {'path': str(folder)}},
        # When each cell began and ended is of no use to a reader, and new each time.
        record_timing=False,
        coalesce_streams=True,
        on_cell_start=lambda cell, cell_index: print(
            f'cell {cell_index + 1} of {len(notebook.cells)}', flush=True
        ),
    )
    found = [str(ROOT), os.environ.get('PYTHONPATH', '')]
    client.execute(env={**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, found))})
    # The kernel adds its Python's version.
    notebook.metadata['language_info'] = {'name': 'python'}
    return notebook


def main(argv: list[str] | None = None) -> int:
    """Executes and writes a notebook; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('notebook', type=Path)
    path = parser.parse_args(argv).notebook
    if not path.is_file():
        parser.error(f'there is no notebook {path}')
    with tempfile.TemporaryDirectory() as folder:
        notebook = execute(path, Path(folder))
    nbformat.write(notebook, path)
    print(f'written: {path}, {path.stat().st_size / 1e3:.0f} kB')
    return 0


if __name__ == '__main__':
    sys.exit(main())
