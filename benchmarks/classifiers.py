"""Image classifiers: multiply-adds beside the published ones, small trained models, speed.

Writes classifiers.json (`rows`, flat records with a `group`) and classifiers.md. Groups are added
to those that an earlier run wrote.

- table: what the ImageNet configs execute at 224x224, beside the original's README.
- mini: lvvit_mini and, from it, dynlvvit_mini with tokens kept by scores and at random, per seed.
- speed: dense and sparse models beside timm's dense ones, random weights, random pictures.
"""

import argparse
import functools
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import common
import timm
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from torch import Tensor, nn

from mmdyn import cli
from mmdyn.analysis.counting import count_macs
from mmdyn.analysis.demo_models import train
from mmdyn.analysis.evaluating import ModelTester
from mmdyn.analysis.machine import describe, describe_machine, versions
from mmdyn.analysis.measuring import count_all, measure, threads
from mmdyn.analysis.tables import to_markdown
from mmdyn.config_lookup import find_config
from mmdyn.memory import keep_freed_memory
from mmdyn.registry import MODELS
from mmdyn.sparsity import RandomPolicy
from mmdyn.sparsity.ratios import falling_keep_ratios
from mmdyn.whole_files import write_json, write_text

# Of https://github.com/raoyongming/DynamicViT: config, first ratio, top-1, top-5, G multiply-adds.
PUBLISHED = (
    ('dyndeit-256', 0.7, 76.53, 93.12, 1.3),
    ('dyndeit-s', 0.7, 79.32, 94.68, 2.9),
    ('dyndeit-b', 0.7, 81.43, 95.46, 11.4),
    ('dynlvvit-s', 0.5, 81.97, 95.76, 3.7),
    ('dynlvvit-s', 0.7, 83.08, 96.25, 4.6),
    ('dynlvvit-m', 0.7, 83.82, 96.58, 8.5),
    ('dynconvnext-t', 0.7, 81.59, 95.72, 3.6),
    ('dynconvnext-t', 0.9, 82.06, 95.89, 3.9),
    ('dynconvnext-s', 0.7, 82.57, 96.29, 5.8),
    ('dynconvnext-s', 0.9, 83.12, 96.42, 6.8),
    ('dynconvnext-b', 0.7, 83.45, 96.56, 10.2),
    ('dynconvnext-b', 0.9, 83.96, 96.76, 11.9),
    ('dynswin-t', 0.7, 80.91, 95.42, 4.0),
    ('dynswin-s', 0.7, 83.21, 96.33, 6.9),
    ('dynswin-b', 0.7, 83.43, 96.45, 12.1),
)
TIMM = {
    'dyndeit-s': 'deit_small_patch16_224',
    'dynlvvit-s': None,  # not in timm
    'dynconvnext-t': 'convnext_tiny',
    'dynswin-t': 'swin_tiny_patch4_window7_224',
    'dynswin-s': 'swin_small_patch4_window7_224',
}
GROUPS = ('table', 'mini', 'speed')


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line; ends the process with code 2 if it makes no sense."""
    parser = common.seed_parser(__doc__, 'classifiers')
    parser.add_argument('--groups', nargs='+', choices=GROUPS, default=list(GROUPS))
    parser.add_argument('--models', nargs='+', choices=list(TIMM), default=list(TIMM))
    parser.add_argument('--batch-sizes', type=cli.count, nargs='+', default=[1, 32])
    parser.add_argument('--rounds', type=cli.count, default=20, help='a quarter for larger batches')
    parser.add_argument('--threads', type=cli.count, help="CPU threads (default: torch's choice)")
    return common.parse_seeds(parser, argv)


def build(name: str, keep_ratio: float) -> nn.Module:
    """The model of an ImageNet config at a ratio, with random weights, in evaluation mode."""
    model = MODELS.build(Config.fromfile(find_config(f'mmdyn::imagenet/{name}_imagenet.py')).model)
    kind = getattr(model.backbone, 'keep_ratio_ladder', 'linear')
    model.backbone.set_keep_ratios(falling_keep_ratios(keep_ratio, 3, kind))
    return model.eval()


def table() -> Iterator[dict[str, Any]]:
    """Rows of the group 'table'."""
    for name, ratio, top1, top5, published in PUBLISHED:
        with torch.device('meta'):  # counted by shapes
            model, image = build(name, ratio), torch.zeros(1, 3, 224, 224)
        macs = {ratio: count_macs(functools.partial(model, image))}
        model.backbone.set_keep_ratios((1.0,) * 3)
        yield dict(
            model=name,
            keep_ratio=ratio,
            gmacs=macs[ratio] / 1e9,
            dense_gmacs=count_macs(functools.partial(model, image)) / 1e9,
            published_gmacs=published,
            published_top1=top1,
            published_top5=top5,
        )


def mini(seed: int, work_dir: Path) -> Iterator[dict[str, Any]]:
    """Rows of the group 'mini' for a seed."""
    dense = None
    for method in ('dense', 'learned', 'random'):
        config = f'mmdyn::imagenet/{"lvvit" if method == "dense" else "dynlvvit"}_mini.py'
        folder = work_dir / f'seed_{seed}' / method

        options = {'custom_hooks': []} if method == 'random' else {}

        def prepare(runner: Runner, method: str = method) -> None:
            if method == 'random':
                runner.model.backbone.training_policy = RandomPolicy(seed)

        checkpoint = train(
            config, folder, seed=seed, load_from=dense, cfg_options=options, prepare=prepare
        )
        dense = dense or checkpoint
        tester = ModelTester(config, checkpoint, folder)
        backbone = tester.loaded.model.backbone
        if method == 'random':
            backbone.policy = RandomPolicy(seed)
        metrics = tester.evaluate().metrics
        image = tester.batch(0).inputs
        yield dict(
            method=method,
            seed=seed,
            keep_ratios=list(backbone.keep_ratios),
            top1=metrics['accuracy/top1'],
            gmacs=count_macs(functools.partial(tester.loaded.model, image)) / 1e9,
        )


def speed(name: str, batch_size: int, rounds: int) -> Iterator[dict[str, Any]]:
    """Rows of the group 'speed' for a model and a batch size."""
    sparse, dense = build(name, 0.7), build(name, 1.0)
    dense.load_state_dict(sparse.state_dict())
    runs: dict[str, Callable[[Tensor], Any]] = {'dense': dense, 'sparse 0.7': sparse}
    shuffled = build(name, 0.7)
    shuffled.load_state_dict(sparse.state_dict())
    shuffled.backbone.policy = RandomPolicy(0)
    runs['random 0.7'] = shuffled
    if TIMM[name]:
        runs[f'timm {TIMM[name]}'] = timm.create_model(TIMM[name]).eval()
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(batch_size, 3, 224, 224, generator=generator) for _ in range(4)]
    reference = next((key for key in runs if key.startswith('timm')), 'dense')
    rounds = rounds if batch_size == 1 else max(3, rounds // 4)
    macs = count_all(runs, images[:1])
    found = measure(runs, images, macs=macs, rounds=rounds, warmup=1, memory=False)
    for key, one in found.items():
        yield dict(
            model=name,
            variant=key,
            batch_size=batch_size,
            ms=one.latency.median,
            gmacs=one.macs / batch_size / 1e9,
            speedup_over=reference,
            speedup=one.speedup(found[reference]).median,
            realised=one.realised(found['dense']).median,
        )


def page(result: dict[str, Any], command: str) -> str:
    """The Markdown page."""
    groups = {name: [row for row in result['rows'] if row['group'] == name] for name in GROUPS}
    lines = [
        '# Image classifiers',
        '',
        common.paragraph(f'`{command}`, on {describe(result["machine"], result["versions"])}.'),
        '',
    ]
    if groups['table']:
        lines += ['## Multiply-adds at 224x224', '']
        text = (
            'What the sparse model executes, head included. Published figures are quoted from the '
            "original's README: nothing was trained on ImageNet here."
        )
        rows = [
            (
                row['model'],
                str(row['keep_ratio']),
                f'{row["dense_gmacs"]:.2f}',
                f'{row["gmacs"]:.2f}',
                str(row['published_gmacs']),
                f'{row["gmacs"] / row["published_gmacs"] - 1:+.1%}',
                f'{row["published_top1"]:.2f} / {row["published_top5"]:.2f}',
            )
            for row in groups['table']
        ]
        heads = ('config', 'ratio', 'dense G', 'G', 'published G', 'difference')
        heads += ('published top-1 / top-5',)
        lines += [common.paragraph(text), '', to_markdown(heads, rows), '']
    if groups['mini']:
        lines += ['## Trained: what shape is it?', '']
        text = (
            'lvvit_mini.py from scratch on generated pictures of six shapes, 240 for validation; '
            'from it dynlvvit_mini.py, with tokens chosen by scores (learned) and at random, in '
            'training too.'
        )
        rows = []
        for method in dict.fromkeys(row['method'] for row in groups['mini']):
            own = [row for row in groups['mini'] if row['method'] == method]
            each = ', '.join(f'{row["top1"]:.1f}' for row in own)
            ratios = ', '.join(map(str, own[0]['keep_ratios']))
            macs = 1000 * mean(row['gmacs'] for row in own)
            rows.append(
                (method, ratios, f'{macs:.1f}', common.spread([r['top1'] for r in own]), each)
            )
        heads = ('tokens', 'keep ratios', 'M multiply-adds', 'top-1', 'by seed')
        lines += [common.paragraph(text), '', to_markdown(heads, rows), '']
    if groups['speed']:
        lines += ['## Speed', '']
        text = (
            'At 224x224, fp32, random weights, four different batches in turn, interleaved rounds, '
            "medians. Speed-up over timm's dense model in each round, over ours where timm has "
            'none; realised is the speed-up over ours, dense, divided by the ratio of '
            'multiply-adds.'
        )
        rows = [
            (
                row['model'],
                str(row['batch_size']),
                row['variant'],
                f'{row["gmacs"]:.2f}',
                f'{row["ms"]:.1f}',
                f'{row["speedup"]:.2f}',
                f'{row["realised"]:.2f}',
            )
            for row in groups['speed']
        ]
        heads = ('config', 'batch', 'model', 'G', 'ms', 'speed-up', 'realised')
        lines += [common.paragraph(text), '', to_markdown(heads, rows), '']
    return '\n'.join(lines)


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; returns the exit code."""
    args = parse_args(argv)
    warnings.simplefilter('ignore')  # of the libraries
    keep_freed_memory()
    path = args.out / 'classifiers.json'
    rows = json.loads(path.read_text())['rows'] if path.exists() else []
    rows = [row for row in rows if row['group'] not in args.groups]
    with cli.exit_on_bad_input(), threads(args.threads):
        args.out.mkdir(parents=True, exist_ok=True)
        if 'table' in args.groups:
            rows += [dict(group='table', **row) for row in table()]
        if 'mini' in args.groups:
            for seed in args.seeds:
                rows += [dict(group='mini', **row) for row in mini(seed, args.work_dir)]
        if 'speed' in args.groups:
            for name in args.models:
                for size in args.batch_sizes:
                    rows += [dict(group='speed', **row) for row in speed(name, size, args.rounds)]
        result = dict(machine=describe_machine(), versions=versions(), rows=rows)
    write_json(path, result)
    write_text(args.out / 'classifiers.md', page(result, 'python benchmarks/classifiers.py'))
    print(f'written to {path}')
    return 0


if __name__ == '__main__':
    sys.exit(cli.run(main))
