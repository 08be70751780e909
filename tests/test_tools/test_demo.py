"""The demo, start to end, on a few scenes; and the comparison of what it trained."""

import json

import pytest

pytest.importorskip('mmseg')

from mmdyn.analysis.evaluating import ModelTester, check_same_test_set
from tests.test_reliability.tiny import call
from tests.test_tools.segmentation import load_tool

KEYS = {
    'model',
    'policy',
    'keep_ratios',
    'seed',
    'miou',
    'backbone_gflops',
    'latency_ms',
    'speedup',
}


@pytest.fixture(scope='module')
def demo(tmp_path_factory):
    """The folder and the output of a quick run."""
    folder = tmp_path_factory.mktemp('demo')
    code, shown, error = call('demo', '--quick', '--work-dir', folder)
    assert code == 0, error
    return folder, shown


def test_quick_demo_ends_in_a_table_and_pictures(demo):
    folder, shown = demo
    rows = json.loads((folder / 'results.json').read_text())
    assert [(row['model'], row['policy']) for row in rows] == [
        ('dense', 'none'),
        *[('sparse', 'learned')] * 4,
        ('sparse', 'random'),
    ]
    assert set(rows[0]) == KEYS
    flops = [row['backbone_gflops'] for row in rows[1:5]]
    assert flops == sorted(flops, reverse=True) and flops[2] < rows[0]['backbone_gflops']
    assert rows[5]['backbone_gflops'] == rows[3]['backbone_gflops']
    assert len(list((folder / 'overlays').glob('*.png'))) == 3
    # The stock and the prepared model label the same; the sparse one has to be trained first.
    assert shown.count('100.00 %') == 2
    assert 'left' in shown and 'results.json' in shown.splitlines()[-3]


def test_a_sweep_compares_any_models_and_gives_intervals(demo, tmp_path):
    folder, _ = demo
    models = {
        'host': ('mmdyn::upernet_swin_mini.py', folder / 'dense/iter_2.pth'),
        'ours': ('mmdyn::upernet_dynswin_mini_ft.py', folder / 'sparse/iter_2.pth'),
    }
    argv = [str(part) for name, model in models.items() for part in ('--model', name, *model)]
    argv += ['--keep-ratio', '0.5', '--part', 'backbone', '--rounds', '2', '--num-images', '1']
    argv += ['--out', str(tmp_path), '--cfg-options']
    scenes = dict(data_root=folder / 'data', train=8, val=4)
    argv += [f'test_dataloader.dataset.{key}={value}' for key, value in scenes.items()]
    assert load_tool('sweep').main(argv) == 0
    points = json.loads((tmp_path / 'sweep.json').read_text())['points']
    assert [(point['model'], point['kind'], point['keep_ratios']) for point in points] == [
        ('host', 'dense', []),
        ('ours', 'dense', [1, 1, 1]),
        ('ours', 'learned', [0.5, 0.3, 0.1]),
        ('ours', 'random', [0.5, 0.3, 0.1]),
    ]
    host = json.loads((folder / 'results.json').read_text())[0]
    assert points[0]['value'] == pytest.approx(host['miou'], abs=0.006)
    assert points[0]['difference'] is None and points[0]['difference_interval'] is None
    for point in points:
        assert point['interval'][0] <= point['value'] <= point['interval'][1]
    for point in points[1:]:
        low, high = point['difference_interval']
        assert low <= point['difference'] <= high
        assert point['difference'] == pytest.approx(point['value'] - points[0]['value'], abs=1e-3)
    assert (tmp_path / 'sweep.md').read_text().count('\n') == 2 + len(points)


def test_an_images_areas_add_up_to_the_hosts_metric(demo):
    folder, _ = demo
    options = {
        f'test_dataloader.dataset.{key}': value
        for key, value in dict(data_root=str(folder / 'data'), train=8, val=4).items()
    }
    evaluator = ModelTester(
        'mmdyn::upernet_swin_mini.py', str(folder / 'dense/iter_2.pth'), folder / 'again', options
    )
    for _ in range(2):
        found = evaluator.evaluate()
        intersections, unions = found.areas
        assert intersections.shape == unions.shape == (4, 10)
        iou = intersections.sum(0) / unions.sum(0)
        assert 100 * iou.nanmean().item() == pytest.approx(found.metrics['mIoU'], abs=0.006)


def test_models_of_different_test_sets_are_not_compared(demo):
    folder, _ = demo
    models = {}
    for name, scenes in (('few', 2), ('all', 4)):
        options = {
            'test_dataloader.dataset.data_root': str(folder / 'data'),
            'test_dataloader.dataset.train': 8,
            'test_dataloader.dataset.val': 4,
            'test_dataloader.dataset.indices': scenes,
        }
        models[name] = ModelTester(
            'mmdyn::upernet_swin_mini.py',
            str(folder / 'dense/iter_2.pth'),
            folder / name,
            options,
        )
    check_same_test_set({'one': models['all'], 'another': models['all']})
    with pytest.raises(ValueError, match="'all' is tested on other images than 'few'"):
        check_same_test_set(models)
