"""Predict on pictures, folders and videos; draw predictions and kept locations."""

import argparse
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # for use from a checkout

from mmdyn import cli


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 on a usage error."""
    parser = argparse.ArgumentParser(description=__doc__, epilog=cli.EPILOG)
    add = parser.add_argument
    cli.add_model_arguments(parser)
    inputs_help = "pictures, folders of them, patterns such as 'frames/*.jpg' (quoted), videos"
    add('inputs', nargs='+', metavar='INPUT', help=inputs_help)
    add(
        '--out',
        type=Path,
        default=Path('outputs'),
        metavar='FOLDER',
        help='folder for drawings (NAME.png, NAME.mp4) and results.json (default: %(default)s)',
    )
    add('--no-draw', action='store_true', help='write results.json only')
    add(
        '--labels',
        action='store_true',
        help='also write label maps: NAME_labels.png with class indices (segmentors; 16 bits for '
        'more than 255 classes), NAME_panoptic.png with segment ids (panoptic models)',
    )
    score_help = 'lowest score of an instance (detectors; default: %(default)s)'
    add('--min-score', type=float, default=0.3, metavar='S', help=score_help)
    add('--batch-size', type=int, default=1, help='pictures per forward pass (default: 1)')
    tiles_help = 'fraction of tiles, for a head or neck that chooses tiles'
    add('--tile-ratio', type=float, metavar='R', help=tiles_help)
    pixels_help = 'largest picture to read; inf = no limit (default: %(default)g)'
    add('--max-pixels', type=float, default=100.0, metavar='MILLIONS', help=pixels_help)
    add('--device', help='cpu, cuda, cuda:1 ... (default: a GPU if there is one)')
    cli.add_prepare_argument(parser, default=True)
    cli.add_policy_argument(parser)
    cli.add_keep_ratio_arguments(parser)
    cli.add_config_arguments(parser)
    args = parser.parse_args(argv)
    if not 0 <= args.min_score <= 1:
        parser.error(f'--min-score must lie in [0, 1], got {args.min_score}')
    return args


def main(argv: list[str] | None = None) -> int:
    """Predict; returns the exit code."""
    args = parse_args(argv)
    with cli.exit_on_bad_input() as prepared, cli.checkpoints_as_data(args.trust_checkpoint):
        from rich.progress import track

        from mmdyn.apis import DynamicInferencer, Pictures
        from mmdyn.apis.writing import Writer
        from mmdyn.checks import check_folder

        check_folder('--out', args.out)
        infer = DynamicInferencer(
            args.config,
            args.checkpoint,
            device=args.device,
            cfg_options=args.cfg_options,
            trust_checkpoint=args.trust_checkpoint,
            max_pixels=args.max_pixels,
            prepare=args.prepare,
        )
        pictures = Pictures(args.inputs, infer.reader)
        results = infer(
            pictures,
            batch_size=args.batch_size,
            keep_ratio=args.keep_ratio,
            keep_ratios=args.keep_ratios,
            tile_ratio=args.tile_ratio,
            policy=cli.make_policy(args.policy),
        )
        args.out.mkdir(parents=True, exist_ok=True)
        prepared()
        cli.show_notes(infer.loaded)
        with Writer(
            args.out, draw=not args.no_draw, labels=args.labels, min_score=args.min_score
        ) as writer:
            for result in track(results, total=len(pictures), description='predicting'):
                writer.add(result)
    print(writer.summary())
    return 0


if __name__ == '__main__':
    sys.exit(cli.run(main))
