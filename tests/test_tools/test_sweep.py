"""tools/sweep.py: one checkpoint at many ratios, and ratios within a budget."""

import csv
import json
import sys
from pathlib import Path

import pytest

pytest.importorskip('mmseg')

from mmdyn.analysis.evaluating import ModelTester
from tests.test_reliability.tiny import call, save_weights
from tests.test_tools.segmentation import load_tool

FAST = ('--rounds', 1, '--num-images', 1, '--threads', 1, '--images', 2)


@pytest.fixture
def model(segmentor):
    return str(segmentor.config), str(segmentor.checkpoint)


def sweep(model, out, *argv):
    """Run the tool; returns its exit code, stdout and stderr."""
    return call('sweep', *model, '--out', out, *FAST, *argv)


def results(out):
    return json.loads((out / 'sweep.json').read_text())


def test_a_sweep(model, tmp_path):
    config = Path(model[0])
    dense = tmp_path / 'dense.py'
    dense.write_text(config.read_text().replace('mmdyn.DynamicSwin', 'SwinTransformer'))
    more = ('--keep-ratio', '0.7', '1', '--keep-ratios', '0.9', '0.9', '0.2')
    policy = ('--policy', 'StaticPolicy', 'seed=3')
    code, out, _ = sweep(model, tmp_path, *more, *policy, '--dense-twin', dense, model[1])
    assert code == 0 and 'learned 0.9, 0.9, 0.2' in out
    found = {point['name']: point for point in results(tmp_path)['points']}
    assert list(found) == [
        'dense',
        'learned 0.7, 0.5, 0.3',
        'random 0.7, 0.5, 0.3',
        'StaticPolicy seed=3 0.7, 0.5, 0.3',
        'learned 0.9, 0.9, 0.2',
        'random 0.9, 0.9, 0.2',
        'StaticPolicy seed=3 0.9, 0.9, 0.2',
        'dense twin',
    ]
    gmacs = {name: point['gmacs'] for name, point in found.items()}
    assert gmacs['learned 0.7, 0.5, 0.3'] < gmacs['learned 0.9, 0.9, 0.2'] < gmacs['dense']
    assert gmacs['random 0.7, 0.5, 0.3'] == gmacs['learned 0.7, 0.5, 0.3']
    # The host's own backbone with the same weights.
    assert found['dense']['value'] == found['dense twin']['value']
    rows = list(csv.DictReader((tmp_path / 'sweep.csv').open()))
    assert rows[1]['keep_ratios'] == '0.7 0.5 0.3' and len(rows) == len(found)
    assert (tmp_path / 'sweep.png').stat().st_size > 10_000


def test_what_is_swept_is_what_test_py_finds(model, tmp_path):
    assert sweep(model, tmp_path, '--keep-ratio', '0.5', '--no-random')[0] == 0
    found = results(tmp_path)['points'][1]
    tester = ModelTester(*model, tmp_path / 'again', images=2)
    tester.loaded.backbone.set_keep_ratios((0.5, 0.3, 0.1))
    assert found['value'] == pytest.approx(tester.evaluate().metrics['mIoU'], abs=1e-3)
    assert len(tester.dataset) == 2 and tester.dataset[1]['data_samples'].img_path.endswith('2.png')


