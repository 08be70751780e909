"""Dense against learned and random sparsity on MiniScenes, over several seeds.

Trains `upernet_swin_mini` and, from it, `upernet_dynswin_mini_ft` once per seed, or the same with
another backbone; models already trained in the work directory are reused. Writes
mini_seeds_swin.json (every row) and mini_seeds_swin.md (mean and standard deviation over seeds).
"""

import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import common

from mmdyn import cli
from mmdyn.analysis.demo_models import train
from mmdyn.analysis.evaluating import ModelTester
from mmdyn.analysis.lines import lines_of
from mmdyn.analysis.progress import Meter
from mmdyn.analysis.rows import steps_of
from mmdyn.analysis.tables import to_markdown
from mmdyn.engine.config import load_config
from mmdyn.whole_files import write_json, write_text

ROUNDS = 30
BACKBONES = ('swin', 'convnext', 'vit')
# First keep ratios by model, without 1; a dense ConvNeXt is a sparse one with everything kept.
RATIOS = {'dense': (1.0,), 'sparse': (0.9, 0.7, 0.5)}


class Plan:
    """Configs, stages and steps of the benchmark.

    Args:
        backbone: one of :data:`BACKBONES`.
        seeds: of the trainings.
    """

    def __init__(self, backbone: str, seeds: Sequence[int]) -> None:
        self.configs = {
            'dense': f'mmdyn::upernet_{backbone}_mini.py',
            'sparse': f'mmdyn::upernet_dyn{backbone}_mini_ft.py',
        }
        loaded = {name: load_config(config) for name, config in self.configs.items()}
        self.steps = {name: cfg.train_cfg.max_iters for name, cfg in loaded.items()}
        lines = 1 + 1 + 2 * len(RATIOS['sparse'])
        scenes = loaded['sparse'].test_dataloader.dataset.val
        self.steps['evaluating'] = steps_of(lines, common.TIMED, ROUNDS, scenes)
        weights = {'dense': 1.0, 'sparse': 1.3, 'evaluating': 0.1}
        self.costs = {
            f'seed {seed}: {stage}': weights[stage] * steps
            for seed in seeds
            for stage, steps in self.steps.items()
        }

    def stage(self, meter: Meter, seed: int, name: str):
        """Enter a stage of the progress display."""
        return meter.stage(f'seed {seed}: {name}', self.steps[name])


def run_seed(
    work_dir: Path, seed: int, plan: Plan, meter: Meter
) -> tuple[list[dict[str, Any]], list[float]]:
    """Train both twins with a seed and compare them; also returns the seconds per training."""
    checkpoints, seconds = {}, []
    for name, config in plan.configs.items():
        start = time.monotonic()
        with plan.stage(meter, seed, name) as advance:
            checkpoints[name] = train(
                config,
                work_dir / f'{name}_{seed}',
                seed=seed,
                load_from=checkpoints.get('dense'),
                advance=advance,
            )
        seconds.append(time.monotonic() - start)
    models = {
        name: ModelTester(config, checkpoints[name], work_dir / f'{name}_{seed}')
        for name, config in plan.configs.items()
    }
    lines = []
    for name, model in models.items():
        ratios = RATIOS[name] if model.loaded.is_sparse else ()
        ladders = [model.loaded.ladder(ratio) for ratio in ratios]
        lines += lines_of(model.loaded, ladders, seed=seed, of=name)
    with plan.stage(meter, seed, 'evaluating') as advance:
        rows = common.trained_lines(models, lines, seed=seed, rounds=ROUNDS, advance=advance)
    return rows, seconds


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown table of mean and standard deviation over seeds for every line."""
    dense = {row['seed']: row['miou'] for row in rows if row['model'] == 'dense'}
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row['model'], row['policy'], row['keep_ratios']), []).append(row)
    lines = [
        (
            name if policy == 'none' else f'{name}, {policy}',
            ', '.join(f'{ratio:g}' for ratio in ratios) or '-',
            common.spread([row['miou'] for row in group]),
            common.spread([row['miou'] - dense[row['seed']] for row in group]),
            f'{group[0]["backbone_gflops"]:.3f}',
            f'{mean(row["speedup"] for row in group):.2f}x',
        )
        for (name, policy, ratios), group in groups.items()
    ]
    headings = ('model', 'keep ratios', 'mIoU (%)', 'against dense', 'GMACs', 'speed-up')
    return to_markdown(headings, lines)


def learned_minus_random(rows: Sequence[Mapping[str, Any]], ratio: float) -> list[float]:
    """Difference in mIoU at a first keep ratio, per seed."""
    rows = [r for r in rows if r['model'] == 'sparse' and r['keep_ratios'][0] == ratio]
    miou = {(row['policy'], row['seed']): row['miou'] for row in rows}
    seeds = sorted({row['seed'] for row in rows})
    return [miou['learned', seed] - miou['random', seed] for seed in seeds]


def report(backbone: str, rows: Sequence[Mapping[str, Any]], seconds: list[list[float]]) -> str:
    """Format the results as Markdown."""
    times = '; '.join(f'{dense:.0f} s and {sparse:.0f} s' for dense, sparse in seconds)
    differences = '; '.join(
        f'at {ratio:g}: {common.spread(learned_minus_random(rows, ratio))}' for ratio in (0.7, 0.5)
    )
    seeds = ' '.join(str(seed) for seed in sorted({row['seed'] for row in rows}))
    about = common.paragraph(
        f'`python benchmarks/mini_seeds.py --backbone {backbone} --seeds {seeds}`: one dense '
        'training per seed, and one fine-tuning that makes it sparse. Mean ± standard deviation '
        'over seeds; GMACs and speed-up are of the backbone at 128x128, batch 1, over the dense '
        f'one of the first line. {common.where()}'
    )
    return (
        f'# Every keep ratio on MiniScenes, over seeds: {backbone}\n\n{about}\n\n{table(rows)}\n'
        f'Learned minus random mIoU, {differences}.\n\n'
        f'Dense and sparse training took {times} (about 0 where models were reused).\n'
    )


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    parser = common.seed_parser(__doc__, 'mini_seeds')
    parser.add_argument(
        '--backbone', choices=BACKBONES, default='swin', help='(default: %(default)s)'
    )
    args = common.parse_seeds(parser, argv)
    warnings.simplefilter('ignore')  # of the libraries; they would break the progress display
    with cli.exit_on_bad_input():
        args.out.mkdir(parents=True, exist_ok=True)
        plan = Plan(args.backbone, args.seeds)
    rows, seconds = [], []
    page = args.out / f'mini_seeds_{args.backbone}.md'
    with Meter(plan.costs) as meter:
        for seed in args.seeds:
            found, taken = run_seed(args.work_dir / args.backbone, seed, plan, meter)
            rows += found
            seconds.append(taken)
            write_json(page.with_suffix('.json'), rows)
    text = report(args.backbone, rows, seconds)
    write_text(page, text)
    print(text)
    return 0


if __name__ == '__main__':
    sys.exit(cli.run(main))
