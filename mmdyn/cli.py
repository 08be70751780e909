"""Shared by the command-line tools: arguments, exit codes, handling of errors and signals.

Imports no torch, so that ``--help`` and usage errors are quick.
"""

import argparse
import ast
import contextlib
import gc
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from typing import Any

from mmdyn import compat
from mmdyn.checks import MAX_SEED, check_integer
from mmdyn.errors import BadDataError, in_words, printable
from mmdyn.whole_files import NO_ROOM

try:
    from mmengine.config import DictAction

    from mmdyn.config_parts import noting_parts, part_at_fault
except Exception:  # mmengine is missing or broken: the tool will say so
    DictAction, noting_parts, part_at_fault = (
        argparse.Action,
        contextlib.nullcontext,
        lambda _: None,
    )

BAD_INPUT = 2
"""Exit code of user errors. (1 is an internal error, with a traceback.)"""

INTERRUPTED = 130
"""Exit code after Ctrl-C, as in shells: 128 plus the signal's number."""

CLOSED_PIPE = 141
"""Exit code if the reader of the output has gone, as after SIGPIPE."""

TERMINATED = 143
"""Exit code after SIGTERM."""

EPILOG = (
    'Exit codes: 0 done, 2 bad usage, bad input or a file that cannot be written (one message), '
    '130 interrupted (Ctrl-C), 143 terminated, 1 internal error.'
)

# Environment variables with the global and the local rank, by launcher.
_RANKS = (
    ('RANK', 'LOCAL_RANK'),
    ('SLURM_PROCID', 'SLURM_LOCALID'),
    ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_LOCAL_RANK'),
)
_USER_ERRORS = (ValueError, TypeError, KeyError, OSError, ImportError, AssertionError)
_SHORT = 80  # longest setting shown in a message, in characters
_MAKE_ROOM = 'make room, or write elsewhere'
_WANTS_OPERATORS = r'mmcv\.(ops|_ext)|mmdet\.models|install (onedl-)?mmcv\b'
# A dict in Python syntax, unlike a template such as '{:06d}.png'.
_DICT = re.compile(r"""[\[(\s]*(dict\(|\{\s*['"])""")


class Terminated(KeyboardInterrupt):
    """SIGTERM in a tool run by :func:`run`; an argument says how to resume."""