def test_a_budget_of_multiply_adds_holds_when_measured_by_another_tool(model, tmp_path):
    sweep(model, tmp_path, '--keep-ratio', '0.7', '0.3', '--no-random')
    dense, high, low = (point['gmacs'] for point in results(tmp_path)['points'])
    budget = (high + low) / 2
    out, more = tmp_path / 'found', ('--trials', 3, '--step', 0.2)
    code, said, _ = sweep(model, out, '--budget-gflops', budget, *more)
    assert code == 0
    points = results(out)['points']
    (chosen,) = (point for point in points if point['note'] == 'chosen')
    assert chosen['gmacs'] <= budget < dense
    learned = [point for point in points if point['kind'] == 'learned']
    assert chosen['value'] == max(point['value'] for point in learned)
    assert {'dense', 'random'} < {point['kind'] for point in points}
    assert f'keep_ratios=({", ".join(map(str, chosen["keep_ratios"]))}),' in said

    # The recommended command.
    words = said[said.index('tools/benchmark.py') :].split()[1:]
    shown = tmp_path / 'benchmark.json'
    more = ('--rounds', '1', '--no-random', '--device', 'cpu', '--out', shown)
    assert call('benchmark', *words, *more)[0] == 0
    (_, again) = json.loads(shown.read_text())['rows']
    assert again['keep_ratios'] == chosen['keep_ratios']
    assert again['gmacs'] == pytest.approx(chosen['gmacs'])


def test_a_budget_of_time(model, tmp_path):
    more = ('--trials', '2', '--step', '0.3', '--margin', '0.1')
    assert sweep(model, tmp_path, '--budget-ms', '60000', *more)[0] == 0
    found = results(tmp_path)
    assert found['budget'] == dict(unit='ms', limit=60000.0, margin=0.1)
    (chosen,) = (point for point in found['points'] if point['note'] == 'chosen')
    assert chosen['value'] == max(
        point['value'] for point in found['points'] if point['kind'] != 'random'
    )


def test_a_budget_that_nothing_meets_shows_what_was_tried(model, tmp_path):
    code, out, error = sweep(model, tmp_path, '--budget-gflops', 1e-6, '--step', 0.9)
    assert code == 2
    assert 'down to 0.1 meet 1e-06 GMACs' in error and 'over the budget' in out
    assert {point['kind'] for point in results(tmp_path)['points']} == {'dense', 'learned'}


def test_a_head_that_goes_by_tiles_over_a_dense_backbone(tmp_path):
    config = tmp_path / 'head.py'
    config.write_text(
        "_base_ = 'mmdyn::upernet_dynhead_mini.py'\n"
        'test_dataloader = dict(dataset=dict(train=2, val=2))\n'
    )
    root = ('--data-root', str(tmp_path / 'scenes'))
    argv = ('--tile-ratio', '0.5', '0.25', '--no-random', *root)
    assert sweep((config, save_weights(config)), tmp_path / 'out', *argv)[0] == 0
    points = results(tmp_path / 'out')['points']
    assert [point['tile_ratio'] for point in points] == [1.0, 0.5, 0.25]
    assert points[0]['gmacs'] > points[1]['gmacs'] > points[2]['gmacs']
    assert (tmp_path / 'out' / 'sweep.png').exists()


def test_a_policy_that_ratios_do_not_settle_is_measured_once(model, tmp_path):
    policy = ('--policy', 'ThresholdPolicy', 'threshold=0.4')
    assert sweep(model, tmp_path, '--keep-ratio', '0.7', '0.5', '--no-random', *policy)[0] == 0
    names = [point['name'] for point in results(tmp_path)['points']]
    assert names.count('ThresholdPolicy threshold=0.4') == 1 and len(names) == 4


def test_what_is_known_is_there_when_a_sweep_is_interrupted(model, tmp_path, monkeypatch):
    evaluate, calls = ModelTester.evaluate, []

    def interrupted(self, *args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return evaluate(self, *args)

    monkeypatch.setattr(ModelTester, 'evaluate', interrupted)
    with pytest.raises(KeyboardInterrupt):
        sweep(model, tmp_path, '--keep-ratio', '0.7', '--no-random')
    dense, learned = results(tmp_path)['points']
    assert dense['value'] is not None and learned['value'] is None and learned['gmacs'] > 0


def test_help_needs_no_torch(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'torch', None)
    with pytest.raises(SystemExit) as end:
        load_tool('sweep').parse_args(['--help'])
    assert end.value.code == 0 and 'budget-ms' in capsys.readouterr().out
