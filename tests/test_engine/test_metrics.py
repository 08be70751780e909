import pytest

from mmdyn.engine.metrics import KeptFraction


@pytest.mark.parametrize(
    ('samples', 'expected'),
    [
        ([dict(kept_fractions=[0.7, 0.4]), dict(kept_fractions=[0.5, 0.2])], [0.6, 0.3]),
        ([dict(kept_fractions=[0.7, 0.4], kept_tiles=0.25)], [0.7, 0.4, 0.25]),
        ([dict(kept_tiles=0.25), dict(kept_tiles=0.5)], [0.375]),
        ([dict()], []),
    ],
)
def test_means_of_what_the_samples_tell(samples, expected):
    metric = KeptFraction()
    metric.process({}, samples)
    found = metric.compute_metrics(metric.results)
    assert list(found.values()) == pytest.approx(expected)
    assert ('tile_ratio' in found) is any('kept_tiles' in sample for sample in samples)
