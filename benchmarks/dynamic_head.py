"""What a head that is exact on chosen tiles only gives up, over several seeds.

Trains the dense twin (mmseg's UPerHead) and variants of mmdyn.DynamicUPerHead by one recipe, and
tests each with learned tiles, with random ones of the same weights, and with none or all of them.
Reports mIoU, boundary F-score, and the head's multiply-adds. Models already trained in the work
directory are used again; results of seeds measured before are kept. Writes
dynamic_head_DATA.json and dynamic_head_DATA.md.
"""

import json
import platform
import sys
import warnings
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

import common
import torch
from torch import nn

from mmdyn import cli
from mmdyn.analysis import comparison
from mmdyn.analysis.complexity import count_executed
from mmdyn.analysis.progress import Meter
from mmdyn.engine.config import load_config
from mmdyn.sparsity import RandomPolicy, TopKPolicy

DENSE = {'mini': 'mmdyn::upernet_swin_mini_pyramid.py', 'camvid': 'mmdyn::upernet_swin_camvid.py'}
DYNAMIC = {'mini': 'mmdyn::upernet_dynhead_mini.py', 'camvid': 'mmdyn::upernet_dynhead_camvid.py'}
METRICS = [dict(type='IoUMetric', iou_metrics=['mIoU']), dict(type='mmdyn.BoundaryFScore')]

# Name of a variant: what it changes in the head.
VARIANTS: dict[str, dict[str, Any]] = {
    'as configured': {},
    'ratio 0.125': dict(tile_ratio=0.125),
    'ratio 0.25': dict(tile_ratio=0.25),
    'ratio 0.5': dict(tile_ratio=0.5),
    'tiles twice as large': dict(tile_size=2),  # times the config's
    'coarse pass at 16': dict(coarse_stride=16),
    'static coarse head, 8': dict(tile_ratio=0.0, coarse_stride=8),
    'static coarse head, 16': dict(tile_ratio=0.0, coarse_stride=16),
    'no distillation': dict(distill_loss=None),
}
MAIN = ('as configured', 'static coarse head, 8', 'static coarse head, 16')


def parse_args(argv: list[str] | None = None):
    """Parses the command line; ends the process with code 2 if it makes no sense."""
    parser = common.seed_parser(__doc__, 'dynamic_head')
    parser.add_argument('--data', choices=tuple(DENSE), default='mini', help='(default: mini)')
    parser.add_argument(
        '--variants',
        nargs='+',
        choices=tuple(VARIANTS),
        default=MAIN,
        metavar='NAME',
        help=f'of {", ".join(map(repr, VARIANTS))} (default: {", ".join(map(repr, MAIN))})',
    )
    parser.add_argument(
        '--max-iters', type=int, help="length of every training (default: the config's)"
    )
    return common.parse_seeds(parser, argv)


def options_of(data: str, variant: str | None, max_iters: int | None) -> dict[str, Any]:
    """Config overrides of a variant; None is the dense twin."""
    config = load_config(DENSE[data] if variant is None else DYNAMIC[data])
    options: dict[str, Any] = {}
    for key, value in VARIANTS.get(variant or '', {}).items():
        if key == 'tile_size':
            value *= config.model.decode_head.tile_size
        options[f'model.decode_head.{key}'] = value
    if max_iters is not None:
        scale = max_iters / config.train_cfg.max_iters
        options['train_cfg.max_iters'] = options['train_cfg.val_interval'] = max_iters
        options['default_hooks.checkpoint.interval'] = max_iters
        options['param_scheduler'] = shortened(config.param_scheduler, max_iters)
        if variant is not None:
            hooks = [hook.to_dict() for hook in config.custom_hooks]
            for phase in hooks[0]['phases']:
                phase['begin'] = round(phase['begin'] * scale)
            options['custom_hooks'] = hooks
    return options


def shortened(schedulers: Sequence[Mapping[str, Any]], max_iters: int) -> list[dict[str, Any]]:
    """The schedulers of a training, the last of which ends with it."""
    *first, last = (dict(scheduler) for scheduler in schedulers)
    return [*first, {**last, 'end': max_iters}]


def uncertain_only(head: nn.Module) -> Any:
    """Have a head pick the tiles of the least certain coarse prediction; returns a way back."""
    predictor = head.predictors[0]
    scores, weight = predictor.scores.forward, predictor.uncertainty_weight.detach().clone()
    predictor.scores.forward = lambda x, mask: x.new_zeros(*x.shape[:2], 2)
    predictor.uncertainty_weight.data.fill_(1.0)

    def undo() -> None:
        predictor.scores.forward = scores
        predictor.uncertainty_weight.data.copy_(weight)

    return undo


def lines_of(head: nn.Module, seed: int) -> list[tuple[str, float, Any]]:
    """How a head is tested: a name, a fraction of tiles, and a function that sets the rest."""

    def policy(kind: Any) -> Any:
        def use() -> Any:
            head.policy = kind
            return lambda: None

        return use

    def most_uncertain() -> Any:
        head.policy = TopKPolicy()
        return uncertain_only(head)

    learned, own = policy(TopKPolicy()), getattr(head, 'tile_ratio', None)
    if own is None:
        return [('dense', 1.0, lambda: lambda: None)]
    if own == 0:
        return [('coarse', 0.0, learned)]
    return [
        ('learned', own, learned),
        ('random', own, policy(RandomPolicy(seed))),
        ('most uncertain', own, most_uncertain),
        ('coarse', 0.0, learned),
        ('all', 1.0, learned),
    ]


