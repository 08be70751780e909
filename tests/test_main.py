"""The command that runs the tools by name."""

import re

import pytest

from mmdyn.__main__ import find_tools, main


def test_help_lists_every_tool_with_what_it_does(capsys):
    with pytest.raises(SystemExit) as end:
        main(['--help'])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert {'train', 'test', 'sweep', 'demo'} <= set(find_tools())
    for name in find_tools():
        assert re.search(rf'^    {name}( |$)', shown, re.MULTILINE)
    assert 'Train a segmentor' in shown


def test_a_tool_gets_its_own_arguments(capsys):
    with pytest.raises(SystemExit) as end:
        main(['test', '--help'])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith('usage: mmdyn test ')
    assert '--keep-ratio' in shown


@pytest.mark.parametrize('arguments', [[], ['tarin', 'config.py']])
def test_without_a_known_tool_it_says_which_there_are(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    message = capsys.readouterr().err
    assert 'usage: mmdyn' in message
    if arguments:
        assert all(name in message for name in find_tools())
