"""The budget search, with simulated clocks."""

import itertools

import pytest
import torch

pytest.importorskip('mmseg')

from mmdyn.analysis import budget
from mmdyn.analysis.budget import (
    CHOSEN,
    OVER,
    Budget,
    Search,
    frontier,
    ladders_of,
    predicted_costs,
    probes,
)
from mmdyn.analysis.evaluating import Evaluation, ModelTester
from mmdyn.analysis.measuring import Latency, Measurement
from mmdyn.engine.loading import load_model
from tests.test_tools.segmentation import write_config, write_data

OWN = (0.7, 0.5, 0.3)


def test_the_grid():
    assert ladders_of(1, 0.3) == [(1.0,), (0.7,), (0.4,), (0.1,)]
    assert ladders_of(1, 0.4, lowest=0.5) == [(1.0,), (0.6,)]
    ladders = ladders_of(3)
    assert len(ladders) == len(set(ladders)) == 220
    assert all(a >= b for ladder in ladders for a, b in itertools.pairwise(ladder))


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        ((3, 0, 0.1), 'step'),
        ((3, 1.5, 0.1), '1.5'),
        ((3, 0.1, 0), 'lowest'),
        ((3, 0.1, 1.1), '1.1'),
        ((4, 0.01, 0.1), 'larger step'),
    ],
)
def test_no_such_grid(arguments, said):
    with pytest.raises(ValueError, match=said):
        ladders_of(*arguments)


def additive(ladder):
    return 5 + sum(weight * ratio**2 for weight, ratio in zip((3, 2, 7), ladder, strict=True))


@pytest.mark.parametrize('step', [0.1, 0.3, 0.9])
def test_an_additive_cost_is_known_everywhere_from_a_few_ladders(step):
    ladders = ladders_of(3, step)
    known = {ladder: additive(ladder) for ladder in probes(ladders)}
    assert len(known) <= 7
    costs = predicted_costs(known, ladders)
    assert costs == pytest.approx({ladder: additive(ladder) for ladder in ladders})


def test_the_frontier_is_what_could_not_keep_more():
    ladders = [ladder for ladder in ladders_of(3) if additive(ladder) <= 9]
    found = frontier(ladders)

    def keeps_more(one, other):
        return one != other and all(a >= b for a, b in zip(one, other, strict=True))

    assert 1 < len(found) < len(ladders)
    assert not any(keeps_more(one, other) for one in found for other in found)
    assert all(x in found or any(keeps_more(best, x) for best in found) for x in ladders)


@pytest.fixture(scope='module')
def tester(tmp_path_factory):
    root = tmp_path_factory.mktemp('budget')
    config = write_config(root, write_data(root / 'data', count=2))
    torch.save(dict(state_dict=load_model(str(config)).model.state_dict()), root / 'weights.pth')
    return ModelTester(str(config), str(root / 'weights.pth'), root / 'logs')


@pytest.fixture
def quick(monkeypatch):
    """Simulates costs, times and metrics; records what is timed."""
    timed = []

    def use(ms=lambda ladder, run: 10 * sum(ladder), value=lambda ladder: sum(ladder)):
        def measure_lines(lines, part, batches, *, macs=None, **_):
            timed.append([line.keep_ratios for line in lines])
            found = {}
            for line in lines:
                one = float(ms(line.keep_ratios, len(timed)))
                count = 1e9 * sum(line.keep_ratios)
                found[line.name] = Measurement(Latency(one, one, one, (one,) * 2, one), count)
            return found

        def evaluate(tester, advance):
            return Evaluation({'mIoU': float(value(tester.loaded.backbone.keep_ratios))})

        monkeypatch.setattr(budget, 'measure_lines', measure_lines)
        monkeypatch.setattr(ModelTester, 'evaluate', evaluate)
        return timed

    return use


def search(tester, limit, **settings):
    """Rows, the chosen one, and the reason if none is chosen."""
    searching = Search(tester, limit, 'end-to-end', tester.batches(2), **settings)
    rows, problem = searching.run()
    return rows, next((row for row in rows if row.note == CHOSEN), None), problem


def test_what_keeps_most_within_the_budget_wins_where_more_is_better(tester, quick):
    quick()
    backbone = tester.loaded.backbone
    policy = backbone.policy
    rows, chosen, problem = search(tester, Budget('GMACs', 1.7), trials=30)
    assert sum(chosen.line.keep_ratios) == pytest.approx(1.7) and not problem
    assert rows[0].line.kind == 'dense'
    assert {row.note for row in rows} == {OVER, CHOSEN, ''}
    random = [row.line.keep_ratios for row in rows if row.line.kind == 'random']
    assert random == [chosen.line.keep_ratios]
    assert (backbone.keep_ratios, backbone.policy) == (OWN, policy)


def test_less_kept_can_be_better(tester, quick):
    quick(value=lambda ladder: -abs(sum(ladder) - 1.5))
    _, chosen, _ = search(tester, Budget('GMACs', 3), trials=40)
    assert sum(chosen.line.keep_ratios) == pytest.approx(1.5)


def test_time_is_told_from_multiply_adds_and_kept_below_the_margin(tester, quick):
    timed = quick()
    _, chosen, _ = search(tester, Budget('ms', 20, margin=0.1), trials=8)
    assert 16 < chosen.latency.median <= 18
    tried = [10 * sum(ladder) for ladder in timed[1]]
    assert sum(ms <= 18 + 1e-6 for ms in tried) >= 7  # the line through the first times is exact


def test_candidates_come_down_where_the_line_promised_too_much(tester, quick):
    # Between the probes, times are above the linear fit.
    def ms(ladder, run):
        return 10 * sum(ladder) + (6 if run > 1 and min(ladder) < 1 else 0)

    timed = quick(ms)
    _, chosen, _ = search(tester, Budget('ms', 20, margin=0), trials=4)
    assert len(timed) >= 4  # the line, two times candidates, all again
    assert chosen.latency.median <= 20


def test_the_next_best_is_taken_where_the_best_is_too_slow_when_timed_again(tester, quick):
    slow = []

    def ms(ladder, run):
        return 10 * sum(ladder) + (50 if run == 3 and ladder in slow else 0)

    quick(ms)
    _, best, _ = search(tester, Budget('ms', 20), trials=8)
    slow.append(best.line.keep_ratios)
    quick(ms).clear()
    rows, chosen, _ = search(tester, Budget('ms', 20), trials=8)
    assert chosen.line != best.line and chosen.latency.median <= 20
    assert OVER in {row.note for row in rows if row.line.keep_ratios == best.line.keep_ratios}


@pytest.mark.parametrize(
    ('ms', 'said'),
    [
        (lambda ladder, run: 100 + sum(ladder), 'no keep ratios down to 0.1 meet 20 ms'),
        (lambda ladder, run: (run == 3) * 99 + 10 * sum(ladder), 'none when timed again'),
    ],
)
def test_what_was_tried_is_shown_where_nothing_fits(tester, quick, ms, said):
    quick(ms)
    rows, chosen, problem = search(tester, Budget('ms', 20), trials=3)
    assert chosen is None and said in problem
    assert len(rows) >= 2 and rows[0].value is not None


def test_nothing_is_tried_below_the_lowest_ratio(tester, quick):
    timed = quick()
    search(tester, Budget('ms', 28), lowest=0.5, step=0.25)
    assert min(min(ladder) for ladders in timed for ladder in ladders) == 0.5
