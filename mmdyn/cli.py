"""What the command-line tools share: arguments, exit codes, the end of a process.

Imports no torch, so that ``--help`` and a mistyped option answer at once.
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
"""Exit code: the user can put it right. (1 is a failure of ours, with a traceback.)"""

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it: 128 and the number of the signal."""

CLOSED_PIPE = 141
"""Exit code where nobody reads the output any more, as of a tool that SIGPIPE ends."""

TERMINATED = 143
"""Exit code after SIGTERM."""

EPILOG = (
    'Exit codes: 0 done, 2 bad usage, bad input or a file that cannot be written (one message), '
    '130 interrupted (Ctrl-C), 143 terminated, 1 a failure of ours.'
)

# What launchers call a process's number, in the whole run and on its machine.
_RANKS = (
    ('RANK', 'LOCAL_RANK'),
    ('SLURM_PROCID', 'SLURM_LOCALID'),
    ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_LOCAL_RANK'),
)
_USER_ERRORS = (ValueError, TypeError, KeyError, OSError, ImportError, AssertionError)
_SHORT = 80  # characters of a setting that a message shows
_MAKE_ROOM = 'make room, or write elsewhere'
# A dict as Python writes it; a template such as '{:06d}.png' is none.
_DICT = re.compile(r"""[\[(\s]*(dict\(|\{\s*['"])""")


class Terminated(KeyboardInterrupt):
    """SIGTERM, where :func:`run` runs a tool; an argument says how to go on."""


def run(main: Callable[[], int]) -> int:
    """Run a tool and return its exit code.

    Ctrl-C, SIGTERM, and a file or an output that cannot be written are one line in place of a
    traceback. An output that nobody reads any more, as in ``... | head``, ends it without a word.
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
        _tell(end)
        return BAD_INPUT
    raise end


@contextlib.contextmanager
def exit_on_bad_input(remedy: str = _MAKE_ROOM) -> Iterator[Callable]:
    """Turns errors that the user can put right into one message on stderr and exit code 2.

    While a tool prepares its work, these are ValueError, TypeError, KeyError, OSError (a missing
    file), ImportError (a missing package), AssertionError (how the hosts refuse what a config
    gives them), and every error on building a part of a config. Afterwards they are a
    :class:`mmdyn.errors.BadDataError` and a file that cannot be read or written.

    Args:
        remedy: What to do about a disk that is full or read-only.

    Yields:
        A function that says that the preparation is over.
    """
    prepared: list[bool] = []
    try:
        with noting_parts():
            yield lambda: prepared.append(True)
    except Exception as error:
        if not _is_bad_input(error, bool(prepared)):
            raise
        # What all processes of a distributed run come upon, the first of each machine tells.
        if prepared or isinstance(error, BadDataError) or _is_first_process():
            _tell(error, remedy)
        raise SystemExit(BAD_INPUT) from None


def _is_bad_input(error: Exception, running: bool) -> bool:
    # Some libraries make an error of Ctrl-C (mmengine's config does).
    if _Traceback.wanted or _find(error, KeyboardInterrupt) or isinstance(error, BrokenPipeError):
        return False
    if isinstance(error, BadDataError) or _find(error, OSError, NO_ROOM):
        return True
    if isinstance(error, OSError) and error.filename is not None:
        return True
    return not running and (isinstance(error, _USER_ERRORS) or part_at_fault(error) is not None)


def _tell(error: Exception, remedy: str = _MAKE_ROOM) -> None:
    no_room = _find(error, OSError, NO_ROOM)
    if no_room:
        name = no_room.filename2 or no_room.filename or 'a file or the output'  # 2: of a copy
        text = f'{name} cannot be written: {no_room.strerror}; {remedy}'
    elif isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        text = f'{error.filename}: {error.strerror}; name another path, or change what is there'
    else:
        text = in_words(error)
        missing = compat.missing_ops()
        if missing and missing not in text and ('mmcv' in text or 'mmdet.models' in text):
            text = f'{text.splitlines()[0].rstrip(".")}; {missing}'
        elif text.startswith('No module named '):
            text = f'{text}: `mmdyn doctor` shows what is installed and what to install'
        if isinstance(error, BadDataError) and error.__cause__ is not None:
            text = f'{text} (--traceback shows where)'
    part = None if no_room or isinstance(error, BadDataError) else part_at_fault(error)
    if part is not None:
        # Settings that are long, such as parts with parts of their own, are left out.
        shown = {key: repr(value) for key, value in part.items() if not key.startswith('_')}
        kind = shown.pop('type').strip("'")
        settings = (f'{key}={one if len(one) < _SHORT else "…"}' for key, one in shown.items())
        text = (
            f'{text.rstrip(".")}; in {kind}({", ".join(settings)}) of the config: change it '
            'there, or with --cfg-options KEY=VALUE'
        )
    with contextlib.suppress(OSError):  # there may be no room for this either
        print(f'error: {printable(text)}', file=sys.stderr, flush=True)


def _stopped(end: BaseException, terminated: bool) -> int:
    if _is_first_process():
        place = _find(end, Terminated)
        word = 'terminated' if terminated else 'interrupted'
        with contextlib.suppress(OSError):  # nobody may read any more
            print(word, *(place.args if place else ()), file=sys.stderr, flush=True)
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
def checkpoints_as_data(trust: bool = False) -> Iterator[None]:
    """Has whatever the tool causes to be loaded meanwhile read as data, unless ``trust``."""
    # Here and not at the top: it imports torch.
    from mmdyn import guard

    with guard.checkpoints_as_data(trust, everywhere=True):
        yield


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Closes the process group of a distributed run when the block ends, however it ends.

    A process that dies or hangs is a RuntimeError of torch's in the others, about a socket. So
    where one ends a distributed run, that is said too.
    """
    try:
        yield
        _leave_process_group(wait=True)
    except BaseException as error:
        if isinstance(error, RuntimeError) and _process_count() > 1:
            print(
                f'error: this process of a distributed run ended with a {type(error).__name__}. '
                'If that is about a connection or a time-out, another process died or hangs, and '
                "its own messages, above or in its machine's log, say why. The checkpoints are "
                'whole: start all processes again with --resume (env_cfg.dist_cfg.timeout is how '
                'long they wait for each other, in seconds)',
                file=sys.stderr,
                flush=True,
            )
        _leave_process_group(wait=False)  # the other processes may never come to a barrier
        raise


