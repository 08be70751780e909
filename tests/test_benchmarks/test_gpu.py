"""benchmarks/gpu.py on a CPU with tiny models: runs, saves, and continues after failures."""

import contextlib
import json
import subprocess
import sys
import types
import warnings
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmseg')

from mmdyn.analysis.measuring import Latency, Measurement
from mmdyn.sparsity import FixedPolicy
from tests.test_benchmarks import load_benchmark

gpu_models, gpu_report, gpu = map(load_benchmark, ('gpu_models', 'gpu_report', 'gpu'))

CPU = torch.device('cpu')
# As with only mmseg installed, and mmcv without compiled operators.
BLOCKED = """
import runpy, sys
sys.modules |= dict.fromkeys(('mmdet', 'mmcv._ext', 'mmcv.ops', 'pycocotools', 'onnx'))
sys.path.insert(0, 'benchmarks')
runpy.run_path('benchmarks/gpu.py', run_name='__main__')
"""


def check(folder):
    """Check the results in a folder: flat, plausible rows, a page with all of them, a plot."""
    found = json.loads((folder / 'gpu.json').read_text())
    page = (folder / 'gpu.md').read_text()
    assert 'mean nothing' in page
    for row in found['rows']:
        assert all(isinstance(value, str | int | float) for value in row.values())
        assert gpu_report.about(row)[0] in page and row.get('failed', '') in page
        assert 'failed' not in row, row
        if 'ms' in row:
            assert row['ms'] > 0 < row['gmacs'] and row['speedup'] > 0 < row['speedup_over_best']
        # On the same device nothing may deviate in fp32.
        assert row['dtype'] != 'fp32' or row['deviation'] == 0
    assert (folder / 'gpu.png').stat().st_size > 10_000
    return found['rows']


def test_some_models(tmp_path, capsys):
    models = ('deit-s', 'uperhead-t')
    assert gpu.main(['--tiny', '--out', str(tmp_path / 'gpu.json'), '--models', *models]) == 0
    rows = check(tmp_path)
    assert {row['model'] for row in rows} == set(models)
    printed = capsys.readouterr().out
    assert all(f'{row["mode"]} {row["contender"]}' in printed for row in rows if 'ms' in row)


@pytest.mark.slow
def test_every_group_has_its_rows_where_only_mmseg_is(tmp_path):
    root = Path(__file__).parents[2]
    command = [sys.executable, '-c', BLOCKED, '--tiny', '--out', str(tmp_path / 'gpu.json')]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = check(tmp_path)
    assert {row['group'] for row in rows} == {*gpu_report.SPEED, 'parity', 'training'}
    timed = [row for row in rows if 'ms' in row]
    contenders = {(row['model'], row['contender']) for row in timed}
    for ours in ('sparse', 'dense', 'random'):
        assert {(f'{one}-s', ours) for one in ('swin', 'convnext', 'deit')} < contenders
    for model in ('uperhead-t', 'upernet-t'):
        assert {(model, one) for one in ('mmseg', 'exact', 'static', 'tiles')} < contenders
    assert ('swin-t', 'masked') in contenders
    saved = {row['contender'] for row in timed if 'work_saved' in row}
    assert saved == {'sparse', 'random', 'static', 'tiles'}
    assert any(row['mode'] == 'compiled' for row in timed)
    assert 'mmdet' not in json.loads((tmp_path / 'gpu.json').read_text())['versions']


def test_what_does_not_fit_is_named(tmp_path):
    assert gpu.main(['--tiny', '--seconds', '0', '--out', str(tmp_path / 'gpu.json')]) == 0
    found = json.loads((tmp_path / 'gpu.json').read_text())
    assert not found['rows']
    assert len(found['skipped']) == len(gpu.plan(True, gpu.MODELS))
    page = (tmp_path / 'gpu.md').read_text()
    assert all(f'{what}: not within 0 s' in page for what in found['skipped'])


