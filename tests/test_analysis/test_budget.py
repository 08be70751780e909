"""Which keep ratios are looked at for a budget."""

import itertools

import pytest

from mmdyn.analysis.budget import (
    AdditiveCost,
    StraightLine,
    frontier,
    ladders_of,
    levels_of,
    spread_out,
    within,
)


def test_the_grid():
    assert levels_of(0.3) == (1.0, 0.7, 0.4, 0.1)
    assert levels_of(0.4, lowest=0.5) == (1.0, 0.6)
    ladders = ladders_of(levels_of(0.1), 3)
    assert len(ladders) == len(set(ladders)) == 220
    assert all(a >= b for ladder in ladders for a, b in itertools.pairwise(ladder))


@pytest.mark.parametrize(
    ('step', 'lowest', 'said'),
    [(0, 0.1, 'step'), (1.5, 0.1, '1.5'), (0.1, 0, 'lowest'), (0.1, 1.1, '1.1')],
)
def test_no_such_grid(step, lowest, said):
    with pytest.raises(ValueError, match=said):
        levels_of(step, lowest)


def test_a_grid_too_fine_to_look_through():
    with pytest.raises(ValueError, match='larger step'):
        ladders_of(levels_of(0.01), 4)


def additive(ladder):
    return 5 + sum(weight * ratio**2 for weight, ratio in zip((3, 2, 7), ladder, strict=True))


def test_an_additive_cost_is_known_everywhere_from_a_few_ladders():
    levels = levels_of(0.1)
    probes = AdditiveCost.probes(levels, 3)
    assert len(probes) == len(set(probes)) == 28
    cost = AdditiveCost(levels, 3, {ladder: additive(ladder) for ladder in probes})
    for ladder in ladders_of(levels, 3):
        assert cost(ladder) == pytest.approx(additive(ladder))
    between = (0.85, 0.5, 0.3)
    assert cost((0.8, 0.5, 0.3)) < cost(between) < cost((0.9, 0.5, 0.3))


def test_a_straight_line_never_falls():
    assert StraightLine.fit([1, 2, 4], [5, 7, 11])(3) == pytest.approx(9)
    falling = StraightLine.fit([1, 2], [5, 4])
    assert falling(1) == falling(2) == 4.5
    assert StraightLine.fit([2], [7])(100) == 7


def test_the_frontier_is_what_could_not_keep_more():
    ladders = within(ladders_of(levels_of(0.1), 3), additive, 9)
    found = frontier(ladders)

    def keeps_more(one, other):
        return one != other and all(a >= b for a, b in zip(one, other, strict=True))

    assert 1 < len(found) < len(ladders)
    assert not any(keeps_more(one, other) for one in found for other in found)
    assert all(
        ladder in found or any(keeps_more(best, ladder) for best in found) for ladder in ladders
    )
    assert frontier([]) == []


def test_ladders_far_from_each_other():
    ladders = [(0.1,), (0.2,), (0.5,), (0.9,), (1.0,)]
    assert spread_out(ladders, 3, first=[(0.35,)]) == [(0.35,), (1.0,), (0.1,)]
    assert spread_out(ladders, 1) == [(0.5,)]
    assert sorted(spread_out(ladders, 9)) == ladders
    assert spread_out([], 3) == []
