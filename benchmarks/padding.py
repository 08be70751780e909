"""Effect of padding on features: deviations of the dense and of the sparse backbone.

Takes a trained sparse segmentor and its config's test images. Each image is run alone, and padded
at the right and bottom as next to a larger one in a batch. In the dense model, attention windows
with real and padded locations mix them; the sparse one masks known padding. Compares each output
map on its real locations, with the same weights in the host's dense backbone. Writes padding.md.
"""

import argparse
import sys
import warnings
from pathlib import Path
from statistics import median

import common
import torch
import torch.nn.functional as F

from mmdyn import cli
from mmdyn.analysis.evaluating import ModelTester
from mmdyn.analysis.stock import build_stock_model
from mmdyn.analysis.tables import to_markdown
from mmdyn.whole_files import write_text

HERE = Path(__file__).parent


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 on a usage error."""
    parser = argparse.ArgumentParser(description=__doc__, epilog=cli.EPILOG)
    parser.add_argument('config', help='a sparse segmentor, for example on CamVid')
    parser.add_argument('checkpoint', help='its weights')
    parser.add_argument(
        '--pad',
        type=int,
        nargs=2,
        default=(120, 160),
        metavar=('ROWS', 'COLUMNS'),
        help='pixels of padding (default: %(default)s)',
    )
    parser.add_argument('--images', type=int, default=20, help='(default: %(default)s)')
    parser.add_argument(
        '--out', type=Path, default=HERE, help="folder for the result (default: this file's)"
    )
    cli.add_config_arguments(parser)
    args = parser.parse_args(argv)
    if min(args.pad) < 0 or max(args.pad) == 0 or args.images < 1:
        parser.error('--pad needs a positive number, --images at least 1')
    return args


def deviation(padded: torch.Tensor, alone: torch.Tensor) -> float:
    """Relative norm of the difference on the real locations of (1, C, H, W) maps."""
    real = padded[..., : alone.shape[-2], : alone.shape[-1]]
    return ((real - alone).norm() / alone.norm()).item()


@torch.inference_mode()
def measure(evaluator: ModelTester, pad: tuple[int, int], images: int) -> dict:
    """Median deviations by backbone, one per map, and the fraction of kept locations in common."""
    sparse, dense = evaluator.loaded.backbone, build_stock_model(evaluator.loaded).backbone
    found: dict[str, list] = {'dense': [], 'sparse': [], 'sparse, padding not told': []}
    same = []
    for index in range(min(images, len(evaluator.dataset))):
        image = evaluator.batch(index).inputs
        hw = tuple(image.shape[-2:])
        padded = F.pad(image, (0, pad[1], 0, pad[0]))
        alone, told = sparse.forward_sparse(image), sparse.forward_sparse(padded, valid_shapes=[hw])
        outs = {
            'dense': (dense(padded), dense(image)),
            'sparse': (told.feats, alone.feats),
            'sparse, padding not told': (sparse(padded), alone.feats),
        }
        for name, (a, b) in outs.items():
            found[name].append([deviation(x, y) for x, y in zip(a, b, strict=True)])
        same.append([kept_too(a, b) for a, b in zip(alone.decisions, told.decisions, strict=True)])
    medians = {
        name: [median(level) for level in zip(*rows, strict=True)] for name, rows in found.items()
    }
    return medians | {'kept': [median(level) for level in zip(*same, strict=True)]}


def kept_too(alone, padded) -> float:
    """Fraction of the locations kept in the image alone that are also kept with padding."""
    before = alone.keep_mask.view(alone.hw) > 0
    after = padded.keep_mask.view(padded.hw)[: alone.hw[0], : alone.hw[1]] > 0
    return (before & after).sum().item() / before.sum().item()


def report(args: argparse.Namespace, found: dict) -> str:
    """Format the results as Markdown."""
    name = Path(args.config.rpartition('::')[2]).name
    kept = ', '.join(f'{share:.1%}' for share in found.pop('kept'))
    levels = len(next(iter(found.values())))
    headings = ('backbone', *(f'map {level}' for level in range(levels)))
    rows = [(name, *(f'{value:.2%}' for value in values)) for name, values in found.items()]
    about = common.paragraph(
        f'Relative deviation of an image padded by {args.pad[0]} rows and {args.pad[1]} columns '
        f'from the same image alone, on its real locations: median of {args.images} test images of '
        f'`{name}`, trained weights. `python benchmarks/padding.py CONFIG CHECKPOINT`.'
    )
    choice = common.paragraph(
        'Share of the locations kept in the image alone that each predictor keeps in the padded '
        f'one too: {kept}. A predictor that is not told about padding keeps some of it.'
    )
    table = to_markdown(headings, rows)
    return f'# Does padding change features?\n\n{about}\n\n{table}\n{choice}\n'


def main(argv: list[str] | None = None) -> int:
    """Run the measurement; returns the exit code."""
    args = parse_args(argv)
    warnings.simplefilter('ignore')
    with cli.exit_on_bad_input():
        evaluator = ModelTester(
            args.config,
            args.checkpoint,
            Path('work_dirs/padding'),
            args.cfg_options,
            trust_checkpoint=args.trust_checkpoint,
        )
        page = report(args, measure(evaluator, tuple(args.pad), args.images))
    args.out.mkdir(parents=True, exist_ok=True)
    write_text(args.out / 'padding.md', page)
    print(page)
    return 0


if __name__ == '__main__':
    sys.exit(cli.run(main))
