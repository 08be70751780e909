import argparse
import errno
import os
import signal
import subprocess
import sys

import pytest
from mmengine.registry import MODELS

from mmdyn import cli
from mmdyn.errors import BadDataError

NO_SPACE = 'No space left on device'


def ends_with(error, running=False):
    """Outcome of a tool in which an error is raised: the exit code, or the error."""
    try:
        with cli.exit_on_bad_input() as prepared:
            if running:
                prepared()
            raise error
    except SystemExit as end:
        return end.code
    except Exception as end:
        return end


@pytest.mark.parametrize(
    ('error', 'said', 'running'),
    [
        (ValueError('odd'), 'odd', False),
        (KeyError('an odd one'), 'an odd one', False),
        (KeyError('odd'), "'odd' is missing", False),
        (FileNotFoundError('odd'), 'odd', False),
        (PermissionError(13, 'Permission denied', 'odd'), 'odd: Permission denied; name', True),
        (ImportError('odd'), 'odd', False),
        (BadDataError('odd.png is odd'), 'odd.png is odd', True),
        # As passed on by a data loader's worker.
        (BadDataError('Traceback ...\n  a.py\nBadDataError: odd.png is odd'), 'odd.png is', True),
        (
            OSError(errno.EROFS, 'Read-only file system', 'a.pth'),
            'a.pth cannot be written: R',
            True,
        ),
        (OSError(errno.ENOSPC, NO_SPACE, 'a.py', None, 'b.py'), 'b.py cannot be written: No', True),
        (OSError(errno.ENOSPC, NO_SPACE), 'a file or the output cannot be written', True),
    ],
)
def test_bad_input_is_one_line_and_2(capsys, error, said, running):
    def failing():
        raise error

    assert ends_with(error, running) == cli.BAD_INPUT
    written = capsys.readouterr().err
    assert written.startswith(f'error: {said}') and written.count('\n') == 1
    if running:
        assert cli.run(failing) == cli.BAD_INPUT
        assert capsys.readouterr().err == written


def test_failures_of_ours_propagate():
    for error, running in ((RuntimeError('odd'), False), (ValueError('odd'), True)):
        assert ends_with(error, running) is error


def test_a_process_that_dies_at_the_end_is_noticed_too(monkeypatch, capsys):
    def leave(wait):
        if wait:
            raise RuntimeError('[/torch/gloo/transport/tcp/pair.cc:547] Connection closed by peer')

    monkeypatch.setattr(cli, '_leave_process_group', leave)
    monkeypatch.setattr(cli, '_process_count', lambda: 2)
    with pytest.raises(RuntimeError), cli.process_group():
        pass
    assert 'another process died or hangs' in capsys.readouterr().err


def test_what_can_not_be_built_is_the_users_and_named(capsys):
    @MODELS.register_module(name='Breaks', force=True)
    class Breaks:
        def __init__(self, size, much):
            raise RuntimeError('negative dimension')

    @MODELS.register_module(name='Around', force=True)
    class Around:
        def __init__(self, part):
            MODELS.build(part)

    build = MODELS.build
    part = dict(type='Breaks', size=-3, much='x' * 100)
    with pytest.raises(SystemExit), cli.exit_on_bad_input():
        MODELS.build(dict(type='Around', part=part))
    error = capsys.readouterr().err
    assert error.startswith('error: negative dimension; in Breaks(size=-3, much=…) of the config')
    assert '--cfg-options' in error
    assert MODELS.build == build


def test_ctrl_c_is_one_line_and_130(capsys):
    def interrupted():
        raise KeyboardInterrupt

    def made_an_error_of():
        with cli.exit_on_bad_input():
            try:
                raise KeyboardInterrupt
            except BaseException:
                raise ValueError('the config is no Python')  # noqa: B904, as mmengine does

    for main in (interrupted, made_an_error_of):
        assert cli.run(main) == 130
        assert capsys.readouterr().err == 'interrupted\n'
    assert cli.run(lambda: 2) == 2
    with pytest.raises(ValueError, match='odd'):
        cli.run(lambda: int('odd'))


