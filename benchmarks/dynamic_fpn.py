"""Accuracy of a detector with sparse backbone, neck and proposals, over several seeds.

Trains Mask R-CNN on the generated COCO set: mmdet's dense one, and with the same recipe one with a
sparse backbone whose neck and RPN compute their finest level in full on half of the tiles. Tests
the latter with learned and random selection, and with everything kept. Models already trained in
the work directory are reused. Writes dynamic_fpn.json and dynamic_fpn.md.
"""

import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import common
from torch import nn

from mmdyn import cli
from mmdyn.analysis.demo_models import train
from mmdyn.analysis.progress import Meter, quietly
from mmdyn.analysis.tables import to_markdown
from mmdyn.engine.config import load_config
from mmdyn.engine.prepare import build_runner, prepare_testing
from mmdyn.sparsity import Policy, RandomPolicy, TopKPolicy
from mmdyn.whole_files import write_json, write_text

CONFIGS = {
    'dense': 'mmdyn::mask_rcnn_swin_mini.py',
    'sparse': 'mmdyn::mask_rcnn_dynfpn_dynswin_mini.py',
}


class Line(NamedTuple):
    """A way to test the sparse model.

    Attributes:
        name: of the row.
        keep_ratios: of the backbone; None = the config's.
        tile_ratio: of the neck; None = the config's.
        backbone, neck: policies.
    """

    name: str
    keep_ratios: tuple[float, ...] | None
    tile_ratio: float | None
    backbone: Policy
    neck: Policy


def lines_of(seed: int) -> list[Line]:
    """Ways to test the sparse model."""
    learned, random = TopKPolicy(), RandomPolicy(seed)
    return [
        Line('learned', None, None, learned, learned),
        Line('random tiles', None, None, learned, random),
        Line('random tiles and locations', None, None, random, random),
        Line('a quarter of the tiles', None, 0.25, learned, learned),
        Line('a quarter of the tiles, random', None, 0.25, learned, random),
        Line('every tile', None, 1.0, learned, learned),
        Line('everything', (1.0, 1.0, 1.0), 1.0, learned, learned),
    ]


def set_line(model: nn.Module, line: Line, config: Any) -> None:
    """Set a model's ratios and policies."""
    model.backbone.set_keep_ratios(line.keep_ratios or config.model.backbone.keep_ratios)
    model.backbone.policy = line.backbone
    model.neck.set_tile_ratio(line.tile_ratio or config.model.neck.tile_ratio)
    model.neck.policy = line.neck


def test(name: str, checkpoint: str, folder: Any, seed: int) -> list[dict[str, Any]]:
    """Test a trained model in all ways; returns one row for each."""
    options = {'visualizer.name': str(folder)}
    config, notes = prepare_testing(
        CONFIGS[name], checkpoint, work_dir=str(folder), cfg_options=options
    )
    with quietly():
        runner = build_runner(config, notes)
        runner.load_or_resume()
    rows = []
    for line in lines_of(seed) if name == 'sparse' else [None]:
        if line is not None:
            set_line(runner.model, line, config)
        with quietly():
            metrics = runner.test()
        found = {key: round(100 * metrics[f'coco/{key}_mAP'], 2) for key in ('segm', 'bbox')}
        rows.append(dict(model=name, line=line.name if line else 'dense', seed=seed, **found))
    return rows


def report(seeds: Sequence[int], iters: int, rows: Sequence[Mapping[str, Any]]) -> str:
    """Format the results as Markdown."""
    dense = {row['seed']: row for row in rows if row['model'] == 'dense'}
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row['line'], []).append(row)
    lines = []
    for name, group in groups.items():
        cells = [name]
        for key in ('segm', 'bbox'):
            gain = [row[key] - dense[row['seed']][key] for row in group]
            cells += [common.spread([row[key] for row in group]), common.spread(gain)]
        lines.append(tuple(cells))
    table = to_markdown(('choice', 'mask AP', '-', 'box AP', '-'), lines)
    about = common.paragraph(
        f'`python benchmarks/dynamic_fpn.py --seeds {" ".join(map(str, seeds))} --iters {iters}`: '
        'one dense and one sparse training per seed, by one recipe, on MiniScenes. All lines but '
        'the first are the sparse model. Per cent, mean ± standard deviation over seeds; beside it '
        f'(-) the difference to the dense model of the same seed. {common.where()}'
    )
    title = '# What does a detector with sparse backbone, neck and proposals lose?'
    return f'{title}\n\n{about}\n\n{table}'


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    parser = common.seed_parser(__doc__, 'dynamic_fpn')
    parser.add_argument('--iters', type=int, help="length of a training (default: the config's)")
    args = common.parse_seeds(parser, argv)
    warnings.filterwarnings('ignore')  # of the libraries; they would break the progress display
    with cli.exit_on_bad_input():
        own = {name: load_config(config) for name, config in CONFIGS.items()}
        args.out.mkdir(parents=True, exist_ok=True)
    iters = args.iters or own['dense'].train_cfg.max_iters
    costs = {f'seed {seed}: {name}': iters for seed in args.seeds for name in CONFIGS}
    rows = []
    with Meter(costs) as meter:
        for seed in args.seeds:
            for name, config in CONFIGS.items():
                folder = args.work_dir / f'{name}_{seed}'
                with meter.stage(f'seed {seed}: {name}', iters) as advance:
                    checkpoint = train(
                        config,
                        folder,
                        seed=seed,
                        advance=advance,
                        cfg_options=common.shorter(own[name], iters),
                    )
                    rows += test(name, checkpoint, folder, seed)
                write_json(args.out / 'dynamic_fpn.json', rows)
    text = report(args.seeds, iters, rows)
    write_text(args.out / 'dynamic_fpn.md', text)
    print(text)
    return 0


if __name__ == '__main__':
    sys.exit(cli.run(main))
