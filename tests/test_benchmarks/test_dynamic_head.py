"""benchmarks/dynamic_head.py: variants, tests and report."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip('mmseg')

from mmdyn.models.heads import DynamicUPerHead
from mmdyn.sparsity.tiles import TileGrid
from tests.test_benchmarks import load_benchmark
from tests.test_models.test_uper_head import HEAD, maps_of

bench = load_benchmark('dynamic_head')


@pytest.mark.parametrize('data', ['mini', 'camvid'])
@pytest.mark.parametrize('variant', [None, *bench.VARIANTS])
def test_variants_are_configs_that_can_be_trained(data, variant):
    options = bench.options_of(data, variant, 30)
    config = bench.load_config(bench.DENSE[data] if variant is None else bench.DYNAMIC[data])
    config.merge_from_dict(options)
    assert config.train_cfg.max_iters == 30 and config.param_scheduler[-1]['end'] == 30
    if variant is not None:
        (hook,) = config.custom_hooks
        (phase,) = hook['phases']
        by_scores = phase['policy']['type'] == 'mmdyn.TopKPolicy'
        assert 0 < phase['begin'] < 30 if by_scores else phase['begin'] == 0
        assert by_scores == ('random' not in variant)
        head = {**config.model.decode_head, 'norm_cfg': dict(type='BN')}
        head.pop('type')
        built = DynamicUPerHead(**head)
        assert (built.tile_size, built.tile_ratio) == (head['tile_size'], head['tile_ratio'])
        # Either the whole dense model is trained or nothing of it.
        assert built.freeze_dense == (config.model.backbone.frozen_stages > 0)


def make_head(**settings):
    torch.manual_seed(0)
    return DynamicUPerHead(**HEAD | dict(tile_size=8, tile_ratio=0.5) | settings).eval()


def test_the_most_uncertain_tiles_and_the_way_back():
    head = make_head(tile_size=4)
    torch.nn.init.constant_(head.predictors[0].uncertainty_weight, -3.0)
    maps = maps_of((16, 16))
    before = head.forward_sparse(maps).decisions[0]
    with bench.uncertain_only(head):
        uncertain = head.forward_sparse(maps).decisions[0]
    after = head.forward_sparse(maps).decisions[0]
    assert torch.equal(before.scores, after.scores)
    assert not torch.equal(before.keep_mask, uncertain.keep_mask)


def test_without_halos_a_tile_sees_only_itself():
    head, maps = make_head(), maps_of((16, 16), batch_size=1)
    keep = head.forward_sparse(maps).decisions[0].keep_mask
    tile = TileGrid((16, 16), 8).spread((keep.cumsum(1) * keep == 1).float())[0].bool()

    def seen():
        logits = head(maps)[0, :, tile]
        (grad,) = torch.autograd.grad(logits.square().sum(), maps[0])
        return grad[0].abs().sum(0) > 0

    assert seen()[tile].any() and seen()[~tile].any()
    with bench.without_halos(head):
        assert seen()[tile].any() and not seen()[~tile].any()


def test_a_report_compares_with_the_twin_of_the_same_seed():
    shared = dict(tile_ratio=0.5, head_gmacs=1.0, iters=9, dense_iters=9, boundary_f=40.0)
    rows = [
        shared | dict(model=model, tiles=tiles, seed=seed, miou=miou + seed)
        for model, tiles, miou in (('dense', 'dense', 60.0), ('as configured', 'learned', 59.0))
        for seed in (0, 1)
    ]
    page = bench.report(SimpleNamespace(data='mini', dense=None), rows)
    assert '| as configured | learned | 0.5 | 1.000 | - | 2 | 59.50 ± 0.71 | -1.00 ± 0.00 |' in page
    whole = [
        row | dict(model='as a whole', tiles=tiles, miou=row['miou'] + gain)
        for row in rows
        if row['model'] == 'dense'
        for tiles, gain in (('all', 2.0), ('learned', 1.5))
    ]
    page = bench.report(SimpleNamespace(data='mini', dense=None), rows + whole)
    assert '| as a whole | learned | 0.5 | 1.000 | - | 2 | 62.00 ± 0.71 | -0.50 ± 0.00 |' in page
    assert '| dense | dense | 0.5 | 1.000 | - | 2 | 60.50 ± 0.71 | -2.00 ± 0.00 |' in page


def test_all_models_are_timed_together_at_every_fraction(monkeypatch):
    ratios = []

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.decode_head = SimpleNamespace(set_tile_ratio=ratios.append)

        def forward(self, inputs, samples, mode):
            return inputs

    def trained(args, name, seed):
        batch = SimpleNamespace(inputs=torch.zeros(1), samples=list)
        return SimpleNamespace(
            loaded=SimpleNamespace(model=Model()), batches=lambda count: [batch] * count
        )

    monkeypatch.setattr(bench, 'trained', trained)
    args = SimpleNamespace(variants=['as configured'], seeds=[3])
    rows = [dict(model='dense', tile_ratio=1.0)]
    rows += [dict(model='as configured', tile_ratio=ratio) for ratio in (0.25, 0.0, 0.25)]
    timed = bench.timed(args, [*rows, dict(model='stride 8', tile_ratio=0.0)])
    assert set(ratios) == {0.25, 0.0} and 'ms' not in timed[-1]
    assert all(row['ms'] >= 0 for row in timed[:-1]) and timed[1]['ms'] == timed[3]['ms']