@contextlib.contextmanager
def running(args: argparse.Namespace, remedy: str = _MAKE_ROOM) -> Iterator[Callable]:
    """Surrounds a run with what training and testing share.

    Args:
        args: The tool's, see :func:`add_run_arguments`; the local rank is taken out.
        remedy: See :func:`exit_on_bad_input`, which also tells what is yielded.
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
    """Of the run; 0 where no process group was initialised."""
    dist = sys.modules.get('torch.distributed')
    ready = dist is not None and dist.is_available() and dist.is_initialized()
    return dist.get_world_size() if ready else 0


def _leave_process_group(wait: bool) -> None:
    if not _process_count():
        return
    dist = sys.modules['torch.distributed']
    # A wrapped model in a reference cycle would keep the group's threads until the interpreter
    # is half gone, where they abort the process.
    gc.collect()
    if wait:
        dist.barrier()
    dist.destroy_process_group()


def _find(
    error: BaseException | None, kind: type[BaseException], numbers: Collection[int] | None = None
) -> Any:
    """The error, or what it came from, if it is of a kind (and its errno one of some); or None."""
    while error is not None:
        if isinstance(error, kind) and (numbers is None or error.errno in numbers):
            return error
        error = error.__cause__ or error.__context__
    return None


def _is_first_process() -> bool:
    """Of its machine: data, packages and checkpoints may be missing on one of several."""
    # From the launcher's environment: there may be no process group yet.
    for rank, local_rank in _RANKS:
        if rank in os.environ:
            number = os.environ.get(local_rank, os.environ[rank])
            return not number.isdecimal() or int(number) == 0  # of wrong ranks every process tells
    return True


class _Traceback(argparse.Action):
    """The option ``--traceback``."""

    wanted = False

    def __call__(self, *_: Any) -> None:
        type(self).wanted = True


def add_traceback_argument(parser: argparse.ArgumentParser) -> None:
    """Adds ``--traceback``, as every tool has it."""
    _Traceback.wanted = False  # a call before, in the same process, may have had it
    parser.add_argument(
        '--traceback',
        action=_Traceback,
        nargs=0,
        default=argparse.SUPPRESS,
        help='end bad input with a traceback in place of one message',
    )


def add_model_arguments(parser: argparse.ArgumentParser, without: str = '') -> None:
    """Adds CONFIG and CHECKPOINT.

    Args:
        parser: A tool's parser.
        without: What to know of random weights, where CHECKPOINT may be left out.
    """
    parser.add_argument('config', help='the config: a file, or a packaged one as mmdyn::NAME.py')
    default = f' (default: random weights; {without})' if without else ''
    parser.add_argument(
        'checkpoint',
        nargs='?' if without else None,
        help=f'the weights: a file or an address{default}',
    )


def add_trust_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds ``--trust-checkpoint`` and ``--traceback``."""
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='read all checkpoint files as they are, also those that hold more than data; reading '
        'such a file runs code it brings, so only for files whose source you trust',
    )
    add_traceback_argument(parser)


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what every tool has that takes configs and checkpoints."""
    add_trust_arguments(parser)
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
    """The type of an argument: a seed of random numbers."""
    return _integer(text, 0, MAX_SEED)


def count(text: str) -> int:
    """The type of an argument: a positive integer."""
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
    """Loads what CONFIG, CHECKPOINT and the arguments of :func:`add_config_arguments` name.

    Args:
        args: The tool's arguments.
        settings: The other arguments of :func:`mmdyn.engine.loading.load_model`.

    Returns:
        A :class:`mmdyn.engine.loading.LoadedModel`.
    """
    from mmdyn.engine import loading

    options = dict(cfg_options=args.cfg_options, trust_checkpoint=args.trust_checkpoint)
    return loading.load_model(args.config, args.checkpoint, **options, **settings)


def show_notes(loaded: Any) -> None:
    """Prints what a user should know of a :class:`mmdyn.engine.loading.LoadedModel`."""
    for note in loaded.notes:
        print(note, file=sys.stderr)


def add_swept_ratio_arguments(parser: Any, default: str) -> None:
    """Adds the choice of several settings of keep ratios, and of the control.

    ``default`` says in words what holds where ``--keep-ratio`` is None.
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
    """Adds how calls are timed, and on what, to a tool's parser or a group of one."""
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


