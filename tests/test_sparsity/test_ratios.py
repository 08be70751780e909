import pytest

from mmdyn.sparsity.ratios import falling_keep_ratios


@pytest.mark.parametrize(
    ('ratio', 'count', 'kind', 'expected'),
    [
        (0.7, 3, 'linear', (0.7, 0.5, 0.3)),
        (0.9, 3, 'linear', (0.9, 0.7, 0.5)),
        (1.0, 3, 'linear', (1.0, 1.0, 1.0)),
        (0.4, 3, 'linear', (0.4, 0.2, 0.1)),  # never below 0.1 ...
        (0.05, 3, 'linear', (0.05, 0.05, 0.05)),  # ... unless the first is lower, and never rising
        (0.7, 1, 'linear', (0.7,)),
        (0.7, 3, 'geometric', (0.7, 0.49, 0.343)),
        (1.0, 2, 'geometric', (1.0, 1.0)),
        (0.001, 3, 'geometric', (0.001, 0.000001, 0.000001)),
    ],
)
def test_ladders(ratio, count, kind, expected):
    assert falling_keep_ratios(ratio, count, kind) == expected


@pytest.mark.parametrize('ratio', [0, -0.1, 1.01, float('nan')])
def test_ratios_outside_are_refused(ratio):
    with pytest.raises(ValueError, match=f'got {ratio}'):
        falling_keep_ratios(ratio, 3)
