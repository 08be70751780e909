"""benchmarks/dynamic_fpn.py: tests and report."""

import pytest

pytest.importorskip('mmdet')

from mmengine.registry import init_default_scope

from mmdyn.engine.config import load_config
from tests.test_benchmarks import load_benchmark

bench = load_benchmark('dynamic_fpn')


def test_every_line_sets_what_it_says():
    from mmdet.registry import MODELS

    init_default_scope('mmdet')
    config = load_config(bench.CONFIGS['sparse'])
    model = MODELS.build(config.model)
    seen = set()
    for line in bench.lines_of(0):
        bench.set_line(model, line, config)
        ratios = line.keep_ratios or tuple(config.model.backbone.keep_ratios)
        assert model.backbone.keep_ratios == ratios
        assert model.neck.tile_ratio == (line.tile_ratio or config.model.neck.tile_ratio)
        policies = [type(part.policy).__name__ for part in (model.backbone, model.neck)]
        assert ('RandomPolicy' in policies) == ('random' in line.name)
        seen.add((ratios, model.neck.tile_ratio, *policies))
    assert len(seen) == len(bench.lines_of(0))


def test_a_report_compares_with_the_twin_of_the_same_seed():
    rows = [
        dict(model=model, line=line, seed=seed, segm=segm + seed, bbox=50.0)
        for model, line, segm in (('dense', 'dense', 60.0), ('sparse', 'learned', 59.5))
        for seed in (0, 1)
    ]
    page = bench.report([0, 1], 9, rows)
    assert '| learned | 60.00 ± 0.71 | -0.50 ± 0.00 | 50.00 ± 0.00 | 0.00 ± 0.00 |' in page
