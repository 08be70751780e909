"""Evaluate a checkpoint of a segmentor, detector or classifier."""

import argparse
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # for use from a checkout

from mmdyn import cli


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 on a usage error."""
    parser = argparse.ArgumentParser(description=__doc__, epilog=cli.EPILOG)
    cli.add_model_arguments(parser)
    parser.add_argument(
        '--out',
        metavar='PATH',
        help='also write the predictions: to this .pkl file (detector), or as label maps to this '
        'folder (segmentor)',
    )
    parser.add_argument('--show', action='store_true', help='show predictions in windows')
    parser.add_argument('--show-dir', metavar='FOLDER', help='save drawings of predictions here')
    parser.add_argument(
        '--wait-time',
        type=float,
        default=2.0,
        metavar='SECONDS',
        help='how long a window is shown (default: %(default)s)',
    )
    parser.add_argument(
        '--tta',
        action='store_true',
        help="use test-time augmentation, from the config's tta_model and tta_pipeline",
    )
    cli.add_prepare_argument(parser, default=False)
    cli.add_keep_ratio_arguments(parser)
    cli.add_run_arguments(parser)
    args = parser.parse_args(argv)
    if not args.wait_time >= 0:
        parser.error(f'--wait-time must be 0 or more seconds, got {args.wait_time}')
    return args


def main(argv: list[str] | None = None) -> int:
    """Evaluate; returns the exit code."""
    args = parse_args(argv)
    with cli.running(args) as prepared:
        from mmdyn.engine.hooks.check_weights import CheckWeightsHook
        from mmdyn.engine.hooks.prepare_model import PrepareModelHook
        from mmdyn.engine.prepare import IterationCallback, build_runner, prepare_testing

        prepare = vars(args).pop('prepare')
        cfg, notes = prepare_testing(**vars(args))
        runner = build_runner(cfg, notes)
        runner.register_hook(CheckWeightsHook(runner, whole=True))
        runner.register_hook(IterationCallback(prepared))
        if prepare:
            runner.register_hook(PrepareModelHook())
        runner.test()
    return 0


if __name__ == '__main__':
    sys.exit(cli.run(main))
