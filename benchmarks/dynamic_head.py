"""Accuracy of a head that is exact on chosen tiles only, over several seeds.

Trains dense twins (mmseg's UPerHead), adds a coarse pass to each in several variants, and tests
these with learned tiles, random ones, those with the lowest scores, those with most of the rare
classes by the labels, tiles by uncertainty only, without halos, and without tiles. Reports mIoU,
boundary F-score, the head's multiply-adds and, with --time, the milliseconds of the whole model,
prepared for inference. Models already trained in the work directory are reused; earlier
results are kept. Writes dynamic_head_DATA.json and dynamic_head_DATA.md.
"""

import json
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple
from unittest import mock

import common
from choice_controls import InvertedPolicy, OraclePolicy, inverse_frequencies, labels_of
from torch import Tensor, nn

from mmdyn import cli, prepare_for_inference
from mmdyn.analysis.counting import count_executed
from mmdyn.analysis.demo_models import train
from mmdyn.analysis.evaluating import ModelTester
from mmdyn.analysis.images import HostBatch
from mmdyn.analysis.measuring import measure_latency
from mmdyn.analysis.progress import Meter
from mmdyn.analysis.tables import to_markdown
from mmdyn.engine.config import load_config
from mmdyn.sparsity import Policy, RandomPolicy, TopKPolicy
from mmdyn.sparsity.tiles import TileGrid
from mmdyn.whole_files import write_json, write_text

DENSE = {
    'mini': 'mmdyn::upernet_swin_mini_pyramid.py',
    'camvid': 'mmdyn::upernet_swin_camvid_half.py',
    'nuclei': 'mmdyn::upernet_swin_nuclei.py',
}
DYNAMIC = {name: config.replace('_swin_', '_dynhead_') for name, config in DENSE.items()}
DYNAMIC['mini'] = 'mmdyn::upernet_dynhead_mini.py'
METRICS = [dict(type='IoUMetric', iou_metrics=['mIoU']), dict(type='mmdyn.BoundaryFScore')]

# Trains everything, pretrained parameters slowly. (A static head has no dense result to keep.)
WHOLE = {'model.decode_head.freeze_dense': False, 'model.backbone.frozen_stages': -1}
STATIC = {**WHOLE, 'model.decode_head.tile_ratio': 0.0}
_RANDOM = dict(begin=0, policy=dict(type='mmdyn.RandomPolicy', seed=0))
RANDOM = [dict(type='mmdyn.TrainingPolicyHook', phases=[_RANDOM])]
# Changes to the config by name of the variant.
VARIANTS: dict[str, dict[str, Any]] = {
    'as configured': {},
    'as a whole': WHOLE,
    'as a whole, random tiles': {**WHOLE, 'custom_hooks': RANDOM},
    'as a whole, stride 8': {**WHOLE, 'model.decode_head.coarse_stride': 8},
    'as a whole, 8 in 16': {
        **WHOLE,
        'model.decode_head.fine_stride': 8,
        'model.decode_head.tile_size': 4,
    },
    'as a whole, 8 in 32': {
        **WHOLE,
        'model.decode_head.fine_stride': 8,
        'model.decode_head.coarse_stride': 32,
        'model.decode_head.tile_size': 4,
    },
    'stride 8': {'model.decode_head.coarse_stride': 8},
    'static, stride 8': {**STATIC, 'model.decode_head.coarse_stride': 8},
    'static, stride 16': {**STATIC, 'model.decode_head.coarse_stride': 16},
    'tiles of 16': {'model.decode_head.tile_size': 16},
    'tiles of 32': {'model.decode_head.tile_size': 32},
    'no distillation': {'model.decode_head.distill_loss': None},
}
MAIN = ('as configured', 'as a whole', 'static, stride 8')


def parse_args(argv: list[str] | None = None):
    """Parse the command line; exits with code 2 on a usage error."""
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
        '--ratios',
        type=float,
        nargs='+',
        default=[],
        help='also test these fractions of tiles, with learned and random selection',
    )
    parser.add_argument(
        '--dense-iters', type=int, help="length of a dense training (default: the config's)"
    )
    parser.add_argument('--data-root', metavar='FOLDER', help="the data, instead of the config's")
    parser.add_argument(
        '--dense',
        type=Path,
        metavar='FOLDER',
        help='take dense models from here, seed_N/dense as of benchmarks/choice.py',
    )
    parser.add_argument(
        '--time',
        action='store_true',
        help='instead time what was tested before; nothing else should run',
    )
    parser.add_argument('--iters', type=int, help="length of the others (default: the config's)")
    return common.parse_seeds(parser, argv)


