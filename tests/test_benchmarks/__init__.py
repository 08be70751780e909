"""Tests of the benchmarks, which are scripts in a folder, not a package."""

import importlib
import sys
from pathlib import Path
from types import ModuleType


def load_benchmark(name: str) -> ModuleType:
    """Import a script in ``benchmarks``."""
    folder = str(Path(__file__).parents[2] / 'benchmarks')
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module(name)
