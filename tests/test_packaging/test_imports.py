"""Packages import in one direction, also inside functions."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_MODELS = 'sparsity convolutions root converters guard datasets models'
# Allowed imports by package. Rows refer to rows above only, so there are no cycles. ``root`` are
# the top-level modules without rows of their own; ``tools`` includes cli.
MAY_IMPORT = {
    'sparsity': '',
    'convolutions': 'sparsity',
    'root': '',
    'converters': 'root',
    'guard': 'root converters',
    'datasets': 'root',
    'models': 'sparsity convolutions root converters guard',
    'engine': _MODELS,
    'visualization': f'{_MODELS} engine',
    'analysis': f'{_MODELS} engine visualization',
    'deploy': f'{_MODELS} engine analysis',
    'apis': f'{_MODELS} engine visualization analysis',
    'app': f'{_MODELS} engine visualization analysis apis',
    'tools': f'{_MODELS} engine visualization analysis deploy apis app',
}


def row_of(module: str) -> str:
    top, name = f'{module}..'.split('.')[:2]
    if top == 'tools' or name in ('cli', '__main__'):
        return 'tools'
    is_package = (ROOT / 'mmdyn' / name / '__init__.py').is_file() and name
    return name if name in MAY_IMPORT or is_package else 'root'


def imports_of(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            whole = [f'mmdyn.{alias.name}' for alias in node.names]
            found += whole if node.module == 'mmdyn' else [node.module]
    return found


@pytest.mark.parametrize('row', MAY_IMPORT)
def test_imports_point_one_way(row):
    rows, allowed = list(MAY_IMPORT), {row, *MAY_IMPORT[row].split()}
    assert allowed <= {*rows[: rows.index(row) + 1]}
    paths = [p.relative_to(ROOT) for top in ('mmdyn', 'tools') for p in ROOT.glob(f'{top}/**/*.py')]
    paths = [path for path in paths if row_of('.'.join(path.with_suffix('').parts)) == row]
    imports = [(str(path), name) for path in paths for name in imports_of(ROOT / path)]
    ours = [(path, name) for path, name in imports if name.startswith('mmdyn.')]
    assert paths and [pair for pair in ours if row_of(pair[1]) not in allowed] == []
    if row in ('sparsity', 'convolutions'):
        names = {name.split('.')[0] for _, name in imports}
        assert names - set(sys.stdlib_module_names) == {'torch', 'mmdyn'}
