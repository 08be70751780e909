"""Bar charts of measurements."""

import pytest

from mmdyn.visualization.bars import Bar, draw_bars


def bar(label, kind, value=2.0, **settings):
    return Bar(label, kind, value, value - 0.5, value + 1.0, **settings)


def test_draws_bars_whiskers_notes_and_a_legend():
    panels = {'one': [bar('a', 'dense', note='1.00x'), bar('b', 'sparse')], 'two': [bar('c', 'x')]}
    figure = draw_bars(panels, 'ms', 'title')
    first, second = figure.axes
    assert [text.get_text() for text in first.get_yticklabels()] == ['a', 'b']
    assert [patch.get_width() for patch in first.patches] == [2, 2]
    assert '1.00x' in [text.get_text() for text in first.texts]
    whiskers = [line.get_segments()[0][:, 0].tolist() for line in first.collections]
    assert whiskers == [[1.5, 3], [1.5, 3]]
    assert second.get_xlabel() == 'ms'
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ['dense', 'sparse', 'x']


def test_a_kind_has_one_colour_and_the_first_bar_is_on_top():
    figure = draw_bars({'one': [bar('a', 'p'), bar('b', 'q'), bar('c', 'p')]}, 'ms')
    (axes,) = figure.axes
    colours = [patch.get_facecolor() for patch in axes.patches]
    assert colours[0] == colours[2] != colours[1]
    bottom, top = axes.get_ylim()
    assert bottom > top


@pytest.mark.parametrize(('aim', 'marks'), [(None, 0), (1.5, 1)])
def test_an_aim_is_marked_and_explained(aim, marks):
    figure = draw_bars({'one': [bar('a', 'p', aim=aim)]}, 'ms')
    drawn = [line for line in figure.axes[0].lines if list(line.get_xdata()) == [1.5, 1.5]]
    assert len(drawn) == marks
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert ('aim' in labels) == bool(marks)
