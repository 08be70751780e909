"""benchmarks/cpu_runtimes.py with tiny models: that it runs, compares, saves and reports."""

import importlib.util
import json
from functools import partial
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmseg')
pytest.importorskip('mmdet')

from mmdyn.analysis.measuring import Latency, Measurement
from tests.test_benchmarks import load_benchmark

peer_models, cpu_models, bench = map(load_benchmark, ('peer_models', 'cpu_models', 'cpu_runtimes'))
Contender = cpu_models.Contender

RUNTIMES = [name for name in cpu_models.RUNTIMES if importlib.util.find_spec(name)]
ABSENT = [name for name in cpu_models.RUNTIMES if name not in RUNTIMES]
QUICK = ('--quick', '--threads', '1')


def run(folder, *groups, without=cpu_models.RUNTIMES):
    """Run some groups; returns the exit code and the written rows."""
    command = [*QUICK, '--out', str(folder), '--groups', *groups]
    code = bench.main(command + (['--without', *without] if without else []))
    return code, json.loads((folder / bench.FILE).read_text())['rows']


def check(folder, rows):
    """Check that rows are flat and plausible, and that page and plot show them."""
    page = (folder / 'cpu_runtimes.md').read_text()
    assert 'mean nothing' in page
    for row in rows:
        assert all(isinstance(value, str | int | float) for value in row.values())
        assert row['processor'] and row['processor'] in page
        assert f'## {row["group"]}' in page and row['contender'] in page
        if 'median_ms' in row:
            assert row['ms_lower'] <= row['median_ms'] <= row['ms_upper']
            assert row['gmacs'] > 0 < row['speedup_over_host'] and row['time_over_products'] > 0
            assert row.get('realised', 1) > 0
            if row['dtype'] == 'float32':
                assert row.get('deviation', 0) < peer_models.TOLERANCE or 'own' in row
                assert row.get('agreement', 1) > 0.99
    assert (folder / 'cpu_runtimes.png').stat().st_size > 10_000


@pytest.fixture
def small_products(monkeypatch):
    monkeypatch.setattr(peer_models, 'PRODUCTS', ((64, 64, 64), (128, 64, 32)))


@pytest.mark.slow
def test_every_kind_of_group_gives_its_rows(tmp_path, small_products, capsys):
    groups = ('upernet-swin-t', 'upernet-convnext-t', 'mask-rcnn-swin-s', 'convnext-s')
    code, rows = run(tmp_path, *groups, without=ABSENT)
    assert code == 0
    assert (tmp_path / 'cpu_runtimes.md').read_text() in capsys.readouterr().out
    check(tmp_path, rows)
    assert {row['group'] for row in rows} == set(groups)
    compiled = {'mmseg compiled', 'stand-in compiled'}
    left_out = {row['contender'] for row in rows if 'missing' in row} - compiled
    assert all(name.endswith(tuple(ABSENT)) or name.startswith(tuple(ABSENT)) for name in left_out)
    aimed = {(aim.group, aim.contender) for aim in bench.AIMS if aim.group in groups}
    assert aimed < {(row['group'], row.get('contender')) for row in rows}
    assert all(aim.field in row for aim, row in bench.aims(rows))
    # The host's model in its own process has the same weights.
    eager = [row for row in rows if row['contender'] == 'mmseg eager']
    assert [row['deviation'] for row in eager] == [0]


@pytest.mark.slow
def test_lower_precisions(tmp_path, small_products):
    code, rows = run(tmp_path, 'swin-s-lower')
    assert code == 0
    check(tmp_path, rows)
    for precision in bench.LOWER:
        measured = [row for row in rows if row['contender'].endswith(f'prepared, {precision}')]
        if 'missing' not in measured[0]:  # if the CPU lacks it
            assert {row['dtype'] for row in measured} == {precision}
            dense, sparse, _ = measured
            assert 0 < dense['deviation'] < 0.2 and sparse['own'] == dense['contender']