def options_of(data: str, variant: str | None, max_iters: int | None) -> dict[str, Any]:
    """Config overrides of a variant; None = the dense twin."""
    config = load_config(DENSE[data] if variant is None else DYNAMIC[data])
    options = dict(VARIANTS.get(variant or '', {}))
    return options if max_iters is None else common.shorter(config, max_iters) | options


class Line(NamedTuple):
    """A way to test a head.

    Attributes:
        tiles: how they are selected.
        ratio: fraction of tiles.
        policy: for tiles.
        changed: context that modifies the head.
    """

    tiles: str
    ratio: float
    policy: Policy | None = None
    changed: Callable[[nn.Module], AbstractContextManager] = nullcontext


@contextmanager
def uncertain_only(head: nn.Module) -> Iterator[None]:
    """Select the tiles with the most uncertain coarse prediction."""
    predictor = head.predictors[0]
    weight = predictor.uncertainty_weight.detach().clone()

    def no_scores(x: Tensor, mask: Tensor | None) -> Tensor:
        return x.new_zeros(*x.shape[:2], 2)

    with mock.patch.object(predictor.scores, 'forward', no_scores):
        predictor.uncertainty_weight.data.fill_(1.0)
        yield
    predictor.uncertainty_weight.data.copy_(weight)


@contextmanager
def without_halos(head: nn.Module) -> Iterator[None]:
    """Compute tiles without halos, with zero padding."""

    def refine(logits, maps, shared, grid, chosen):
        def cut(x: Tensor, level: int) -> Tensor:
            windows = TileGrid(tuple(x.shape[-2:]), max(grid.tile >> level, 1)).windows(chosen)
            return windows.take(x)

        inside = [cut(x, i) for i, x in enumerate(maps)]
        levels = [{i: cut(x, i) for i, x in level.items()} for level in shared]
        tiles = head.dense(inside, type(shared)(*levels))
        out = grid.put(logits.permute(0, 2, 3, 1), chosen, tiles.permute(0, 2, 3, 1))
        return out.permute(0, 3, 1, 2)

    with mock.patch.object(head, 'refine', refine):
        yield


def lines_of(
    head: nn.Module, seed: int, oracle: Policy, ratios: Sequence[float] = ()
) -> list[Line]:
    """Ways to test a head.

    Args:
        head: the host's or ours.
        seed: of random selection.
        oracle: selects by the labels.
        ratios: further fractions of tiles.
    """
    own = getattr(head, 'tile_ratio', None)
    if own is None:
        return [Line('dense', 1.0)]
    learned = TopKPolicy()
    if own == 0:
        return [Line('none', 0.0, learned)]
    lines = [
        Line('most uncertain', own, learned, uncertain_only),
        Line('learned, no halos', own, learned, without_halos),
        Line('none', 0.0, learned),
        Line('all', 1.0, learned),
    ]
    for ratio in dict.fromkeys((own, *ratios)):
        policies = dict(learned=learned, random=RandomPolicy(seed), labels=oracle)
        policies['lowest scores'] = InvertedPolicy()
        lines += [Line(name, ratio, policy) for name, policy in policies.items()]
    return lines


def test(evaluator: ModelTester, args: Any, seed: int, advance: Any) -> list[dict]:
    """Test a model in all ways; returns one row for each."""
    model, rows = evaluator.loaded.model, []
    head = model.decode_head
    batch = evaluator.batch(0)
    oracle = OraclePolicy(class_weights(evaluator))
    oracle.watch(model)
    for line in lines_of(head, seed, oracle, args.ratios):
        use(head, line)
        with line.changed(head):
            metrics = evaluator.evaluate(advance).metrics
            count, _ = count_executed(lambda: model.predict(batch.inputs, batch.samples()), model)
        groups = count.by_group()
        rows.append(
            dict(
                tiles=line.tiles,
                tile_ratio=line.ratio,
                miou=round(float(metrics['mIoU']), 2),
                boundary_f=round(float(metrics['mBF']), 2),
                head_gmacs=round((groups.total() - groups['backbone']) / 1e9, 4),
            )
        )
    return rows


def use(head: nn.Module, line: Line) -> None:
    """Set a head's fraction of tiles and policy."""
    if line.policy is not None:
        head.set_tile_ratio(line.ratio)
        head.policy = line.policy


