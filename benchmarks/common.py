"""Shared by the benchmarks."""

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
"""Number of images to time on."""


def add_measuring_arguments(parser: argparse.ArgumentParser) -> None:
    """Add options for the length of measurements."""
    parser.add_argument(
        '--rounds',
        type=int,
        default=7,
        help='minimum number of timed calls of each contender (default: %(default)s)',
    )
    parser.add_argument(
        '--min-seconds',
        type=float,
        default=20.0,
        metavar='S',
        help='run further rounds until each group was timed for S seconds (default: %(default)s)',
    )
    parser.add_argument(
        '--quick',
        action='store_true',
        help='tiny models, small images, 2 rounds: a smoke test, its numbers mean nothing',
    )


def read_results(path: Path, here: Mapping[str, Any]) -> dict[str, Any]:
    """Read earlier results, to which new ones are added.

    Args:
        path: of the file.
        here: the new results; ``quick``, ``machine`` and ``versions`` must match.

    Raises:
        ValueError: if they don't.
    """
    there: dict[str, Any] = json.loads(path.read_text())
    for key in ('quick', 'machine', 'versions'):
        if there.get(key) != here[key]:
            raise ValueError(
                f'{path} has results with another {key} ({there.get(key)}; here {here[key]}): use '
                'another folder with --out, or remove the file'
            )
    return there


def seed_parser(description: str | None, name: str) -> argparse.ArgumentParser:
    """Parser for seeds and folders.

    Args:
        description: of the benchmark.
        name: of the benchmark and its folder in work_dirs.
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
        '--out', type=Path, default=HERE, help="folder for the results (default: this file's)"
    )
    return parser


def parse_seeds(
    parser: argparse.ArgumentParser, argv: list[str] | None = None
) -> argparse.Namespace:
    """Parse a command line with the arguments of :func:`seed_parser`.

    Args:
        parser: may have further arguments.
        argv: the arguments; None = from the command line.
    """
    args = parser.parse_args(argv)
    if len(set(args.seeds)) < len(args.seeds):
        parser.error(f'--seeds: must be unique, got {args.seeds}')
    return args


def trained_lines(
    models: Mapping[str, ModelTester],
    lines: Sequence[Line],
    *,
    seed: int,
    rounds: int,
    advance: Callable[[], Any],
) -> list[dict[str, Any]]:
    """Count, time and evaluate lines of trained models; cost is that of the backbone."""
    testers = {id(tester.loaded.model): tester for tester in models.values()}
    batches = next(iter(models.values())).batches(min(rounds, TIMED))
    settings = dict(rounds=rounds, seed=seed, advance=advance)
    *_, rows = sweep(lines, testers, PARTS[0], batches, **settings)
    return [brief(row, seed) for row in rows]


def spread(values: Sequence[float]) -> str:
    """Format mean and standard deviation."""
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
    """Config overrides that change the length of a training, with its schedule and phases.

    Args:
        config: of the training.
        max_iters: new length in iterations.
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
