"""The search for a budget, with clocks that tell what they are told to."""

import io

import pytest
import torch

pytest.importorskip('mmseg')

from mmdyn.analysis import budget_search
from mmdyn.analysis.budget_search import CHOSEN, OVER, Budget, BudgetSearch, Effort
from mmdyn.analysis.evaluating import ModelTester
from mmdyn.analysis.latency import Latency
from mmdyn.analysis.progress import Meter
from mmdyn.engine.loading import load_model
from tests.test_tools.segmentation import write_config, write_data

OWN = (0.7, 0.5, 0.3)


@pytest.fixture(scope='module')
def tester(tmp_path_factory):
    root = tmp_path_factory.mktemp('budget')
    config = write_config(root, write_data(root / 'data', count=2))
    torch.save(dict(state_dict=load_model(str(config)).model.state_dict()), root / 'weights.pth')
    return ModelTester(str(config), str(root / 'weights.pth'), root / 'logs')


@pytest.fixture
def quick(monkeypatch):
    """Sets what a ladder costs, what the clock says, and what is reached; notes what is timed."""
    timed = []

    def use(ms=lambda ladder, run: 10 * sum(ladder), value=lambda ladder: sum(ladder)):
        def time_lines(lines, part, batches, *, advance=lambda: None, **_):
            timed.append([line.keep_ratios for line in lines])
            found = {line.name: float(ms(line.keep_ratios, len(timed))) for line in lines}
            return {name: Latency(one, one, one, (one,) * 2, one) for name, one in found.items()}

        def count_lines(lines, part, batches, advance=lambda: None):
            # A batch's images cost what they are large.
            size = sum(batch.inputs.shape[-1] for batch in batches) / len(batches) / 64
            return {line.name: size * sum(line.keep_ratios) for line in lines}

        def evaluate_lines(lines, testers, advance=lambda: None):
            for line in lines:
                yield line.name, {'mIoU': float(value(line.keep_ratios))}

        monkeypatch.setattr(budget_search, 'time_lines', time_lines)
        monkeypatch.setattr(budget_search, 'count_lines', count_lines)
        monkeypatch.setattr(budget_search, 'evaluate_lines', evaluate_lines)
        return timed

    return use


def search(tester, budget, batches=None, **effort):
    searching = BudgetSearch(
        tester, budget, 'end-to-end', batches or tester.batches(2), effort=Effort(**effort)
    )
    with Meter(searching.costs(), io.StringIO()) as meter:
        return searching.run(meter)


def test_what_keeps_most_within_the_budget_wins_where_more_is_better(tester, quick):
    quick()
    found = search(tester, Budget('GMACs', 1.7), trials=30)
    assert sum(found.chosen.line.keep_ratios) == pytest.approx(1.7)
    assert found.chosen.note == CHOSEN and not found.problem
    assert found.rows[0].line.kind == 'dense'
    assert {point.note for point in found.rows} == {OVER, CHOSEN, ''}
    assert [point.line.keep_ratios for point in found.rows if point.line.kind == 'random'] == [
        found.chosen.line.keep_ratios
    ]


def test_less_kept_can_be_better(tester, quick):
    quick(value=lambda ladder: -abs(sum(ladder) - 1.5))
    found = search(tester, Budget('GMACs', 3), trials=40)
    assert sum(found.chosen.line.keep_ratios) == pytest.approx(1.5)


def test_time_is_told_from_multiply_adds_and_kept_below_the_margin(tester, quick):
    timed = quick()
    found = search(tester, Budget('ms', 20, margin=0.1), trials=8)
    assert 16 < found.chosen.latency.median <= 18
    tried = [10 * sum(ladder) for ladder in timed[1]]
    assert sum(ms <= 18 + 1e-6 for ms in tried) >= 7  # the line through the first times is exact


def test_candidates_come_down_where_the_line_promised_too_much(tester, quick):
    # What is between the ladders of the line is slower than the line says.
    def ms(ladder, run):
        return 10 * sum(ladder) + (6 if run > 1 and min(ladder) < 1 else 0)

    timed = quick(ms)
    found = search(tester, Budget('ms', 20, margin=0), trials=4)
    assert len(timed) >= 4  # the line, two times candidates, all again
    assert found.chosen.latency.median <= 20


def test_the_next_best_is_taken_where_the_best_is_too_slow_when_timed_again(tester, quick):
    slow = []

    def ms(ladder, run):
        return 10 * sum(ladder) + (50 if run == 3 and ladder in slow else 0)

    quick(ms)
    best = search(tester, Budget('ms', 20), trials=8).chosen
    slow.append(best.line.keep_ratios)
    quick(ms).clear()
    found = search(tester, Budget('ms', 20), trials=8)
    assert found.chosen.line != best.line and found.chosen.latency.median <= 20
    over = [point for point in found.rows if point.line.keep_ratios == best.line.keep_ratios]
    assert OVER in {point.note for point in over}


@pytest.mark.parametrize(
    ('ms', 'said'),
    [
        (lambda ladder, run: 100 + sum(ladder), 'no keep ratios down to 0.1 meet 20 ms'),
        (lambda ladder, run: (run == 3) * 99 + 10 * sum(ladder), 'none when they were timed again'),
    ],
)
def test_what_was_tried_is_shown_where_nothing_fits(tester, quick, ms, said):
    quick(ms)
    found = search(tester, Budget('ms', 20), trials=3)
    assert found.chosen is None and said in found.problem
    assert len(found.rows) >= 2 and found.rows[0].value is not None


def test_images_of_several_sizes_count_by_their_number(tester, quick):
    quick()
    one, other = tester.batches(2)
    large = type(one)(torch.zeros(1, 3, 64, 256), one.metainfos, one.scope)
    found = search(tester, Budget('GMACs', 1.7 * 1.75), [large, other, other, other], trials=9)
    assert sum(found.chosen.line.keep_ratios) == pytest.approx(1.7)


def test_nothing_is_tried_below_the_lowest_ratio(tester, quick):
    timed = quick()
    search(tester, Budget('ms', 28), lowest=0.5, step=0.25)
    assert min(min(ladder) for ladders in timed for ladder in ladders) == 0.5


def test_the_model_is_as_before(tester, quick):
    quick()
    backbone = tester.loaded.backbone
    before = backbone.keep_ratios, backbone.policy
    search(tester, Budget('GMACs', 1.7), trials=2)
    assert (backbone.keep_ratios, backbone.policy) == before == (OWN, backbone.policy)


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (('s', 1.0), "'ms' or 'GMACs'"),
        (('ms', 0.0), 'above 0'),
        (('ms', float('nan')), 'above 0'),
        (('ms', 1.0, 1.0), r'\[0, 1\)'),
    ],
)
def test_no_such_budget(arguments, said):
    with pytest.raises(ValueError, match=said):
        Budget(*arguments)
