"""Execute a notebook top to bottom in an empty folder, and keep its outputs.

python docs/run_notebook.py docs/quickstart.ipynb
"""

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]


def execute(path: Path, folder: Path) -> nbformat.NotebookNode:
    """Execute a notebook's cells in a fresh kernel, with the checkout's mmdyn.

    Args:
        path: the notebook; the file stays as it is.
        folder: the kernel's working directory.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell fails.
        nbclient.exceptions.CellTimeoutError: if one takes more than ten minutes.
    """
    notebook = nbformat.read(path, as_version=4)
    resources = {'metadata': {'path': str(folder)}}
    # No timing: of no use to a reader, and new each time.
    client = NotebookClient(
        notebook, timeout=600, resources=resources, record_timing=False, coalesce_streams=True
    )
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH', '')]))
    # Beside other work, several threads for so small a model wait for each other most of the time.
    client.execute(env={'OMP_NUM_THREADS': '1', **os.environ, 'PYTHONPATH': path})
    notebook.metadata['language_info'] = {'name': 'python'}  # the kernel adds its version
    return notebook


if __name__ == '__main__':
    path = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        nbformat.write(execute(path, Path(folder)), path)
