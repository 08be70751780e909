"""What the benchmarks have in common."""

import argparse
import json
import platform
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from mmdyn import cli
from mmdyn.analysis.evaluating import ModelTester
from mmdyn.analysis.lines import PARTS, Line
from mmdyn.analysis.rows import brief, sweep

HERE = Path(__file__).parent
TIMED = 8
"""Images to time on."""


def add_measuring_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds how long to measure."""
    parser.add_argument(
        '--rounds',
        type=int,
        default=7,
        help='timed calls of each contender, at least (default: %(default)s)',
    )
    parser.add_argument(
        '--min-seconds',
        type=float,
        default=20.0,
        metavar='S',
        help='go on with more rounds until so many seconds were measured for each group '
        '(default: %(default)s)',
    )
    parser.add_argument(
        '--quick',
        action='store_true',
        help='tiny models, small images, 2 rounds: shows that everything runs, its numbers mean '
        'nothing',
    )


def read_results(path: Path, here: Mapping[str, Any]) -> dict[str, Any]:
    """The results in a file, to add to.

    Args:
        path: of the file.
        here: what is to be added to it; its ``quick``, ``machine`` and ``versions`` must be the
            same.

    Raises:
        ValueError: if they are not.
    """
    there: dict[str, Any] = json.loads(path.read_text())
    for key in ('quick', 'machine', 'versions'):
        if there.get(key) != here[key]:
            raise ValueError(
                f'{path} has results of another {key} ({there.get(key)}; here {here[key]}): name '
                'another folder with --out, or remove the file'
            )
    return there


def seed_parser(description: str | None, name: str) -> argparse.ArgumentParser:
    """A parser of seeds and folders.

    Args:
        description: What the benchmark does.
        name: Its name, also of its folder under work_dirs.
    """
    parser = argparse.ArgumentParser(description=description, epilog=cli.EPILOG)
    parser.add_argument(
        '--seeds', type=int, nargs='+', default=[0, 1, 2], help='(default: %(default)s)'
    )
    parser.add_argument(
        '--work-dir',
        type=Path,
        default=Path('work_dirs') / name,
        help='folder for checkpoints (default: %(default)s)',
    )
    parser.add_argument(
        '--out', type=Path, default=HERE, help='folder for the results (default: beside this file)'
    )
    return parser


def parse_seeds(
    parser: argparse.ArgumentParser, argv: list[str] | None = None
) -> argparse.Namespace:
    """Parses a command line with :func:`seed_parser`'s arguments; ends with code 2 if it is wrong.

    Args:
        parser: With a benchmark's own arguments, if it has any.
        argv: The arguments; None for the command line's.
    """
    args = parser.parse_args(argv)
    if len(set(args.seeds)) < len(args.seeds):
        parser.error(f'--seeds: each may be given once, got {args.seeds}')
    return args


def trained_lines(
    models: Mapping[str, ModelTester],
    lines: Sequence[Line],
    *,
    seed: int,
    rounds: int,
    advance: Callable[[], Any],
) -> list[dict[str, Any]]:
    """Count, time and evaluate lines of trained models on their test set, the backbone alone."""
    testers = {id(tester.loaded.model): tester for tester in models.values()}
    batches = next(iter(models.values())).batches(min(rounds, TIMED))
    settings = dict(rounds=rounds, seed=seed, advance=advance)
    *_, rows = sweep(lines, testers, PARTS[0], batches, **settings)
    return [brief(row, seed) for row in rows]


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation, as text."""
    return f'{mean(values):.2f}' + (f' ± {stdev(values):.2f}' if len(values) > 1 else '')


def paragraph(text: str, first: str = '') -> str:
    """Text in lines of a Markdown page; ``first`` is what it starts with in a list, ``'- '``."""
    return textwrap.fill(
        text,
        120,
        initial_indent=first,
        subsequent_indent=' ' * len(first),
        break_long_words=False,
        break_on_hyphens=False,
    )


def where() -> str:
    """The machine and the versions behind a page's figures, as a sentence."""
    threads = torch.get_num_threads()
    return f'On {platform.machine()} with {threads} thread(s), torch {torch.__version__}.'


def shorter(config: Any, max_iters: int) -> dict[str, Any]:
    """Overrides that give a training another length, schedule and phases included.

    Args:
        config: the training's.
        max_iters: its length in iterations.
    """
    scale = max_iters / config.train_cfg.max_iters
    *first, last = (dict(scheduler) for scheduler in config.param_scheduler)
    options = {
        'train_cfg.max_iters': max_iters,
        'train_cfg.val_interval': max_iters,
        'default_hooks.checkpoint.interval': max_iters,
        'param_scheduler': [*first, {**last, 'end': max_iters}],
    }
    hooks = [hook.to_dict() for hook in config.get('custom_hooks', [])]
    for hook in hooks:
        for phase in hook.get('phases', []):
            phase['begin'] = round(phase['begin'] * scale)
    return options | ({'custom_hooks': hooks} if hooks else {})
