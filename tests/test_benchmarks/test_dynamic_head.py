"""benchmarks/dynamic_head.py: what it changes, how it tests, how it reports."""

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip('mmseg')

from mmdyn.models.heads import DynamicUPerHead
from tests.test_models.test_uper_head import HEAD, maps_of

sys.path.insert(0, str(Path(__file__).parents[2] / 'benchmarks'))
bench = importlib.import_module('dynamic_head')


@pytest.mark.parametrize('data', ['mini', 'camvid'])
@pytest.mark.parametrize('variant', [None, *bench.VARIANTS])
def test_variants_are_configs_that_can_be_trained(data, variant):
    options = bench.options_of(data, variant, 30)
    config = bench.load_config(bench.DENSE[data] if variant is None else bench.DYNAMIC[data])
    config.merge_from_dict(options)
    assert config.train_cfg.max_iters == 30 and config.param_scheduler[-1]['end'] == 30
    if variant is not None:
        (hook,) = config.custom_hooks
        assert 0 < hook['phases'][0]['begin'] < 30
        head = {**config.model.decode_head, 'norm_cfg': dict(type='BN')}
        head.pop('type')
        assert DynamicUPerHead(**head).tile_size == head['tile_size']


def test_the_most_uncertain_tiles_and_the_way_back():
    torch.manual_seed(0)
    head = DynamicUPerHead(**HEAD, tile_size=4, tile_ratio=0.5).eval()
    torch.nn.init.constant_(head.predictors[0].uncertainty_weight, -3.0)
    maps = maps_of((16, 16))
    before = head.forward_sparse(maps).decisions[0]
    undo = bench.uncertain_only(head)
    uncertain = head.forward_sparse(maps).decisions[0]
    undo()
    after = head.forward_sparse(maps).decisions[0]
    assert torch.equal(before.scores, after.scores)
    assert not torch.equal(before.keep_mask, uncertain.keep_mask)


def test_every_line_is_tested_with_its_own_choice():
    torch.manual_seed(0)
    head = DynamicUPerHead(**HEAD, tile_size=4, tile_ratio=0.5).eval()
    policies = {}
    for name, ratio, prepare in bench.lines_of(head, 0):
        head.set_tile_ratio(ratio)
        undo = prepare()
        policies[name] = type(head.policy).__name__
        undo()
    assert policies.pop('random') == 'RandomPolicy'
    assert set(policies.values()) == {'TopKPolicy'} and 'most uncertain' in policies


def test_a_report_compares_with_the_twin_of_the_same_seed():
    rows = [
        dict(model=model, tiles=tiles, tile_ratio=0.5, seed=seed, head_gmacs=1.0, max_iters=9)
        | dict(miou=miou + seed, boundary_f=40.0)
        for model, tiles, miou in (('dense', 'dense', 60.0), ('as configured', 'learned', 59.0))
        for seed in (0, 1)
    ]
    page = bench.report(SimpleNamespace(data='mini', max_iters=None), rows)
    assert "--seeds 0 1 --variants 'as configured'`" in page
    assert '| as configured | learned | 0.5 | 1.000 | 59.50 ± 0.71 | -1.00 ± 0.00 |' in page
