"""benchmarks/peers.py with tiny models: runs, compares, saves and reports."""

import json
from functools import partial

import pytest
import torch

pytest.importorskip('mmseg')
pytest.importorskip('mmdet')

from mmdyn.analysis.measuring import Latency
from mmdyn.models.compiled import compile_regions
from tests.test_benchmarks import load_benchmark

peer_models, peers = map(load_benchmark, ('peer_models', 'peers'))

IMAGE = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
QUICK = ('--quick', '--threads', '1')


def run(folder, *rows):
    """Run some groups; returns the exit code and the written results."""
    code = peers.main([*QUICK, '--out', str(folder), '--rows', *rows])
    return code, json.loads((folder / 'peers.json').read_text())


@pytest.mark.slow
def test_every_kind_of_group_gives_its_rows(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(peer_models, 'PRODUCTS', ((64, 64, 64), (128, 64, 32)))
    quickly = partial(compile_regions, backend='eager')
    monkeypatch.setattr(peer_models, 'compile_regions', quickly)
    chosen = ['swin-s-512', 'convnext-s-512', 'deit-s-512', 'swin-s-compiled', 'swin-s-bf16']
    code, results = run(tmp_path, *chosen, 'swin-t-training')
    assert code == 0
    groups = {group.name: group for group in peers.all_groups()}
    for name, found in results['groups'].items():
        assert list(found['rows']) == [row.name for row in groups[name].rows]
        assert all(row['median'] > 0 for row in found['rows'].values())
        assert all(value < peer_models.TOLERANCE for value in found['deviations'].values())
        assert all(one['gmacs'] >= 0 < one['peak_mib'] for one in found['contenders'].values())
    page = (tmp_path / 'peers.md').read_text()
    assert page in capsys.readouterr().out
    for name, _ in peers.flat_rows(results):
        assert f'| {name} |' in page
    assert 'mean nothing' in page
    assert (tmp_path / 'peers.png').stat().st_size > 10_000


def test_results_are_kept_and_a_failed_group_does_not_stop_the_others(tmp_path, monkeypatch):
    first = run(tmp_path, 'deit-s-512')[1]
    tolerance = peer_models.TOLERANCE
    monkeypatch.setattr(peer_models, 'TOLERANCE', -1.0)
    code, results = run(tmp_path, 'swin-t-512-batch4')
    assert code == 1
    assert results['failed'] == {'swin-t-512-batch4': 'RuntimeError'}
    assert results['groups'] == first['groups']
    assert 'Not measured: swin-t-512-batch4' in (tmp_path / 'peers.md').read_text()
    monkeypatch.setattr(peer_models, 'TOLERANCE', tolerance)
    code, results = run(tmp_path, 'swin-t-512-batch4')
    assert code == 0 and not results['failed']
    assert list(results['groups']) == ['deit-s-512', 'swin-t-512-batch4']


def test_results_of_another_machine_are_not_mixed(tmp_path, capsys):
    path = tmp_path / 'peers.json'
    path.write_text(json.dumps(dict(quick=True, machine={}, versions={}, groups={}, failed={})))
    with pytest.raises(SystemExit) as end:
        run(tmp_path, 'deit-s-512')
    assert end.value.code == 2
    assert 'another machine' in capsys.readouterr().err


def test_reports_again_with_other_aims(tmp_path, monkeypatch):
    _, results = run(tmp_path, 'deit-s-512')
    name = 'deit-s-512: sparse, speed-up over timm'
    for aim, word in ((1e-9, 'reached'), (1e9, 'not reached')):
        monkeypatch.setattr(peers, 'AIMS', {name: aim})
        assert peers.main([*QUICK, '--out', str(tmp_path), '--report-only']) == 0
        (line,) = [x for x in (tmp_path / 'peers.md').read_text().splitlines() if name in x]
        assert line.endswith(f'| ≥ {aim:g} | {word} |')
    assert json.loads((tmp_path / 'peers.json').read_text()) == results


def test_every_aim_is_a_rows():
    names = {f'{group.name}: {row.name}' for group in peers.all_groups() for row in group.rows}
    assert peers.AIMS.keys() <= names


@pytest.mark.parametrize('family', ['swin', 'convnext', 'vit'])
def test_ours_agrees_with_its_peer_dense_and_not_sparse(family):
    built = getattr(peer_models, family)(IMAGE, 'tiny')
    assert max(built.deviations.values()) < peer_models.TOLERANCE
    with torch.inference_mode():
        dense, sparse, chance = (
            tuple(built.contenders[name](IMAGE)) for name in ('dense', 'sparse', 'random')
        )
    assert peer_models.deviation(sparse, dense) > 10 * peer_models.TOLERANCE
    assert peer_models.deviation(chance, sparse) > 10 * peer_models.TOLERANCE


def test_a_peer_with_other_weights_is_noticed():
    ours = peer_models.DynamicSwin(**peer_models.SWIN['tiny']).eval()
    peer = peer_models.host_swin('mmseg', 'tiny')
    with pytest.raises(RuntimeError, match='not the same function'):
        peer_models.compare(ours, {'peer': peer}, IMAGE)
    peer_models.compare(peer_models.load_from_peer(ours, peer), {'peer': peer}, IMAGE)


def measurement(milliseconds, macs=1, peak=1):
    latency = Latency(milliseconds, milliseconds, milliseconds, (milliseconds,) * 3, 5000.0)
    return peers.Measurement(latency, macs, peak)


@pytest.mark.parametrize(
    ('figure', 'against', 'expected'),
    [
        (peers.SPEEDUP, ('a', 'b'), 2.0),  # b is the faster one
        (peers.REALISED, ('a',), 2.0),  # 4 times as fast at half the multiply-adds
        (peers.TIME, ('b',), 0.5),
        (peers.MEMORY, ('b',), 3.0),
        (peers.OVERHEAD, (), 8.0),  # its 4 multiply-adds take 0.25 ms at the better rate
        (peers.COMPILING, (), 5.0),
    ],
)
def test_figures(figure, against, expected):
    found = dict(
        ours=measurement(2, macs=4, peak=3),
        a=measurement(8, macs=8),
        b=measurement(4),
        product_small=measurement(1, macs=8),
        product_large=measurement(2, macs=32),
    )
    row = peers.Row('ours', figure, against)
    assert peers.FIGURES[figure](found, row).median == expected


def test_a_training_step_changes_weights_and_leaves_no_gradient():
    model = torch.nn.Linear(2, 2)
    before = model.weight.clone()
    peer_models.step(model, lambda x: model(x).square().mean())(torch.ones(1, 2))
    assert model.weight.grad is None
    assert not torch.equal(model.weight, before)