@pytest.mark.slow
def test_groups_are_kept_and_replaced(tmp_path, small_products, monkeypatch, capsys):
    code, first = run(tmp_path, 'deit-s')
    assert code == 0
    check(tmp_path, first)

    def fails(options):
        raise RuntimeError('out of luck\nand more')

    monkeypatch.setitem(bench.GROUPS, 'swin-t', bench.Group(fails))
    code, rows = run(tmp_path, 'swin-t')
    assert code == 1
    assert [row for row in rows if row['group'] == 'deit-s'] == first
    assert [row['failed'] for row in rows if row['group'] == 'swin-t'] == [
        'RuntimeError: out of luck'
    ]
    assert 'out of luck' in (tmp_path / 'cpu_runtimes.md').read_text()
    page = (tmp_path / 'cpu_runtimes.md').read_text()
    assert bench.main(['--report-only', '--out', str(tmp_path)]) == 1
    assert (tmp_path / 'cpu_runtimes.md').read_text() == page


def fails_with_two(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        bench.main(arguments)
    assert end.value.code == 2
    return capsys.readouterr().err


def test_bad_usage(tmp_path, capsys, monkeypatch):
    assert 'invalid choice' in fails_with_two(['--groups', 'resnet'], capsys)
    assert 'at least 1' in fails_with_two(['--threads', '0'], capsys)
    out = ('--out', str(tmp_path))
    assert 'nothing to report on' in fails_with_two(['--report-only', *out], capsys)
    monkeypatch.setattr(cpu_models, 'find_spec', lambda name: None if name == 'openvino' else 1)
    error = fails_with_two([*QUICK, *out], capsys)
    assert 'openvino' in error and 'requirements/benchmark.txt' in error
    assert '--without openvino' in error


def test_quick_results_go_elsewhere():
    assert bench.parse_args(['--quick']).out == Path('work_dirs/cpu_runtimes')
    assert bench.parse_args([]).out == Path(bench.__file__).parent


def test_results_of_others_are_not_mixed(tmp_path, capsys):
    found = dict(quick=True, machine=dict(cpu='another'), versions={}, runtimes={}, rows=[])
    (tmp_path / bench.FILE).write_text(json.dumps(found))
    arguments = [*QUICK, '--out', str(tmp_path), '--without', *cpu_models.RUNTIMES]
    assert 'another machine' in fails_with_two(arguments, capsys)


def test_what_is_not_the_same_function_is_not_measured():
    image = torch.rand(1, 3, 4, 4)
    built = {
        'host eager': Contender(torch.sin, host=True),
        'same': Contender(torch.sin, 'host eager'),
        'other': Contender(torch.cos, 'host eager'),
        'chosen': Contender(torch.cos, 'host eager', differs=True),
        'absent': 'left out',
    }
    _, compared, missing = bench.check(built, image, lambda: None)
    assert compared['same'] == dict(deviation=0, agreement=1)
    assert compared['chosen']['deviation'] > 0.1
    assert missing['absent'] == 'left out' and 'not the same function' in missing['other']
    assert set(missing) == {'absent', 'other'}


def measurement(milliseconds, macs):
    latency = Latency(milliseconds, milliseconds, milliseconds, (milliseconds,) * 3, 0.0)
    return Measurement(latency, macs)


def test_figures():
    found = {
        'host eager': measurement(16, 1.6e9),
        'openvino dense': measurement(8, 1.6e9),
        'ours dense': measurement(4, 1.6e9),
        'ours sparse': measurement(2.5, 0.8e9),
        'product': measurement(1, 0.5e9),
    }
    one = partial(Contender, torch.sin)
    built = {
        'host eager': one(host=True),
        'openvino dense': one(host=True),
        'ours dense': one(),
        'ours sparse': one(own='ours dense'),
    }
    *_, sparse, products = bench.rows_of(found, built)
    assert products == dict(contender='products', gmacs_per_s=500)
    assert (sparse['best'], sparse['host']) == ('openvino dense', 'host eager')
    assert (sparse['speedup_over_best'], sparse['speedup_over_host']) == (3.2, 6.4)
    assert (sparse['realised'], sparse['own']) == (0.8, 'ours dense')
    assert (sparse['gmacs_per_s'], sparse['time_over_products']) == (320, 1.5625)
    assert bench.Aim('', '', 'realised', 0.8).reached(sparse)
    assert not bench.Aim('', '', 'time_over_products', 1.4, at_least=False).reached(sparse)
