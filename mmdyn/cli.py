"""What the command-line tools share: arguments, exit codes, the end of a process.

Imports no torch, so that ``--help`` and a mistyped option answer at once.
"""

import argparse
import ast
import contextlib
import gc
import io
import logging
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Collection, Iterator
from typing import Any

from mmengine.config import DictAction

from mmdyn.checks import check_seed
from mmdyn.errors import BadDataError, in_words, printable
from mmdyn.whole_files import NO_ROOM

BAD_INPUT = 2
"""Exit code: the user can put it right. (1 is a failure of ours, with a traceback.)"""

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it: 128 and the number of the signal."""

CLOSED_PIPE = 141
"""Exit code where nobody reads the output any more, as of a tool that SIGPIPE ends."""

TERMINATED = 143
"""Exit code after SIGTERM."""

TRACEBACK = 'MMDYN_TRACEBACK'
"""Environment variable: set to 1, bad input ends in a traceback instead of one message."""

EPILOG = (
    'Exit codes: 0 done, 2 bad usage, bad input or a file that cannot be written (one message), '
    '130 interrupted (Ctrl-C), 143 terminated, 1 a failure of ours. '
    f'{TRACEBACK}=1 shows where bad input was noticed.'
)

# What gloo and NCCL, or torch for them, say when the other side is gone or silent.
_LOST_PROCESS = re.compile(
    r'gloo/transport|remote process exit|[Cc]onnection (closed|reset) by peer|Timed out waiting'
)
# What launchers call a process's number, in the whole run and on its machine.
_RANKS = (
    ('RANK', 'LOCAL_RANK'),
    ('SLURM_PROCID', 'SLURM_LOCALID'),
    ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_LOCAL_RANK'),
)
_USER_ERRORS = (ValueError, TypeError, KeyError, OSError, ImportError, AssertionError)


_SHORT = 80  # characters of a value that a message shows
# A dict as Python writes it; a template such as '{:06d}.png' is none.
_DICT = re.compile(r"""[\[(\s]*(dict\(|\{\s*['"])""")


class Terminated(KeyboardInterrupt):
    """SIGTERM, where :func:`run` runs a tool; an argument says how to go on."""


def run(main: Callable[[], int]) -> int:
    """Runs a tool to its end, with one line in place of a traceback where that is no failure of it.

    Ctrl-C and SIGTERM are such ends, files and an output that cannot be written, and an output
    that nobody reads any more, as in ``... | head``; that one is quiet.

    Args:
        main: the tool's, its arguments bound.

    Returns:
        The exit code.
    """
    code, end = 0, None
    with _quiet_workers(), _raising_logs(), _sigterm() as terminated:
        try:
            code = main()
        except BaseException as error:
            end = error
        for stream in (sys.stdout, sys.stderr):
            failure = _flush(stream)
            if failure is not None and isinstance(end, SystemExit | OSError | None):
                end = failure
    if end is None:
        return code
    if terminated or _is_interrupt(end):
        return _stopped(end, bool(terminated) or _find(end, Terminated) is not None)
    if isinstance(end, SystemExit | OSError) and _find(end, BrokenPipeError):
        return CLOSED_PIPE
    failure = None
    if isinstance(end, OSError) and end.filename is not None:
        failure = end
    elif not isinstance(end, SystemExit):
        failure = _find(end, OSError, NO_ROOM)
    if failure is None or _wants_traceback():
        raise end
    with contextlib.suppress(OSError):  # there may be no room for this either
        print(f'error: {_own_message(failure)}', file=sys.stderr, flush=True)
    return BAD_INPUT


def _stopped(end: BaseException, terminated: bool) -> int:
    if _is_first_process():
        place = _find(end, Terminated)
        word = 'terminated' if terminated else 'interrupted'
        text = ' '.join([word, *map(str, place.args if place else ())])
        with contextlib.suppress(OSError):  # nobody may read any more
            print(text, file=sys.stderr, flush=True)
    return TERMINATED if terminated else INTERRUPTED


@contextlib.contextmanager
def _sigterm() -> Iterator[list[int]]:
    """Makes SIGTERM an exception, as Ctrl-C is; yields a list that it is entered in."""
    came: list[int] = []
    tool = os.getpid()

    def handle(number: int, _: Any) -> None:
        signal.signal(number, signal.SIG_DFL)  # the next one ends the process at once
        if os.getpid() != tool:  # forked
            os.kill(os.getpid(), number)
        came.append(number)
        raise Terminated

    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    )
    if ours:
        signal.signal(signal.SIGTERM, handle)
    try:
        yield came
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def _raising_logs() -> Iterator[None]:
    """Has a log that can't be written end the tool; logging prints a traceback for each line."""
    before = logging.Handler.handleError

    def handle(self: logging.Handler, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            before(self, record)
            return
        name = getattr(self, 'baseFilename', 'the output')
        raise OSError(error.errno, error.strerror, error.filename or name) from error

    logging.Handler.handleError = handle  # type: ignore[method-assign]
    try:
        yield
    finally:
        logging.Handler.handleError = before  # type: ignore[method-assign]


def _flush(stream: Any) -> OSError | None:
    """Writes what is left of an output; if that fails, Python won't try again at its end."""
    try:
        stream.flush()
    except OSError as error:
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
        return OSError(error.errno, error.strerror, 'the output')
    except (AttributeError, ValueError):  # there is none, or it was closed
        pass
    return None


@contextlib.contextmanager
def _quiet_workers() -> Iterator[None]:
    """Has data loaders' workers say nothing when the tool ends while they hand it a batch.

    A thread of theirs shares the batch's memory, and finds nobody at the other end. (What goes
    wrong with data travels to the tool, and not this way.)
    """
    before, tool = sys.excepthook, os.getpid()

    def hook(kind: type[BaseException], error: BaseException, place: Any) -> None:
        if os.getpid() == tool or not isinstance(error, ConnectionError):
            before(kind, error, place)

    sys.excepthook = hook
    try:
        yield
    finally:
        sys.excepthook = before


@contextlib.contextmanager
def exit_on_bad_input() -> Iterator[Callable[[], None]]:
    """Turns the errors of the preparation into one message on stderr and exit code 2.

    ValueError, TypeError, KeyError, OSError (a missing file), ImportError (a
    missing package) and AssertionError (how the hosts refuse what a config gives
    them) count as the user's, and so does every error on building a part of a
    config; all others propagate. In a distributed run the first process of each machine prints.

    Yields:
        A function that says that the preparation is over. What comes after it is
        a failure of ours, a :class:`mmdyn.errors.BadDataError` excepted.

    Raises:
        SystemExit: With code 2, in place of those errors.
    """
    prepared: list[bool] = []
    try:
        yield lambda: prepared.append(True)
    except Exception as error:
        bad_data = isinstance(error, BadDataError)
        users = isinstance(error, _USER_ERRORS) or _part_at_fault(error) is not None
        if _is_interrupt(error) or isinstance(error, BrokenPipeError):
            raise
        if (not bad_data and (prepared or not users)) or _wants_traceback():
            raise
        # A bad file is known to the process that came upon it and to no other.
        if _is_first_process() or bad_data:
            print(f'error: {printable(_message(error))}', file=sys.stderr, flush=True)
        raise SystemExit(BAD_INPUT) from None


@contextlib.contextmanager
def checkpoints_as_data(trust: bool = False) -> Iterator[None]:
    """Has whatever the tool causes to be loaded meanwhile read as data, unless it is trusted.

    Args:
        trust: The value of ``--trust-checkpoint``.
    """
    # Here and not at the top: it imports torch.
    from mmdyn import guard

    with guard.checkpoints_as_data(trust, everywhere=True):
        yield


@contextlib.contextmanager
def exit_on_full_disk(remedy: str) -> Iterator[None]:
    """Turns a disk that is full, or read-only, into one message on stderr and exit code 2.

    To be put around a run that has begun and can go on later; :func:`run` does the same without
    a remedy.

    Args:
        remedy: What to do, a part of the message.

    Raises:
        SystemExit: With code 2, in place of an OSError of that kind.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM or _wants_traceback():
            raise
        print(f'error: {_unwritable(error)}. {remedy}', file=sys.stderr, flush=True)
        raise SystemExit(BAD_INPUT) from None


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Closes the process group of a distributed run when the block ends, however it ends.

    Where another process of the run died or hangs, says so: torch's message names a socket.
    """
    try:
        yield
        _leave_process_group(wait=True)
    except BaseException as error:
        if isinstance(error, RuntimeError) and _LOST_PROCESS.search(str(error)):
            print(
                'error: another process of this run died or hangs: its own messages, above or in '
                "its machine's log, say why. The checkpoints are whole: start all processes again "
                'with --resume (env_cfg.dist_cfg.timeout is how long they wait for each other, in '
                'seconds)',
                file=sys.stderr,
                flush=True,
            )
        _leave_process_group(wait=False)  # the other processes may never come to a barrier
        raise


def _leave_process_group(wait: bool) -> None:
    dist = sys.modules.get('torch.distributed')
    if dist is None or not dist.is_available() or not dist.is_initialized():
        return
    # A wrapped model in a reference cycle would keep the group's threads until the interpreter
    # is half gone, where they abort the process.
    gc.collect()
    if wait:
        dist.barrier()
    dist.destroy_process_group()


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what every tool has that takes configs and checkpoints.

    Args:
        parser: A tool's parser.
    """
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='read all checkpoint files as they are, also those that hold more than data; reading '
        'such a file runs code it brings, so only for files whose source you trust',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=_Options,
        metavar='KEY=VALUE',
        help='override settings of the config, for example train_dataloader.batch_size=4 '
        'model.backbone.keep_ratios=0.9,0.8,0.7; lists as key=1,2,3 or key="[1,2,3]", nested '
        'ones as key="[(1,2),(3,4)]", quoted and without blanks',
    )


class _Options(DictAction):
    """mmengine's KEY=VALUE options, with messages for those it can't read."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        for option in values:
            key, equals, value = option.partition('=')
            if not equals or not all(key.split('.')):
                parser.error(f'{option_string} takes KEY=VALUE with dots in KEY, got {option!r}')
            if _DICT.match(value):
                parser.error(
                    f'{option_string} takes no dicts, got {option!r}: set their keys one by one, '
                    f'{key}.type=NAME and so on, or write a config whose _base_ is this one'
                )
            try:
                super().__call__(parser, namespace, [option], option_string)
            except (AssertionError, RecursionError, ValueError) as error:
                parser.error(
                    f'{option_string} {option}: the value is no list that can be read ({error}); '
                    'close all brackets, and quote it: "KEY=[(1,2),(3,4)]"'
                )


def seed(text: str) -> int:
    """The type of an argument: a seed of random numbers.

    Raises:
        argparse.ArgumentTypeError: If it is none.
    """
    try:
        return check_seed('a seed', int(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def count(text: str) -> int:
    """The type of an argument: a whole number from 1 up.

    Raises:
        argparse.ArgumentTypeError: If it is none.
    """
    if not text.strip().lstrip('+').isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'must be a whole number and at least 1, got {text}')
    return int(text)


def add_swept_ratio_arguments(parser: Any, default: str) -> None:
    """Adds the choice of several settings of keep ratios, and of the control.

    Args:
        parser: A tool's parser, or a group of one.
        default: Of ``--keep-ratio``, in words; it is None in the namespace.
    """
    parser.add_argument(
        '--keep-ratio',
        type=float,
        nargs='+',
        metavar='R',
        help="keep ratios of the first predictor; later ones fall as with test.py's --keep-ratio "
        f'(default: {default})',
    )
    parser.add_argument(
        '--keep-ratios',
        type=float,
        nargs='+',
        action='append',
        default=[],
        metavar='R',
        help='keep ratio of each predictor; may be given again',
    )
    parser.add_argument(
        '--no-random', action='store_true', help='leave out random selection at each ratio'
    )


def add_timing_arguments(parser: Any) -> None:
    """Adds how calls are timed, and on what.

    Args:
        parser: A tool's parser, or a group of one.
    """
    parser.add_argument(
        '--num-images',
        type=count,
        default=8,
        metavar='N',
        help='different images to time on (default: %(default)s)',
    )
    parser.add_argument(
        '--rounds',
        type=count,
        default=20,
        help='timed calls of each line, at least (default: %(default)s)',
    )
    parser.add_argument('--threads', type=count, help="CPU threads (default: torch's choice)")
    parser.add_argument('--device', help='cpu, cuda, cuda:1 ... (default: a GPU if there is one)')
    parser.add_argument(
        '--seed', type=seed, default=0, help='of everything random (default: %(default)s)'
    )


def add_keep_ratio_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the choice of keep ratios, one for all predictors or one for each.

    Args:
        parser: A tool's parser.
    """
    ratios = parser.add_mutually_exclusive_group()
    ratios.add_argument(
        '--keep-ratio',
        type=float,
        metavar='R',
        help='keep ratio of the first predictor; the later ones fall from it by 0.2 each, not '
        'below 0.1 (ViT: R, R^2, R^3); 1 is the dense model',
    )
    ratios.add_argument(
        '--keep-ratios',
        type=float,
        nargs='+',
        metavar='R',
        help='keep ratio of each predictor',
    )


def add_policy_argument(parser: argparse.ArgumentParser) -> None:
    """Adds the choice of a decision policy; :func:`make_policy` reads it.

    Args:
        parser: A tool's parser.
    """
    parser.add_argument(
        '--policy',
        nargs='+',
        metavar=('NAME', 'KEY=VALUE'),
        help='how locations are chosen, for example ThresholdPolicy threshold=0.4 or RandomPolicy '
        "seed=1 (default: the config's way, usually TopKPolicy)",
    )


def make_policy(words: list[str] | None) -> Any:
    """The policy that ``--policy`` names; None if it wasn't given.

    Args:
        words: its name and its settings, each as KEY=VALUE.

    Raises:
        ValueError: If there is no such policy, or a setting is no KEY=VALUE.
        TypeError: If the policy has no such setting.
    """
    if words is None:
        return None
    from mmdyn.models.policies import POLICIES

    name, *settings = words
    known = {policy.__name__: policy for policy in POLICIES if policy.__name__ != 'FixedPolicy'}
    if name not in known:
        raise ValueError(f'--policy: {name!r} is none of {", ".join(sorted(known))}')
    arguments = {}
    for setting in settings:
        key, equals, value = setting.partition('=')
        if not equals:
            raise ValueError(f'--policy: settings are given as KEY=VALUE, got {setting!r}')
        try:
            arguments[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            raise ValueError(f'--policy: {value!r} of {setting} is no number or list') from None
    try:
        return known[name](**arguments)
    except (TypeError, ValueError) as error:
        raise type(error)(f'--policy {" ".join(words)}: {error}') from error


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what training and testing have in common.

    Args:
        parser: A tool's parser.
    """
    add_config_arguments(parser)
    parser.add_argument(
        '--data-root',
        metavar='FOLDER',
        help='where the data lie, in place of the folder that the config names for them',
    )
    parser.add_argument(
        '--launcher',
        choices=('none', 'pytorch', 'slurm', 'mpi'),
        default='none',
        help='how the processes of a distributed run were started (default: %(default)s, one '
        'process); without a GPU they talk over gloo',
    )
    parser.add_argument(
        '--local_rank',
        '--local-rank',
        type=int,
        default=0,
        help="this process' number on its machine; the launcher passes it",
    )


def export_local_rank(local_rank: int) -> None:
    """Sets LOCAL_RANK, where mmengine looks for it, unless the launcher did.

    Args:
        local_rank: The value of ``--local_rank``; a launcher's own number goes before.
    """
    launchers = [os.environ[local] for _, local in _RANKS if local in os.environ]
    os.environ.setdefault('LOCAL_RANK', launchers[0] if launchers else str(local_rank))


def _is_interrupt(error: BaseException) -> bool:
    """Whether it is Ctrl-C, or an error that some library made of it (mmengine's config does)."""
    return _find(error, KeyboardInterrupt) is not None


def _find(
    error: BaseException | None, kind: type[BaseException], numbers: Collection[int] | None = None
) -> Any:
    """The error, or what it came from, if it is of a kind (and its errno one of some); or None."""
    while error is not None:
        if isinstance(error, kind) and (numbers is None or error.errno in numbers):
            return error
        error = error.__cause__ or error.__context__
    return None


def _wants_traceback() -> bool:
    return os.environ.get(TRACEBACK, '0') not in ('', '0')


def _is_first_process() -> bool:
    """Of its machine: data, packages and checkpoints may be missing on one of several."""
    # From the launcher's environment: there may be no process group yet.
    for rank, local_rank in _RANKS:
        if rank in os.environ:
            number = os.environ.get(local_rank, os.environ[rank])
            return not number.isdecimal() or int(number) == 0  # of wrong ranks every process tells
    return True


def _message(error: BaseException) -> str:
    text = _own_message(error)
    part = _part_at_fault(error)
    if part is None or isinstance(error, BadDataError):
        return text
    # Parts of the part are shown where they are short.
    shown = {key: repr(value) for key, value in part.items() if not key.startswith('_')}
    kind = shown.pop('type').strip("'")
    settings = (f'{key}={text if len(text) < _SHORT else "…"}' for key, text in shown.items())
    return (
        f'{text.rstrip(".")}; in {kind}({", ".join(settings)}) of the config: change it there, or '
        'with --cfg-options KEY=VALUE'
    )


def _unwritable(error: OSError) -> str:
    name = error.filename2 or error.filename  # of a copy, the second
    if name is None:  # a write that fails names no file
        for frame, _ in traceback.walk_tb(error.__traceback__):
            for file in frame.f_locals.values():
                if not isinstance(file, io.IOBase) or getattr(file, 'mode', 'r') in ('r', 'rb'):
                    continue
                if isinstance(file.name, str) and not file.name.startswith('<'):  # as <stdout>
                    name = file.name
    return f'{name or "a file or the output"} cannot be written: {error.strerror}'


def _own_message(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return f'{_unwritable(error)}; make room, or write elsewhere'
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return f'{error.filename}: {error.strerror}; name another path, or change what is there'
    if isinstance(error, AssertionError) and not str(error):
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f'the config was refused at {place.filename}:{place.lineno}: {place.line}'
    return in_words(error)


def _part_at_fault(error: BaseException) -> dict[str, Any] | None:
    """The innermost dict of a config that was being built when the error came, if one was."""
    found = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name == 'build_from_cfg':  # mmengine's, and the hosts' own go through it
            part = frame.f_locals.get('cfg')
            if isinstance(part, dict) and 'type' in part:
                found = dict(part)
    return found