def test(
    name: str, seed: int, max_iters: int, evaluator: comparison.Evaluator, advance: Any
) -> list[dict]:
    """One row for each way a model is tested."""
    model, rows = evaluator.model, []
    head = model.decode_head
    image, sample = evaluator.images(1)[0]
    for line, ratio, prepare in lines_of(head, seed):
        if hasattr(head, 'set_tile_ratio'):
            head.set_tile_ratio(ratio)
        undo = prepare()
        metrics, _ = evaluator.evaluate(advance)
        count, _ = count_executed(lambda: model.predict(image, [sample]), model)
        groups = count.by_group()
        undo()
        rows.append(
            dict(
                model=name,
                tiles=line,
                tile_ratio=ratio,
                seed=seed,
                max_iters=max_iters,
                miou=round(float(metrics['mIoU']), 2),
                boundary_f=round(float(metrics['mBF']), 2),
                head_gmacs=round((groups.total() - groups['backbone']) / 1e9, 4),
            )
        )
    return rows


def run_seed(args: Any, seed: int, meter: Meter, steps: Mapping[str, int]) -> list[dict]:
    """Train the dense twin and the variants with a seed, and test them."""
    rows = []
    for name in ('dense', *args.variants):
        variant = None if name == 'dense' else name
        config = DENSE[args.data] if variant is None else DYNAMIC[args.data]
        options = options_of(args.data, variant, args.max_iters)
        folder = args.work_dir / args.data / f'{name.replace(" ", "_").replace(",", "")}_{seed}'
        with meter.stage(f'seed {seed}: {name}', steps[name]) as advance:
            checkpoint = comparison.train(
                config, folder, seed=seed, advance=advance, cfg_options=options
            )
            options = {**options, 'test_evaluator': METRICS}
            evaluator = comparison.Evaluator(config, checkpoint, folder, options)
            rows += test(name, seed, steps[name], evaluator, advance)
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Mean and standard deviation over seeds, and the difference to the dense twin's."""
    dense = {row['seed']: row for row in rows if row['model'] == 'dense'}
    groups: dict[tuple, list] = {}
    for row in rows:
        groups.setdefault((row['model'], row['tiles'], row['tile_ratio']), []).append(row)
    lines = []
    for (model, tiles, ratio), group in groups.items():
        lines.append((model, tiles, f'{ratio:g}', f'{mean(r["head_gmacs"] for r in group):.3f}'))
        for key in ('miou', 'boundary_f'):
            lines[-1] += (
                common.spread([row[key] for row in group]),
                '-'
                if model == 'dense'
                else common.spread([row[key] - dense[row['seed']][key] for row in group]),
            )
    headings = ('head', 'tiles', 'fraction', "head's GMACs", 'mIoU', '-', 'boundary F', '-')
    return comparison.to_markdown(headings, lines)


def identity(row: Mapping[str, Any]) -> tuple:
    """Which training a row is about."""
    return row['model'], row['seed'], row['max_iters']


def report(args: Any, rows: Sequence[Mapping[str, Any]]) -> str:
    """The results as a page."""
    seeds = ' '.join(str(seed) for seed in sorted({row['seed'] for row in rows}))
    more = '' if args.max_iters is None else f' --max-iters {args.max_iters}'
    variants = dict.fromkeys(row['model'] for row in rows if row['model'] != 'dense')
    if tuple(variants) != MAIN:
        more += ' --variants ' + ' '.join(f"'{name}'" for name in variants)
    return (
        f'# A head that is exact on chosen tiles only: {args.data}\n\n'
        f'`python benchmarks/dynamic_head.py --data {args.data} --seeds {seeds}{more}`: one '
        'training per seed and head, all by one recipe. In per cent, mean ± standard deviation '
        'over seeds; beside it (-) the difference to the dense twin of the same seed. *Most '
        'uncertain*, *random*, *coarse* (no tiles) and *all* are the same weights tested '
        f'otherwise. On {platform.machine()} with {torch.get_num_threads()} thread(s), torch '
        f'{torch.__version__}.\n\n{table(rows)}'
    )


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; returns the exit code."""
    args = parse_args(argv)
    warnings.filterwarnings('ignore')  # of the libraries; they would tear the progress display
    with cli.exit_on_bad_input():
        config = load_config(DYNAMIC[args.data])
        args.out.mkdir(parents=True, exist_ok=True)
        path = args.out / f'dynamic_head_{args.data}.json'
        done = json.loads(path.read_text()) if path.exists() else []
    steps = dict.fromkeys(('dense', *args.variants), args.max_iters or config.train_cfg.max_iters)
    costs = {f'seed {seed}: {name}': steps[name] for seed in args.seeds for name in steps}
    with Meter(costs) as meter:
        for seed in args.seeds:
            rows = run_seed(args, seed, meter, steps)
            new = {identity(row) for row in rows}
            done = [row for row in done if identity(row) not in new] + rows
            comparison.write_json(done, path)
    page = report(args, [row for row in done if row['max_iters'] == steps['dense']])
    path.with_suffix('.md').write_text(page)
    print(page)
    return 0


if __name__ == '__main__':
    sys.exit(main())