def run(main: Callable[[], int]) -> int:
    """Run a tool and return its exit code.

    Ctrl-C, SIGTERM and unwritable files or outputs give one line instead of a traceback. A closed
    output, as in ``... | head``, ends the tool silently.
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
    if terminated or _find(end, KeyboardInterrupt):
        return _stopped(end, bool(terminated) or _find(end, Terminated) is not None)
    if isinstance(end, SystemExit | OSError) and _find(end, BrokenPipeError):
        return CLOSED_PIPE
    if isinstance(end, Exception) and _is_bad_input(end, running=True):
        _report_error(end)
        return BAD_INPUT
    raise end


@contextlib.contextmanager
def exit_on_bad_input(remedy: str = _MAKE_ROOM) -> Iterator[Callable]:
    """Turn user errors into one message on stderr and exit code 2.

    While a tool prepares its work, these are ValueError, TypeError, KeyError, OSError (a missing
    file), ImportError (a missing package), AssertionError (raised by the hosts on bad settings),
    and every error from building a part of a config. Afterwards only
    :class:`mmdyn.errors.BadDataError` and files that can't be read or written.

    Args:
        remedy: what to do about a disk that is full or read-only.

    Yields:
        A function to call when preparation is over.
    """
    prepared: list[bool] = []
    try:
        with noting_parts():
            yield lambda: prepared.append(True)
    except Exception as error:
        if not _is_bad_input(error, bool(prepared)):
            raise
        # Errors of all processes of a distributed run are reported by the first of each machine.
        if prepared or isinstance(error, BadDataError) or _is_first_process():
            _report_error(error, remedy)
        raise SystemExit(BAD_INPUT) from None


def _is_bad_input(error: Exception, running: bool) -> bool:
    # Some libraries wrap KeyboardInterrupt (mmengine's config does).
    if _Traceback.wanted or _find(error, KeyboardInterrupt) or isinstance(error, BrokenPipeError):
        return False
    if isinstance(error, BadDataError) or _find(error, OSError, NO_ROOM):
        return True
    if isinstance(error, OSError) and error.filename is not None:
        return True
    return not running and (isinstance(error, _USER_ERRORS) or part_at_fault(error) is not None)


def _report_error(error: Exception, remedy: str = _MAKE_ROOM) -> None:
    no_room = _find(error, OSError, NO_ROOM)
    if no_room:
        name = no_room.filename2 or no_room.filename or 'a file or the output'  # 2: of a copy
        text = f'{name} cannot be written: {no_room.strerror}; {remedy}'
    elif isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        text = f'{error.filename}: {error.strerror}; name another path, or change what is there'
    else:
        text = in_words(error)
        missing = compat.missing_ops()
        if missing and missing not in text and re.search(_WANTS_OPERATORS, text):
            text = f'{text.splitlines()[0].rstrip(".")}; {missing}'
        elif text.startswith('No module named '):
            text = f'{text}: `mmdyn doctor` shows what is installed and what to install'
        if isinstance(error, BadDataError) and error.__cause__ is not None:
            text = f'{text} (--traceback shows where)'
    part = None if no_room or isinstance(error, BadDataError) else part_at_fault(error)
    if part is not None:
        # Long settings, such as nested parts, are omitted.
        shown = {key: repr(value) for key, value in part.items() if not key.startswith('_')}
        kind = shown.pop('type').strip("'")
        settings = (f'{key}={one if len(one) < _SHORT else "…"}' for key, one in shown.items())
        text = (
            f'{text.rstrip(".")}; in {kind}({", ".join(settings)}) of the config: change it '
            'there, or with --cfg-options KEY=VALUE'
        )
    with contextlib.suppress(OSError):  # the disk may be too full for this as well
        print(f'error: {printable(text)}', file=sys.stderr, flush=True)


def _stopped(end: BaseException, terminated: bool) -> int:
    if _is_first_process():
        place = _find(end, Terminated)
        word = 'terminated' if terminated else 'interrupted'
        with contextlib.suppress(OSError):  # the output may be closed
            print(word, *(place.args if place else ()), file=sys.stderr, flush=True)
    return TERMINATED if terminated else INTERRUPTED


@contextlib.contextmanager
def _sigterm() -> Iterator[list[int]]:
    """Raise :class:`Terminated` on SIGTERM; yields a list to which the signal is appended."""
    received: list[int] = []
    tool = os.getpid()

    def handle(number: int, _: Any) -> None:
        signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once
        if os.getpid() != tool:  # forked
            os.kill(os.getpid(), number)
        received.append(number)
        raise Terminated

    unhandled = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    )
    if unhandled:
        signal.signal(signal.SIGTERM, handle)
    try:
        yield received
    finally:
        if unhandled:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def _raising_logs() -> Iterator[None]:
    """End the tool if a log can't be written; logging would print a traceback for each line."""
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
    """Flush an output; on failure redirect it, so that Python doesn't retry at exit."""
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
    """Silence connection errors of data loader workers when the tool ends during a transfer.

    A worker thread that shares a batch's memory then finds the connection closed. (Errors in the
    data are passed to the tool instead.)
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
def checkpoints_as_data(trust: bool = False) -> Iterator[None]:
    """Load all checkpoints as data only, unless ``trust``."""
    # Imported here because it imports torch.
    from mmdyn import guard

    with guard.checkpoints_as_data(trust, everywhere=True):
        yield


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Close the process group of a distributed run when the block ends.

    If another process dies or hangs, torch raises a RuntimeError about a socket in this one; the
    message printed here explains it.
    """
    try:
        yield
        _leave_process_group(wait=True)
    except BaseException as error:
        if isinstance(error, RuntimeError) and _process_count() > 1:
            print(
                f'error: this process of a distributed run ended with a {type(error).__name__}. '
                'If it is about a connection or a timeout, another process died or hangs: see its '
                "messages, above or in its machine's log. The checkpoints are intact: restart all "
                'processes with --resume (env_cfg.dist_cfg.timeout sets how long they wait for '
                'each other, in seconds)',
                file=sys.stderr,
                flush=True,
            )
        _leave_process_group(wait=False)  # the others may never reach a barrier
        raise


@contextlib.contextmanager
def running(args: argparse.Namespace, remedy: str = _MAKE_ROOM) -> Iterator[Callable]:
    """Set up what training and testing share.

    Args:
        args: of the tool, see :func:`add_run_arguments`; the local rank is removed.
        remedy: see :func:`exit_on_bad_input`, also for what is yielded.
    """
    # Where mmengine looks for it.
    os.environ.setdefault('LOCAL_RANK', str(vars(args).pop('local_rank')))
    with (
        process_group(),
        exit_on_bad_input(remedy) as prepared,
        checkpoints_as_data(args.trust_checkpoint),
    ):
        yield prepared