def add_keep_ratio_arguments(parser: argparse.ArgumentParser) -> Any:
    """Adds the choice of keep ratios, one for all predictors or one for each; returns the group."""
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
    return ratios


def add_prepare_argument(parser: argparse.ArgumentParser, default: bool, where: str = '') -> None:
    """Adds ``--prepare`` and ``--no-prepare``; ``where`` says what else it depends on."""
    parser.add_argument(
        '--prepare',
        action=argparse.BooleanOptionalAction,
        default=default,
        help='make the model fast first, by mmdyn.prepare_for_inference: the same function, on a '
        f'CPU{where} (default: {"yes" if default else "no"})',
    )


def add_policy_argument(parser: argparse.ArgumentParser) -> None:
    """Adds the choice of a decision policy; :func:`make_policy` reads it."""
    parser.add_argument(
        '--policy',
        nargs='+',
        metavar=('NAME', 'KEY=VALUE'),
        help='how locations are chosen, for example ThresholdPolicy threshold=0.4 or RandomPolicy '
        "seed=1 (default: the config's way, usually TopKPolicy)",
    )


def make_policy(words: list[str] | None) -> Any:
    """The policy that ``--policy`` names; None if it wasn't given.

    Raises:
        ValueError: If there is no such policy, or a setting is no KEY=VALUE or not the policy's.
    """
    if words is None:
        return None
    from mmdyn.models.policies import POLICIES

    name, *settings = words
    known = {policy.__name__: policy for policy in POLICIES if policy.__name__ != 'FixedPolicy'}
    if name not in known:
        raise ValueError(f'--policy: {name!r} is none of {", ".join(sorted(known))}')
    try:
        pairs = (setting.split('=', 1) for setting in settings)
        return known[name](**{key: ast.literal_eval(value) for key, value in pairs})
    except (SyntaxError, TypeError, ValueError) as error:
        raise ValueError(
            f'--policy {" ".join(words)}: {error}; settings are given as KEY=VALUE, with a number '
            'or a list as the value'
        ) from error


def add_data_root_argument(parser: Any) -> None:
    """Adds ``--data-root`` to a tool's parser or a group of one."""
    parser.add_argument(
        '--data-root',
        metavar='FOLDER',
        help='where the data lie, in place of the folder that the config names for them',
    )


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what training and testing have in common."""
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
