"""Bar charts of measurements."""

from mmdyn.visualization.bars import Bar, draw_bars


def bar(label, kind, value=2.0, **settings):
    return Bar(label, kind, value, value - 0.5, value + 1.0, **settings)


def test_draws_bars_whiskers_notes_and_a_legend():
    panels = {'one': [bar('a', 'dense', note='1.00x'), bar('b', 'sparse')]}
    panels['two'] = [bar('c', 'dense', aim=1.5)]
    figure = draw_bars(panels, 'ms', 'title')
    first, second = figure.axes
    assert [text.get_text() for text in first.get_yticklabels()] == ['a', 'b']
    assert [patch.get_width() for patch in first.patches] == [2, 2]
    assert '1.00x' in [text.get_text() for text in first.texts]
    whiskers = [line.get_segments()[0][:, 0].tolist() for line in first.collections]
    assert whiskers == [[1.5, 3], [1.5, 3]]
    assert second.get_xlabel() == 'ms'
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ['dense', 'sparse', 'aim']
    dense, sparse = (patch.get_facecolor() for patch in first.patches)
    assert dense == second.patches[0].get_facecolor() != sparse
    bottom, top = first.get_ylim()
    assert bottom > top, 'the first bar is on top'
    marks = [[list(line.get_xdata()) for line in axes.lines] for axes in (first, second)]
    assert [1.5, 1.5] in marks[1] and [1.5, 1.5] not in marks[0]