def _process_count() -> int:
    """World size; 0 without a process group."""
    dist = sys.modules.get('torch.distributed')
    ready = dist is not None and dist.is_available() and dist.is_initialized()
    return dist.get_world_size() if ready else 0


def _leave_process_group(wait: bool) -> None:
    if not _process_count():
        return
    dist = sys.modules['torch.distributed']
    # A wrapped model in a reference cycle would keep the group's threads alive until interpreter
    # shutdown, where they abort the process.
    gc.collect()
    if wait:
        dist.barrier()
    dist.destroy_process_group()


def _find(
    error: BaseException | None, kind: type[BaseException], numbers: Collection[int] | None = None
) -> Any:
    """First error in the chain of a kind (and with one of some errnos), or None."""
    while error is not None:
        if isinstance(error, kind) and (numbers is None or error.errno in numbers):
            return error
        error = error.__cause__ or error.__context__
    return None


def _is_first_process() -> bool:
    """Whether this process is the first on its machine, which reports errors.

    Per machine, since data, packages and checkpoints may be missing on one of several.
    """
    # From the launcher's environment: there may be no process group yet.
    for rank, local_rank in _RANKS:
        if rank in os.environ:
            number = os.environ.get(local_rank, os.environ[rank])
            return not number.isdecimal() or int(number) == 0  # if invalid, every process reports
    return True


class _Traceback(argparse.Action):
    """The option ``--traceback``."""

    wanted = False

    def __call__(self, *_: Any) -> None:
        type(self).wanted = True


def add_traceback_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--traceback``, an option of every tool."""
    _Traceback.wanted = False  # may be set by an earlier call in this process
    parser.add_argument(
        '--traceback',
        action=_Traceback,
        nargs=0,
        default=argparse.SUPPRESS,
        help='show a traceback for bad input instead of a message',
    )


def add_model_arguments(parser: argparse.ArgumentParser, without: str = '') -> None:
    """Add CONFIG and CHECKPOINT.

    Args:
        parser: of a tool.
        without: note on random weights; if given, CHECKPOINT is optional.
    """
    parser.add_argument('config', help='the config: a file, or a packaged one as mmdyn::NAME.py')
    default = f' (default: random weights; {without})' if without else ''
    parser.add_argument(
        'checkpoint',
        nargs='?' if without else None,
        help=f'the weights: a file or an address{default}',
    )


def add_trust_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--trust-checkpoint`` and ``--traceback``."""
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='load all checkpoint files without restrictions. This can run code in the file: use '
        'it only for files from sources you trust',
    )
    add_traceback_argument(parser)


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of every tool that takes configs and checkpoints."""
    add_trust_arguments(parser)
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=_Options,
        metavar='KEY=VALUE',
        help='override settings of the config, for example train_dataloader.batch_size=4 '
        'model.backbone.keep_ratios=0.9,0.8,0.7; lists as key=1,2,3 or key="[1,2,3]", nested '
        'lists as key="[(1,2),(3,4)]", quoted and without spaces',
    )


class _Options(DictAction):
    """mmengine's KEY=VALUE options, with messages for invalid ones."""

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
                    f'{option_string} {option}: cannot read the value ({error}); close all '
                    'brackets, and quote it: "KEY=[(1,2),(3,4)]"'
                )


def seed(text: str) -> int:
    """Argument type: a random seed."""
    return _integer(text, 0, MAX_SEED)


def count(text: str) -> int:
    """Argument type: a positive integer."""
    return _integer(text, 1)


def _integer(text: str, *bounds: int) -> int:
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f'must be an integer, got {text!r}') from None
    try:
        return check_integer('the number', number, *bounds)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def load_model(args: argparse.Namespace, **settings: Any) -> Any:
    """Load the model of the arguments of :func:`add_config_arguments`.

    Args:
        args: of the tool.
        settings: further arguments of :func:`mmdyn.engine.loading.load_model`.

    Returns:
        A :class:`mmdyn.engine.loading.LoadedModel`.
    """
    from mmdyn.engine import loading

    options = dict(cfg_options=args.cfg_options, trust_checkpoint=args.trust_checkpoint)
    return loading.load_model(args.config, args.checkpoint, **options, **settings)


def show_notes(loaded: Any) -> None:
    """Print the notes of a :class:`mmdyn.engine.loading.LoadedModel`."""
    for note in loaded.notes:
        print(note, file=sys.stderr)


