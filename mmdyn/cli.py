"""What the command-line tools share: arguments, exit codes, the end of a process.

Imports no torch, so that ``--help`` and a mistyped option answer at once.
"""

import argparse
import ast
import contextlib
import gc
import os
import sys
import traceback
from collections.abc import Iterator
from typing import Any

from mmengine.config import DictAction

BAD_INPUT = 2
"""Exit code: the user can put it right. (1 is a failure of ours, with a traceback.)"""

TRACEBACK = 'MMDYN_TRACEBACK'
"""Environment variable: set to 1, bad input ends in a traceback instead of one message."""

EPILOG = (
    'Exit codes: 0 done, 2 bad usage or bad input (one message), 1 a failure of ours. '
    f'{TRACEBACK}=1 shows where bad input was noticed.'
)

# The hosts check what a config gives them with `assert`.
_USER_ERRORS = (ValueError, TypeError, KeyError, OSError, ImportError, AssertionError)


@contextlib.contextmanager
def exit_on_bad_input() -> Iterator[None]:
    """Turns the errors of the preparation into one message on stderr and exit code 2.

    ValueError, TypeError, KeyError, OSError (a missing file) and ImportError (a
    missing package) count as the user's; everything else propagates. In a
    distributed run the first process alone prints. To be put around the
    preparation only: such an error in a training that runs is a failure of ours.

    Raises:
        SystemExit: With code 2, in place of those errors.
    """
    try:
        yield
    except _USER_ERRORS as error:
        if os.environ.get(TRACEBACK, '0') not in ('', '0'):
            raise
        if _is_first_process():
            print(f'error: {_message(error)}', file=sys.stderr, flush=True)
        raise SystemExit(BAD_INPUT) from None


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Closes the process group of a distributed run when the block ends, however it ends."""
    try:
        yield
    except BaseException:
        _leave_process_group(wait=False)  # the other processes may never come to a barrier
        raise
    _leave_process_group(wait=True)


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
        help='read checkpoint files that hold more than data; reading such a file runs code it '
        'brings, so only for files whose source you trust',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='override settings of the config, for example train_dataloader.batch_size=4 '
        'model.backbone.keep_ratios=0.9,0.8,0.7; lists as key=1,2,3 or key="[1,2,3]", nested '
        'ones as key="[(1,2),(3,4)]", quoted and without blanks',
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
    from mmdyn.models.policies import POLICIES, build_policy

    name, *settings = words
    known = sorted(policy.__name__ for policy in POLICIES if policy.__name__ != 'FixedPolicy')
    if name not in known:
        raise ValueError(f'--policy: {name!r} is none of {", ".join(known)}')
    arguments = {}
    for setting in settings:
        key, equals, value = setting.partition('=')
        if not equals:
            raise ValueError(f'--policy: settings are given as KEY=VALUE, got {setting!r}')
        try:
            arguments[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            raise ValueError(f'--policy: {value!r} of {setting} is no number or list') from None
    return build_policy(dict(type=f'mmdyn.{name}', **arguments))


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
        local_rank: The value of ``--local_rank``.
    """
    os.environ.setdefault('LOCAL_RANK', str(local_rank))


def _is_first_process() -> bool:
    # From the launcher's environment: there may be no process group yet.
    ranks = ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK')
    return next((os.environ[name] for name in ranks if name in os.environ), '0') == '0'


def _message(error: BaseException) -> str:
    # str() of a KeyError is the repr of its message.
    if isinstance(error, KeyError) and error.args:
        return str(error.args[0])
    if isinstance(error, AssertionError) and not str(error):
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f'the config was refused at {place.filename}:{place.lineno}: {place.line}'
    return str(error) or type(error).__name__