def class_weights(evaluator: ModelTester) -> list[float]:
    """Inverse frequencies of the classes in the first hundred test images."""
    data = evaluator.dataset
    labels = [labels_of(data[index]['data_samples']) for index in range(min(100, len(data)))]
    return inverse_frequencies(labels, len(data.metainfo['classes']))


def folder_of(args: Any, name: str, seed: int) -> Path:
    """Folder of a training."""
    return args.work_dir / args.data / f'{name.replace(" ", "_").replace(",", "")}_{seed}'


def trained(args: Any, name: str, seed: int, advance: Any = lambda: None) -> ModelTester:
    """A model, trained unless already done, with its test set.

    Args:
        args: of the command line.
        name: ``'dense'`` or a variant.
        seed: of the training and its dense twin.
        advance: called after every iteration.
    """
    variant = None if name == 'dense' else name
    config = DENSE[args.data] if variant is None else DYNAMIC[args.data]
    folder = folder_of(args, name, seed)
    options = options_of(args.data, variant, args.iters if variant else args.dense_iters)
    dense = folder_of(args, 'dense', seed)
    if args.dense is not None:
        dense = args.dense / f'seed_{seed}' / 'dense'
    dense_iters = args.dense_iters or load_config(DENSE[args.data]).train_cfg.max_iters
    start = str(dense / f'iter_{dense_iters}.pth')
    if variant is None and args.dense is not None:
        checkpoint = start
    else:
        settings = dict(seed=seed, advance=advance, data_root=args.data_root)
        settings['load_from'] = None if variant is None else start
        checkpoint = train(config, folder, cfg_options=options, **settings)
    options = {**options, 'test_evaluator': METRICS}
    return ModelTester(config, checkpoint, folder, options, data_root=args.data_root)


def run(args: Any, name: str, seed: int, steps: int, meter: Meter) -> list[dict]:
    """Train a model unless already trained, and test it.

    Args:
        args, name, seed: see :func:`trained`.
        steps: iterations of the training.
        meter: for progress.
    """
    with meter.stage(f'seed {seed}: {name}', steps) as advance:
        rows = test(trained(args, name, seed, advance), args, seed, advance)
    dense_iters = args.dense_iters or load_config(DENSE[args.data]).train_cfg.max_iters
    about = dict(model=name, seed=seed, dense_iters=dense_iters, iters=steps)
    return [{**about, **row} for row in rows]


def timed(args: Any, rows: Sequence[dict]) -> list[dict]:
    """Add ``ms`` to rows: median per picture of all models in turns, prepared for inference.

    The first seed's models are timed, for the rows of all seeds.
    """
    names = ['dense', *args.variants]
    testers = {name: trained(args, name, args.seeds[0]) for name in names}
    for tester in testers.values():
        prepare_for_inference(tester.loaded.model)

    def runner(name: str, ratio: float) -> Callable:
        model = testers[name].loaded.model

        def run(batch: HostBatch) -> None:
            if name != 'dense':
                model.decode_head.set_tile_ratio(ratio)
            model(batch.inputs, batch.samples(), mode='predict')

        return run

    keys = {(row['model'], row['tile_ratio']) for row in rows if row['model'] in names}
    runs = {key: runner(*key) for key in sorted(keys)}
    found = measure_latency(runs, testers['dense'].batches(8), rounds=24)
    ms = {key: round(latency.median, 2) for key, latency in found.items()}
    found_in = ((row, (row['model'], row['tile_ratio'])) for row in rows)
    return [{**row, 'ms': ms[key]} if key in ms else row for row, key in found_in]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Mean and standard deviation over seeds, and the difference to :func:`twin_of`."""
    groups: dict[tuple, list] = {}
    for row in rows:
        groups.setdefault((row['model'], row['tiles'], row['tile_ratio']), []).append(row)
    lines = []
    for (model, tiles, ratio), group in groups.items():
        macs = f'{mean(row["head_gmacs"] for row in group):.3f}'
        times = [row['ms'] for row in group if 'ms' in row]
        lines.append((model, tiles, f'{ratio:g}', macs, f'{mean(times):.1f}' if times else '-'))
        lines[-1] += (str(len(group)),)
        for key in ('miou', 'boundary_f'):
            lines[-1] += (
                common.spread([row[key] for row in group]),
                common.spread([row[key] - twin_of(row, rows)[key] for row in group]),
            )
    headings = ('head', 'tiles', 'fraction', "head's GMACs", 'ms', 'seeds')
    headings += ('mIoU', '-', 'boundary F', '-')
    return to_markdown(headings, lines)


def twin_of(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The dense reference of a row, with the same seed.

    With all tiles a head is equivalent to mmseg's with the same training: that of the row's own
    model; for a static one, which has none, that of a model trained as a whole; else the dense
    model that training started from.
    """
    same = [other for other in rows if other['seed'] == row['seed']]
    every = [other for other in same if other['tiles'] == 'all']
    wanted = (
        [other for other in every if other['model'] == row['model']],
        [other for other in every if other['model'].startswith('as a whole')],
        [other for other in same if other['model'] == 'dense'],
    )
    return next(found[0] for found in wanted if found)