def add_swept_ratio_arguments(parser: Any, default: str) -> None:
    """Add arguments for several keep ratios and for random selection.

    ``default`` describes the default of ``--keep-ratio``.
    """
    parser.add_argument(
        '--keep-ratio',
        type=float,
        nargs='+',
        metavar='R',
        help="keep ratios of the first predictor; later ones decrease as with test.py's "
        f'--keep-ratio (default: {default})',
    )
    parser.add_argument(
        '--keep-ratios',
        type=float,
        nargs='+',
        action='append',
        default=[],
        metavar='R',
        help='keep ratio of each predictor; repeatable',
    )
    parser.add_argument(
        '--no-random', action='store_true', help='skip random selection at each ratio'
    )


def add_timing_arguments(parser: Any) -> None:
    """Add arguments for timing to a tool's parser or argument group."""
    parser.add_argument(
        '--num-images',
        type=count,
        default=8,
        metavar='N',
        help='number of different images to time on (default: %(default)s)',
    )
    parser.add_argument(
        '--rounds',
        type=count,
        default=20,
        help='minimum number of timed calls per line (default: %(default)s)',
    )
    parser.add_argument('--threads', type=count, help="CPU threads (default: torch's choice)")
    parser.add_argument('--device', help='cpu, cuda, cuda:1 ... (default: a GPU if there is one)')
    parser.add_argument('--seed', type=seed, default=0, help='random seed (default: %(default)s)')


def add_keep_ratio_arguments(parser: argparse.ArgumentParser) -> Any:
    """Add ``--keep-ratio`` and ``--keep-ratios``; returns their group."""
    ratios = parser.add_mutually_exclusive_group()
    ratios.add_argument(
        '--keep-ratio',
        type=float,
        metavar='R',
        help='keep ratio of the first predictor; later ones decrease by 0.2 each, to no less than '
        '0.1 (ViT: R, R^2, R^3); 1 is the dense model',
    )
    ratios.add_argument(
        '--keep-ratios',
        type=float,
        nargs='+',
        metavar='R',
        help='keep ratio of each predictor',
    )
    return ratios


def add_prepare_argument(parser: argparse.ArgumentParser, default: bool, where: str = '') -> None:
    """Add ``--prepare`` and ``--no-prepare``; ``where`` names further conditions."""
    parser.add_argument(
        '--prepare',
        action=argparse.BooleanOptionalAction,
        default=default,
        help='speed up the model with mmdyn.prepare_for_inference, with the same outputs, on a '
        f'CPU{where} (default: {"yes" if default else "no"})',
    )


def add_policy_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--policy``, which :func:`make_policy` reads."""
    parser.add_argument(
        '--policy',
        nargs='+',
        metavar=('NAME', 'KEY=VALUE'),
        help='policy that selects locations, for example ThresholdPolicy threshold=0.4 or '
        "RandomPolicy seed=1 (default: the config's, usually TopKPolicy)",
    )


def make_policy(words: list[str] | None) -> Any:
    """Build the policy of ``--policy``; None if it wasn't given.

    Raises:
        ValueError: on an unknown policy or an invalid setting.
    """
    if words is None:
        return None
    from mmdyn.models.policies import POLICIES

    name, *settings = words
    known = {policy.__name__: policy for policy in POLICIES if policy.__name__ != 'FixedPolicy'}
    if name not in known:
        raise ValueError(f'--policy: {name!r} is not one of {", ".join(sorted(known))}')
    try:
        pairs = (setting.split('=', 1) for setting in settings)
        return known[name](**{key: ast.literal_eval(value) for key, value in pairs})
    except (SyntaxError, TypeError, ValueError) as error:
        raise ValueError(
            f'--policy {" ".join(words)}: {error}; give settings as KEY=VALUE, where VALUE is a '
            'number or a list'
        ) from error


def add_data_root_argument(parser: Any) -> None:
    """Add ``--data-root`` to a tool's parser or argument group."""
    parser.add_argument(
        '--data-root',
        metavar='FOLDER',
        help="folder of the data, instead of the config's",
    )


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments shared by training and testing."""
    add_config_arguments(parser)
    add_data_root_argument(parser)
    parser.add_argument(
        '--work-dir',
        help="folder for logs, checkpoints and metrics (default: the config's work_dir, else "
        './work_dirs/CONFIG)',
    )
    parser.add_argument(
        '--launcher',
        choices=('none', 'pytorch', 'slurm', 'mpi'),
        default='none',
        help='launcher of a distributed run (default: %(default)s, one process); without a GPU '
        'the processes use gloo',
    )
    parser.add_argument(
        '--local_rank',
        '--local-rank',
        type=int,
        default=0,
        help='local rank of this process; set by the launcher',
    )
