"""What the benchmarks over several seeds have in common."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from mmdyn import cli

HERE = Path(__file__).parent


def parse_seed_args(
    description: str | None, name: str, argv: list[str] | None = None
) -> argparse.Namespace:
    """Parses a command line of seeds and folders; ends the process with code 2 if it is wrong.

    Args:
        description: What the benchmark does.
        name: Its name, also of its folder under work_dirs.
        argv: The arguments; None for the command line's.
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
    args = parser.parse_args(argv)
    if len(set(args.seeds)) < len(args.seeds):
        parser.error(f'--seeds: each may be given once, got {args.seeds}')
    return args


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation, as text."""
    return f'{mean(values):.2f}' + (f' ± {stdev(values):.2f}' if len(values) > 1 else '')