def test_a_gpu_is_asked_for(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(SystemExit) as end:
        gpu.main([])
    assert end.value.code == 2
    assert '--tiny' in capsys.readouterr().err


def bench_of(tmp_path, monkeypatch, **runs):
    """A run on the CPU with functions as contenders; mmseg's is the host."""
    contenders = gpu_models.Contenders(('mmseg',), 'dense', runs)
    monkeypatch.setattr(gpu_models, 'build', lambda *args: contenders)
    return gpu.Bench(True, 1e9, tmp_path / 'gpu.json')


def test_after_a_failure_the_others_go_on(tmp_path, monkeypatch, capsys):
    def fails(images):
        raise RuntimeError('out of luck\nand more')

    bench = bench_of(tmp_path, monkeypatch, mmseg=torch.sin, dense=torch.cos, sparse=fails)
    cell = gpu.Cell('swin-s', (8, 8), 1, 'tf32')
    bad = gpu.Step('cell', lambda bench, cell: fails(None), cell)
    bench.run([bad, gpu.Step('cell', gpu.speed, cell)])
    whole, sparse, *others = json.loads(bench.path.read_text())['rows']
    assert whole['failed'].endswith('RuntimeError: out of luck') and 'contender' not in whole
    assert (sparse['contender'], sparse['failed']) == ('sparse', 'RuntimeError: out of luck')
    assert [row['contender'] for row in others] == ['mmseg', 'dense']
    # Repeated measurements replace earlier ones.
    bench.run([gpu.Step('cell', gpu.speed, cell)])
    assert len(json.loads(bench.path.read_text())['rows']) == 4
    assert 'out of luck' in gpu_report.page(bench.results)


def test_a_compilation_that_does_not_fit_is_left_out(tmp_path, monkeypatch):
    bench = bench_of(tmp_path, monkeypatch, mmseg=torch.sin, dense=torch.cos)
    bench.took('compiling', 1e12)
    cell = gpu.Cell('swin-s', (8, 8), 1, 'tf32', ('eager', 'compiled'))
    assert [row['mode'] for row in gpu.speed(bench, cell)] == ['eager'] * 2
    assert [what.split(', ')[1] for what in bench.results['skipped']] == [
        'mmseg compiled',
        'dense compiled',
    ]


def measurement(milliseconds, macs):
    latency = Latency(milliseconds, milliseconds, milliseconds, (milliseconds,) * 3, 0.0)
    return Measurement(latency, macs)


def test_figures():
    found = {
        ('mmseg', 'eager'): measurement(12, 16),
        ('mmseg', 'graph'): measurement(6, 16),
        ('dense', 'graph'): measurement(4, 16),
        ('sparse', 'graph'): measurement(3, 8),
    }
    cell = gpu.Cell('swin-s', (8, 8), 1, 'bf16')
    *_, sparse = gpu.compared(cell, found, ['mmseg'], 'dense')
    assert (sparse['speedup'], sparse['speedup_over_best']) == (2, 2)
    assert sparse['best'] == 'mmseg graph'
    assert (sparse['realised'], sparse['time_saved'], sparse['work_saved']) == (0.6667, 0.25, 0.5)
    first = next(gpu.compared(cell, found, ['mmseg'], 'dense'))
    assert (first['speedup'], first['speedup_over_best']) == (1, 0.5)


def test_the_random_choice_is_replayed():
    contenders = gpu_models.build('swin-s', (64, 96), CPU, True)
    one, other = gpu_models.batches_for(contenders, (64, 96), 2, CPU, 2)
    gpu_models.draw(contenders, one)
    random, sparse = contenders.random, contenders.runs['sparse']
    assert isinstance(random.policy, FixedPolicy)
    with torch.no_grad():
        masks = [[d.keep_mask for d in random.forward_sparse(x).decisions] for x in (one, other)]
        counts = [d.keep_mask.sum() for d in sparse.forward_sparse(one).decisions]
    assert all(map(torch.equal, *masks))
    assert [mask.sum() for mask in masks[0]] == counts


@pytest.fixture
def fake_cuda(monkeypatch):
    """Fakes the functions of torch.cuda that graphs and checks use; ``mode`` is the sync mode."""
    state = types.SimpleNamespace(mode='default', captures=0, replays=0)

    def capture(graph, pool):
        state.captures += 1
        return contextlib.nullcontext()

    class Graph:
        def replay(self):
            state.replays += 1

    stream = types.SimpleNamespace(wait_stream=lambda other: None)
    fakes = dict(
        set_sync_debug_mode=lambda mode: setattr(state, 'mode', mode),
        Stream=lambda: stream,
        current_stream=lambda: stream,
        stream=lambda one: contextlib.nullcontext(),
        CUDAGraph=Graph,
        graph=capture,
    )
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)

    def synchronise():
        if state.mode == 'error':
            raise RuntimeError('called a synchronizing CUDA operation\nmore')
        if state.mode == 'warn':
            warnings.warn('called a synchronizing CUDA operation', stacklevel=1)

    state.synchronise = synchronise
    return state


def test_synchronisations_are_counted(fake_cuda):
    def run():
        fake_cuda.synchronise()
        fake_cuda.synchronise()

    found = gpu_models.count_synchronisations(run)
    assert found['count'] == 2
    assert 'test_gpu.py' in found['places'] and found['places'].endswith('x2')
    assert found['error'] == 'called a synchronizing CUDA operation'
    assert fake_cuda.mode == 'default'
    assert gpu_models.count_synchronisations(lambda: None) == dict(count=0)


def test_a_graph_reads_each_batch_from_its_own_input(fake_cuda):
    maps = [torch.ones(2), torch.zeros(3)]
    run = gpu_models.captured(lambda item: item, maps, None)
    own = run([torch.full((2,), 5.0), torch.full((3,), 6.0)])
    assert (own[0].tolist(), own[1].tolist()) == ([5.0] * 2, [6.0] * 3)
    assert (fake_cuda.captures, fake_cuda.replays) == (1, 1)
    assert maps[0].tolist() == [1.0] * 2


def test_what_synchronises_is_not_captured(fake_cuda):
    with pytest.raises(RuntimeError, match='synchronizing'):
        gpu_models.captured(lambda x: fake_cuda.synchronise(), torch.ones(2), None)
    assert fake_cuda.captures == 0
    assert fake_cuda.mode == 'default'
