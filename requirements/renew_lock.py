"""Writes the lock: every package of `make setup` with the hashes of its files.

    pip install uv
    python requirements/renew_lock.py

Versions are those of the other files here; renew them first (see constraints.txt). uv takes the
hashes of all files of a version from the index, so that whichever wheel suits a machine is in the
list. mmcv is left out: what is installed of it is compiled on the machine itself.

    pip install --require-hashes --no-deps -r requirements/lock.txt

takes the lock at its word, torch and NVIDIA's libraries included.
"""

import shutil
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
# Linux on x86-64. Python 3.11 and 3.12 get the same versions; one of them asks for 3.11.5.
LOCKS = {'lock.txt': '3.11.5'}
FILES = ('build', 'torch', 'runtime', 'dev', 'export', 'app', 'docs')


def renew(name: str, python: str) -> Path:
    """Write one lock, for a Python and those that get the same versions."""
    words = ['pip', 'compile', *(f'{file}.txt' for file in FILES), '-c', 'constraints.txt']
    words += ['--python-version', python, '--python-platform', 'x86_64-manylinux_2_28']
    words += ['--generate-hashes', '--allow-unsafe', '--no-annotate', '--no-header', '--quiet']
    subprocess.run(['uv', *words, '--upgrade', '-o', name], cwd=FOLDER, check=True)
    target = FOLDER / name
    text = target.read_text(encoding='utf-8')
    head = f'# Written by requirements/renew_lock.py, for Python {python} and later.\n'
    target.write_text(head + text, encoding='utf-8')
    return target


def main() -> int:
    """Writes all locks; returns the exit code."""
    if shutil.which('uv') is None:
        print('error: uv is not there: pip install uv', file=sys.stderr)
        return 2
    for name, python in LOCKS.items():
        print(f'wrote {renew(name, python)}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
