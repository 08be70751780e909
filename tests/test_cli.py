import pytest

from mmdyn import cli


@pytest.mark.parametrize(
    'error', [ValueError('odd'), KeyError('odd'), FileNotFoundError('odd'), ImportError('odd')]
)
def test_bad_input_is_one_line_and_2(monkeypatch, capsys, error):
    monkeypatch.delenv(cli.TRACEBACK, raising=False)
    with pytest.raises(SystemExit) as end, cli.exit_on_bad_input():
        raise error
    assert end.value.code == 2
    assert capsys.readouterr().err == 'error: odd\n'


def test_failures_of_ours_propagate():
    with pytest.raises(RuntimeError), cli.exit_on_bad_input():
        raise RuntimeError


def test_a_traceback_can_be_had(monkeypatch):
    monkeypatch.setenv(cli.TRACEBACK, '1')
    with pytest.raises(ValueError, match='odd'), cli.exit_on_bad_input():
        raise ValueError('odd')


def test_only_the_first_process_speaks(monkeypatch, capsys):
    monkeypatch.setenv('RANK', '1')
    with pytest.raises(SystemExit), cli.exit_on_bad_input():
        raise ValueError('odd')
    assert capsys.readouterr().err == ''