def identity(row: Mapping[str, Any]) -> tuple:
    """Key of a row."""
    return tuple(
        row[key] for key in ('model', 'seed', 'dense_iters', 'iters', 'tiles', 'tile_ratio')
    )


def merged(done: Sequence[dict], new: Sequence[dict]) -> list[dict]:
    """Merge rows, with new ones replacing old ones."""
    fresh = {identity(row) for row in new}
    return [row for row in done if identity(row) not in fresh] + list(new)


def report(args: Any, rows: Sequence[Mapping[str, Any]]) -> str:
    """Format the results as Markdown."""
    seeds = ' '.join(str(seed) for seed in sorted({row['seed'] for row in rows}))
    iters = {row['model'] == 'dense': row['iters'] for row in rows}
    variants = dict.fromkeys(row['model'] for row in rows if row['model'] != 'dense')
    ratios = sorted({row['tile_ratio'] for row in rows if row['tiles'] == 'learned'})
    command = (
        f'python benchmarks/dynamic_head.py --data {args.data} --seeds {seeds} '
        f'--ratios {" ".join(f"{ratio:g}" for ratio in ratios)} --dense-iters {iters[True]} '
        f'--iters {iters[False]} --variants {" ".join(f"{name!r}" for name in variants)}'
        + (f' --dense {args.dense}' if args.dense else '')
    )
    terms = (
        '**Trainings**: a dense one for each seed; from there on, for each variant, one of what '
        'is new in it, or of all of it (*as a whole*, *static*). Some variants were run with the '
        'first seeds only.',
        '**The same weights** tested in other ways: *random*, *lowest scores*, *labels*, *most '
        'uncertain*, *no halos*, *none*, *all*, and all fractions of tiles but the one trained '
        'with.',
        '**Figures** in per cent, mean ± standard deviation over seeds; beside each (-) the '
        'difference to the dense twin of the same seed that was trained as long: the same weights '
        'with all tiles (for static heads and the dense model that training started from: those '
        'of *as a whole*).',
        common.where(),
    )
    listed = '\n'.join(common.paragraph(term, '- ') for term in terms)
    title = f'# What does a sparse decode head lose? {args.data}'
    return f'{title}\n\n{common.paragraph(f"`{command}`")}\n\n{listed}\n\n{table(rows)}'


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    args = parse_args(argv)
    warnings.filterwarnings('ignore')  # of the libraries; they would break the progress display
    with cli.exit_on_bad_input():
        dense, dynamic = (load_config(of[args.data]).train_cfg for of in (DENSE, DYNAMIC))
        args.out.mkdir(parents=True, exist_ok=True)
        path = args.out / f'dynamic_head_{args.data}.json'
        done = json.loads(path.read_text()) if path.exists() else []
        if args.time and not done:
            raise ValueError(f'nothing to time in {path}: run without --time first')
    iters = {True: args.dense_iters or dense.max_iters, False: args.iters or dynamic.max_iters}
    steps = {name: iters[name == 'dense'] for name in ('dense', *args.variants)}
    costs = {f'seed {seed}: {name}': steps[name] for seed in args.seeds for name in steps}
    if args.time:
        done = timed(args, done)
        write_json(path, done)
    else:
        with Meter(costs) as meter:
            for seed in args.seeds:
                for name, length in steps.items():
                    done = merged(done, run(args, name, seed, length, meter))
                    write_json(path, done)
    current = [
        row
        for row in done
        if row['dense_iters'] == iters[True] and row['iters'] == iters[row['model'] == 'dense']
    ]
    page = report(args, current)
    write_text(path.with_suffix('.md'), page)
    print(page)
    return 0


if __name__ == '__main__':
    sys.exit(cli.run(main))
