"""Drawings of the tiles chosen by a DynamicUPerHead and their effect.

One row per test picture: the picture, the coarse result, the tiles, the merged result, and that of
the dense head.
"""

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.progress import track

from mmdyn import cli
from mmdyn.analysis.progress import quietly
from mmdyn.engine.prepare import build_runner, prepare_testing
from mmdyn.engine.recording import Choice
from mmdyn.visualization.inference import colour_labels, dim
from mmdyn.whole_files import write_figure


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 on a usage error."""
    parser = argparse.ArgumentParser(description=__doc__, epilog=cli.EPILOG)
    parser.add_argument('config', help='with a mmdyn.DynamicUPerHead')
    parser.add_argument('checkpoint')
    parser.add_argument('out', type=Path, help='the picture file to write, .png or .jpg')
    parser.add_argument(
        '--images',
        type=int,
        nargs='+',
        default=[0, 1],
        help='indices of test images (default: 0 1)',
    )
    cli.add_config_arguments(parser)
    return parser.parse_args(argv)


@torch.no_grad()
def row_of(model, image: torch.Tensor, sample, picture: np.ndarray, palette) -> list:
    """Titled panels of one image.

    Args:
        model: a segmentor with a DynamicUPerHead, in evaluation mode.
        image: (1, 3, h, w), preprocessed.
        sample: of the host.
        picture: (h, w, 3) uint8, RGB.
        palette: RGB of each class.
    """
    head = model.decode_head
    ratio = head.tile_ratio

    def predicted(fraction: float) -> np.ndarray:
        head.set_tile_ratio(fraction)
        labels = model.predict(image, [sample])[0].pred_sem_seg.data[0]
        return colour_labels(labels.cpu().numpy(), palette)

    coarse, dense, merged = predicted(0.0), predicted(1.0), predicted(ratio)
    (decision,) = head.forward_sparse(model.extract_feat(image)).decisions
    choice = Choice.of(decision, 0, head.fine_stride * head.tile_size, picture.shape[:2])
    tiles = dim(picture, choice.on_picture(picture.shape[:2]))
    return [
        ('image', picture),
        ('coarse everywhere', coarse),
        (f'{decision.kept_fraction().item():.0%} of the tiles', tiles),
        ('with these tiles', merged),
        ('dense', dense),
    ]


def draw_rows(rows: Sequence[Sequence[tuple[str, np.ndarray]]]) -> Figure:
    """Draw rows of titled pictures.

    Args:
        rows: of equal length; each picture (h, w, 3) uint8 with its title.
    """
    columns = len(rows[0])
    figure = Figure(figsize=(2.9 * columns, 3.2 * len(rows)), layout='constrained')
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for line, panels in zip(grid, rows, strict=True):
        for axes, (title, picture) in zip(line, panels, strict=True):
            axes.imshow(picture, interpolation='nearest')
            axes.set_title(title, fontsize=9)
            axes.set_axis_off()
    return figure


def main(argv: list[str] | None = None) -> int:
    """Draw; returns the exit code."""
    args = parse_args(argv)
    warnings.filterwarnings('ignore')  # of the libraries
    with cli.exit_on_bad_input():
        cfg, notes = prepare_testing(args.config, args.checkpoint, cfg_options=args.cfg_options)
        if cfg.model.get('decode_head', {}).get('type') != 'mmdyn.DynamicUPerHead':
            raise ValueError(f'{args.config} has no mmdyn.DynamicUPerHead, and no tiles')
        args.out.parent.mkdir(parents=True, exist_ok=True)
    with quietly():
        runner = build_runner(cfg, notes)
        runner.load_or_resume()
    model, dataset = runner.model.eval(), runner.test_dataloader.dataset
    rows = []
    for index in track(args.images, description='predicting'):
        item = dataset[index]
        picture = item['inputs'].permute(1, 2, 0).numpy()[..., ::-1]  # the hosts read BGR
        batch = dict(inputs=[item['inputs']], data_samples=[item['data_samples']])
        batch = model.data_preprocessor(batch, training=False)
        palette = dataset.metainfo['palette']
        rows.append(row_of(model, batch['inputs'], batch['data_samples'][0], picture, palette))
    write_figure(args.out, draw_rows(rows), dpi=70)
    print(f'wrote {args.out}')
    return 0


if __name__ == '__main__':
    sys.exit(cli.run(main))
