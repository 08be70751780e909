"""What each part of the training method buys on MiniScenes, over several seeds.

Trains `upernet_swin_mini` once per seed and, from it, `upernet_dynswin_mini_ft` in several
variants: the keep-ratio loss alone, with feature distillation, with logit distillation too, and
with decisions that learn nothing (random, and the same in every image). Models already trained
in the work directory are used again. Writes mini_ablation.json (every row) and
mini_ablation.md (mean and standard deviation over seeds).
"""

import platform
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import common
import torch

from mmdyn import cli
from mmdyn.analysis import comparison
from mmdyn.analysis.progress import Meter
from mmdyn.engine.config import load_config
from mmdyn.whole_files import write_text

DENSE, SPARSE = 'mmdyn::upernet_swin_mini.py', 'mmdyn::upernet_dynswin_mini_ft.py'
RATIOS = (0.7, 0.5, 0.3)


def decided_by(policy: str) -> dict:
    """Config overrides that train on one policy's decisions throughout."""
    phase = dict(begin=0, policy=dict(type=f'mmdyn.{policy}'))
    return {'custom_hooks': [dict(type='mmdyn.TrainingPolicyHook', phases=[phase])]}


# Name of a variant: what it changes in the config, and how it decides when tested.
VARIANTS = {
    'ratio loss': ({'model.teacher': None}, 'learned'),
    '+ feature distillation': (
        {'model.teacher': 'self', 'model.logit_distill_loss': None},
        'learned',
    ),
    '+ logit distillation': ({'model.teacher': 'self'}, 'learned'),
    'random selection': ({'model.teacher': None, **decided_by('RandomPolicy')}, 'random'),
    'static selection': ({'model.teacher': None, **decided_by('StaticPolicy')}, 'static'),
}


def lines_of(variant: str) -> list[comparison.Contender]:
    """How a variant is tested: as it was trained, with a random choice, and kept whole."""
    policy = VARIANTS[variant][1]
    others = [] if policy == 'random' else [comparison.Contender(variant, 'random', RATIOS)]
    return [
        comparison.Contender(variant, policy, RATIOS),
        *others,
        comparison.Contender(variant, 'learned', (1.0, 1.0, 1.0)),
    ]


LINES = [comparison.Contender('dense'), *(line for name in VARIANTS for line in lines_of(name))]


def run_seed(work_dir: Path, seed: int, meter: Meter, steps: dict[str, int]) -> list:
    """Train the dense model and every variant with a seed; evaluate them."""
    checkpoints, models = {}, {}
    for name in ('dense', *VARIANTS):
        config, options = (SPARSE, VARIANTS[name][0]) if name in VARIANTS else (DENSE, {})
        folder = work_dir / f'{name.replace(" ", "_").replace("+_", "")}_{seed}'
        with meter.stage(f'seed {seed}: {name}', steps[name]) as advance:
            checkpoints[name] = comparison.train(
                config,
                folder,
                seed=seed,
                load_from=checkpoints.get('dense'),
                advance=advance,
                cfg_options=options,
            )
        models[name] = comparison.Evaluator(config, checkpoints[name], folder)
    with meter.stage(f'seed {seed}: evaluating', steps['evaluating']) as advance:
        return comparison.compare(models, LINES, seed=seed, rounds=1, advance=advance)


def table(rows: Sequence[comparison.Row]) -> str:
    """Every variant's mIoU and its difference to the first variant's, seed by seed."""
    miou = {(r.model, r.policy, r.keep_ratios, r.seed): r.miou for r in rows}
    seeds = sorted({row.seed for row in rows})

    def of(name: str, policy: str, ratios: tuple[float, ...]) -> list[float]:
        return [miou[name, policy, ratios, seed] for seed in seeds]

    first = of('ratio loss', 'learned', RATIOS)
    lines = [('dense', '-', common.spread(of('dense', 'none', ())), '-', '-', '-')]
    for name, (_, policy) in VARIANTS.items():
        own = of(name, policy, RATIOS)
        lines.append(
            (
                name,
                policy,
                common.spread(of(name, 'learned', (1.0, 1.0, 1.0))),
                common.spread(own),
                '-'
                if name == 'ratio loss'
                else common.spread([a - b for a, b in zip(own, first, strict=True)]),
                common.spread(of(name, 'random', RATIOS)),
            )
        )
    headings = (
        'trained with',
        'tested with',
        'mIoU at ratio 1',
        'at 0.7, 0.5, 0.3',
        'against ratio loss alone',
        'the same weights, random choice',
    )
    return comparison.to_markdown(headings, lines)


def report(rows: Sequence[comparison.Row], seeds: Sequence[int]) -> str:
    """The results as a page."""
    return (
        '# What each part of the training buys on MiniScenes\n\n'
        f'`python benchmarks/mini_ablation.py --seeds {" ".join(map(str, seeds))}`: one dense '
        'training per seed, and from it one fine-tuning per variant, all of the same length. mIoU '
        'in per cent, mean ± standard deviation over seeds; differences are taken seed by seed. On '
        f'{platform.machine()} with {torch.get_num_threads()} thread(s), torch '
        f'{torch.__version__}.\n\n{table(rows)}'
    )


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; returns the exit code."""
    args = common.parse_seeds(common.seed_parser(__doc__, 'mini_ablation'), argv)
    warnings.filterwarnings('ignore')
    dense, sparse = load_config(DENSE), load_config(SPARSE)
    steps = {name: sparse.train_cfg.max_iters for name in VARIANTS}
    steps['dense'] = dense.train_cfg.max_iters
    steps['evaluating'] = len(LINES) * (sparse.test_dataloader.dataset.val + 4)
    costs = {
        f'seed {seed}: {name}': number * (0.1 if name == 'evaluating' else 1.0)
        for seed in args.seeds
        for name, number in steps.items()
    }
    rows = []
    with cli.exit_on_bad_input(), Meter(costs) as meter:
        for seed in args.seeds:
            rows += run_seed(args.work_dir, seed, meter, steps)
    args.out.mkdir(parents=True, exist_ok=True)
    comparison.write_json([row.as_json() for row in rows], args.out / 'mini_ablation.json')
    page = report(rows, args.seeds)
    write_text(args.out / 'mini_ablation.md', page)
    print(page)
    return 0


if __name__ == '__main__':
    sys.exit(cli.run(main))
