"""Dense against learned and random sparsity on MiniScenes, over several seeds.

Trains `upernet_swin_mini` and, from it, `upernet_dynswin_mini_ft` once per seed; models
already trained in the work directory are used again. Writes mini_seeds.json (every row) and
mini_seeds.md (mean and spread) beside this file.
"""

import argparse
import platform
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

import torch

from mmdyn import cli
from mmdyn.analysis import comparison
from mmdyn.analysis.progress import Meter
from mmdyn.engine.config import load_config

DENSE, SPARSE = 'mmdyn::upernet_swin_mini.py', 'mmdyn::upernet_dynswin_mini_ft.py'
HERE = Path(__file__).parent


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line; ends the process with code 2 if it makes no sense."""
    parser = argparse.ArgumentParser(description=__doc__, epilog=cli.EPILOG)
    parser.add_argument(
        '--seeds', type=int, nargs='+', default=[0, 1, 2], help='(default: %(default)s)'
    )
    parser.add_argument(
        '--work-dir',
        type=Path,
        default=Path('work_dirs/mini_seeds'),
        help='folder for checkpoints (default: %(default)s)',
    )
    parser.add_argument(
        '--out', type=Path, default=HERE, help='folder for the results (default: beside this file)'
    )
    return parser.parse_args(argv)


def run_seed(work_dir: Path, seed: int, meter: Meter) -> tuple[list[comparison.Row], list[float]]:
    """Train both twins with a seed and compare them; also the seconds each training took."""
    lines = [
        comparison.Contender('dense'),
        *comparison.sparse_contenders(
            'sparse', 3, learned=(1.0, 0.9, 0.7, 0.5), random=(0.9, 0.7, 0.5)
        ),
    ]
    checkpoints, seconds = {}, []
    for config, name in ((DENSE, 'dense'), (SPARSE, 'sparse')):
        steps = load_config(config).train_cfg.max_iters
        start = time.monotonic()
        with meter.stage(f'seed {seed}: {name}', steps) as advance:
            checkpoints[name] = comparison.train(
                config,
                work_dir / f'{name}_{seed}',
                seed=seed,
                load_from=checkpoints.get('dense'),
                advance=advance,
            )
        seconds.append(time.monotonic() - start)
    with meter.stage(f'seed {seed}: evaluating', 93 * len(lines)) as advance:
        rows = comparison.compare(
            {
                name: comparison.Evaluator(config, checkpoints[name], work_dir / f'{name}_{seed}')
                for name, config in (('dense', DENSE), ('sparse', SPARSE))
            },
            lines,
            seed=seed,
            advance=advance,
        )
    return rows, seconds


def summarise(rows: Sequence[comparison.Row]) -> str:
    """Mean and standard deviation over seeds of every line, as a Markdown table."""
    groups: dict[tuple, list[comparison.Row]] = {}
    for row in rows:
        groups.setdefault((row.model, row.policy, row.keep_ratios), []).append(row)
    dense = {row.seed: row.miou for row in rows if row.model == 'dense'}
    table = [
        '| model | keep ratios | mIoU (%) | against dense | backbone GMACs | speed-up |',
        '| --- | --- | --- | --- | --- | --- |',
    ]
    for (model, policy, ratios), group in groups.items():
        gaps = [row.miou - dense[row.seed] for row in group]
        table.append(
            f'| {model}{"" if policy == "none" else ", " + policy} '
            f'| {", ".join(f"{r:g}" for r in ratios) or "-"} '
            f'| {spread([row.miou for row in group])} | {spread(gaps)} '
            f'| {group[0].backbone_gflops:.3f} '
            f'| {mean(row.speedup for row in group):.2f}x |'
        )
    return '\n'.join(table) + '\n'


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation, as text."""
    return f'{mean(values):.2f}' + (f' ± {stdev(values):.2f}' if len(values) > 1 else '')


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; returns the exit code."""
    args = parse_args(argv)
    warnings.simplefilter('ignore')  # of the libraries; they would tear the progress display
    rows, seconds = [], []
    costs = {}
    for seed in args.seeds:
        costs |= {
            f'seed {seed}: dense': 4,
            f'seed {seed}: sparse': 3,
            f'seed {seed}: evaluating': 1,
        }
    with Meter(costs) as meter:
        for seed in args.seeds:
            found, taken = run_seed(args.work_dir, seed, meter)
            rows += found
            seconds.append(taken)
            comparison.write_json([row.as_json() for row in rows], args.out / 'mini_seeds.json')

    def learned_minus_random(ratio: float) -> list[float]:
        by_policy = {
            policy: {
                r.seed: r.miou for r in rows if r.policy == policy and r.keep_ratios[0] == ratio
            }
            for policy in ('learned', 'random')
        }
        return [by_policy['learned'][s] - by_policy['random'][s] for s in args.seeds]

    times = '; '.join(f'{dense:.0f} s and {sparse:.0f} s' for dense, sparse in seconds)
    text = (
        '# MiniScenes over seeds\n\n'
        f'`python benchmarks/mini_seeds.py --seeds {" ".join(map(str, args.seeds))}`: one dense '
        'training and one dense-to-sparse fine-tuning per seed. Mean ± standard deviation over '
        "seeds; the speed-up is of the backbone at 128x128, batch 1, over the host's dense one, "
        f'on {platform.machine()} with {torch.get_num_threads()} threads, torch '
        f'{torch.__version__}.\n\n{summarise(rows)}\n'
        f'Learned minus random at 0.7: {spread(learned_minus_random(0.7))} mIoU. '
        f'Trainings took (dense and sparse): {times}.\n'
    )
    (args.out / 'mini_seeds.md').write_text(text)
    print(text)
    return 0


if __name__ == '__main__':
    sys.exit(main())
