"""The demo, start to end, on a few scenes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('mmseg')

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_quick_demo_ends_in_a_table_and_pictures(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / 'tools/demo.py', '--quick', '--work-dir', tmp_path],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / 'results.json').read_text())
    assert [(row['model'], row['policy']) for row in rows] == [
        ('dense', 'none'),
        *[('sparse', 'learned')] * 4,
        ('sparse', 'random'),
    ]
    assert set(rows[0]) == {
        'model',
        'policy',
        'keep_ratios',
        'seed',
        'miou',
        'backbone_gflops',
        'latency_ms',
        'speedup',
    }
    flops = [row['backbone_gflops'] for row in rows[1:5]]
    assert flops == sorted(flops, reverse=True) and flops[2] < rows[0]['backbone_gflops']
    assert rows[5]['backbone_gflops'] == rows[3]['backbone_gflops']
    assert len(list((tmp_path / 'overlays').glob('*.png'))) == 4
    assert 'left' in done.stdout and 'results.json' in done.stdout.splitlines()[-3]