def run_in_shell(code, redirection):
    """Exit code and stderr of code run by ``cli.run``."""
    script = f'import sys\nfrom mmdyn import cli\ndef main():\n    {code}\nsys.exit(cli.run(main))'
    line = f'"$0" -c "$1" {redirection}'
    done = subprocess.run(
        ['bash', '-o', 'pipefail', '-c', line, sys.executable, script],
        capture_output=True,
        text=True,
        env={**os.environ, 'PYTHONUNBUFFERED': ''},
    )
    return done.returncode, done.stderr


LOG = "import logging; logging.basicConfig(stream=sys.stdout); logging.warning('x' * 10000)"


@pytest.mark.parametrize(
    'code',
    [
        "print('x' * 10)",
        "print('x' * 100000); raise SystemExit(3)",
        LOG,
        "import rich; rich.print('x\\n' * 5000)",
    ],
)
def test_an_output_that_cannot_be_written_is_one_line_or_none(code):
    assert run_in_shell(code, '| sleep 0') == (cli.CLOSED_PIPE, '')
    code, error = run_in_shell(code, '> /dev/full')
    assert (code, error.count('\n')) == (cli.BAD_INPUT, 1)
    assert error.startswith('error: ') and 'No space left on device' in error


def test_a_message_that_cannot_be_written_leaves_the_exit_code():
    code = "with cli.exit_on_bad_input(): raise ValueError('odd')"
    assert run_in_shell(code, '2> /dev/full') == (cli.BAD_INPUT, '')


def test_a_failure_of_ours_is_told_even_if_nobody_reads_the_output():
    code, error = run_in_shell("print('x'); raise RuntimeError('odd')", '| sleep 0')
    assert code == 1
    assert 'RuntimeError: odd' in error


def test_sigterm_is_one_line_and_143(capsys):
    def terminated():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except cli.Terminated as end:
            raise cli.Terminated('at iteration 3') from end

    assert cli.run(terminated) == 143
    assert capsys.readouterr().err == 'terminated at iteration 3\n'
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def parsed(*options):
    parser = argparse.ArgumentParser()
    cli.add_config_arguments(parser)
    return parser.parse_args(options).cfg_options


def test_options_are_read_as_mmengine_reads_them():
    assert parsed('--cfg-options', 'a.b=[(1,2),(3,4)]', 'c=x', 'd=', 'e={:02d}.png') == {
        'a.b': [(1, 2), (3, 4)], 'c': 'x', 'd': '', 'e': '{:02d}.png',
    }  # fmt: skip


def test_a_traceback_can_be_had():
    for error in (ValueError('odd'), OSError(errno.ENOSPC, NO_SPACE), BadDataError('odd')):
        parsed('--traceback')
        assert ends_with(error) is error
        parsed()
        assert ends_with(error) == cli.BAD_INPUT


@pytest.mark.parametrize(
    ('environment', 'speaks'),
    [
        (dict(RANK='1', LOCAL_RANK='1'), False),
        (dict(RANK='8', LOCAL_RANK='0'), True),
        (dict(RANK='1'), False),
        # Variables set by the tools are not the launcher's.
        (dict(SLURM_PROCID='9', SLURM_LOCALID='1', LOCAL_RANK='0'), False),
        (dict(RANK='1', LOCAL_RANK='1', SLURM_PROCID='0', SLURM_LOCALID='0'), False),
        (dict(OMPI_COMM_WORLD_RANK='3', OMPI_COMM_WORLD_LOCAL_RANK='3'), False),
        (dict(RANK='first'), True),
        ({}, True),
    ],
)
def test_the_first_process_of_each_machine_speaks(monkeypatch, capsys, environment, speaks):
    for name in ('RANK', 'LOCAL_RANK', 'SLURM_PROCID', 'SLURM_LOCALID'):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert ends_with(ValueError('odd')) == cli.BAD_INPUT
    assert capsys.readouterr().err == ('error: odd\n' if speaks else '')
