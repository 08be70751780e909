"""Effect of each part of the training method on MiniScenes, over several seeds.

Trains `upernet_swin_mini` once per seed and, from it, `upernet_dynswin_mini_ft` in several
variants: with the keep-ratio loss only, with feature distillation, with logit distillation as well,
and with decisions that are not learned (random, and the same in every image). Models already
trained in the work directory are reused. Writes mini_ablation.json (every row) and mini_ablation.md
(mean and standard deviation over seeds).
"""

import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import common

from mmdyn import cli
from mmdyn.analysis.demo_models import train
from mmdyn.analysis.evaluating import ModelTester
from mmdyn.analysis.lines import DENSE as WHOLE
from mmdyn.analysis.lines import Line
from mmdyn.analysis.progress import Meter
from mmdyn.analysis.tables import to_markdown
from mmdyn.engine.config import load_config
from mmdyn.sparsity import RandomPolicy, StaticPolicy, TopKPolicy
from mmdyn.whole_files import write_json, write_text

DENSE, SPARSE = 'mmdyn::upernet_swin_mini.py', 'mmdyn::upernet_dynswin_mini_ft.py'
RATIOS = (0.7, 0.5, 0.3)


def decided_by(policy: str) -> dict:
    """Config overrides that train with one policy throughout."""
    phase = dict(begin=0, policy=dict(type=f'mmdyn.{policy}'))
    return {'custom_hooks': [dict(type='mmdyn.TrainingPolicyHook', phases=[phase])]}


# Config overrides of each variant, and its policy in tests.
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


POLICIES = {'learned': lambda seed: TopKPolicy(), 'random': RandomPolicy, 'static': StaticPolicy}


def settings_of(variant: str) -> list[tuple[str, tuple[float, ...]]]:
    """Ways to test a variant: as trained, with random selection, and with everything kept."""
    policies = dict.fromkeys((VARIANTS[variant][1], 'random'))
    return [*((policy, RATIOS) for policy in policies), ('learned', (1.0, 1.0, 1.0))]


def lines_of(models: Mapping[str, ModelTester], seed: int) -> list[Line]:
    """The dense model, and every variant in all ways."""
    found = [Line(WHOLE, models['dense'].loaded.model, of='dense')]
    for name in VARIANTS:
        model = models[name].loaded.model
        for kind, ratios in settings_of(name):
            found.append(Line(kind, model, ratios, POLICIES[kind](seed), of=name))
    return found


def run_seed(work_dir: Path, seed: int, meter: Meter, steps: dict[str, int]) -> list:
    """Train the dense model and every variant with a seed, and evaluate them."""
    checkpoints, models = {}, {}
    for name in ('dense', *VARIANTS):
        config, options = (SPARSE, VARIANTS[name][0]) if name in VARIANTS else (DENSE, {})
        folder = work_dir / f'{name.replace(" ", "_").replace("+_", "")}_{seed}'
        with meter.stage(f'seed {seed}: {name}', steps[name]) as advance:
            checkpoints[name] = train(
                config,
                folder,
                seed=seed,
                load_from=checkpoints.get('dense'),
                advance=advance,
                cfg_options=options,
            )
        models[name] = ModelTester(config, checkpoints[name], folder)
    with meter.stage(f'seed {seed}: evaluating', steps['evaluating']) as advance:
        lines = lines_of(models, seed)
        return common.trained_lines(models, lines, seed=seed, rounds=1, advance=advance)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Table of every variant's mIoU and its difference to the first variant's."""
    keys = ('model', 'policy', 'keep_ratios', 'seed')
    miou = {tuple(row[key] for key in keys): row['miou'] for row in rows}
    seeds = sorted({row['seed'] for row in rows})

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
    return to_markdown(headings, lines)


def report(rows: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> str:
    """The results as a page."""
    about = common.paragraph(
        f'`python benchmarks/mini_ablation.py --seeds {" ".join(map(str, seeds))}`, on MiniScenes: '
        'one dense training per seed, and from it one fine-tuning per variant, all of the same '
        'length. A line with + adds to the one above it. *Random* and *static selection* are '
        'controls: trained like *ratio loss*, but no scores choose the locations. mIoU in per '
        'cent, mean ± standard deviation over seeds; differences are taken seed by seed. '
        f'{common.where()}'
    )
    return f'# What does each part of the training buy?\n\n{about}\n\n{table(rows)}'


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    args = common.parse_seeds(common.seed_parser(__doc__, 'mini_ablation'), argv)
    warnings.filterwarnings('ignore')
    dense, sparse = load_config(DENSE), load_config(SPARSE)
    steps = {name: sparse.train_cfg.max_iters for name in VARIANTS}
    steps['dense'] = dense.train_cfg.max_iters
    steps['evaluating'] = (1 + sum(len(settings_of(name)) for name in VARIANTS)) * (
        sparse.test_dataloader.dataset.val + 4
    )
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
    write_json(args.out / 'mini_ablation.json', rows)
    page = report(rows, args.seeds)
    write_text(args.out / 'mini_ablation.md', page)
    print(page)
    return 0


if __name__ == '__main__':
    sys.exit(cli.run(main))
