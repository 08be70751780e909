"""Evaluate a checkpoint, a segmentor's or a detector's: the config's default_scope says which."""

import argparse
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # a checkout, not installed

from mmdyn import cli


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line; ends the process with code 2 if it makes no sense."""
    parser = argparse.ArgumentParser(description=__doc__, epilog=cli.EPILOG)
    cli.add_model_arguments(parser)
    parser.add_argument(
        '--out',
        metavar='PATH',
        help='write the predictions too: into this .pkl file (detector), as label maps into this '
        'folder (segmentor)',
    )
    parser.add_argument('--show', action='store_true', help='show predictions in windows')
    parser.add_argument('--show-dir', metavar='FOLDER', help='save drawings of predictions there')
    parser.add_argument(
        '--wait-time',
        type=float,
        default=2.0,
        metavar='SECONDS',
        help='how long a window stays (default: %(default)s)',
    )
    parser.add_argument(
        '--tta',
        action='store_true',
        help="augment at test time, by the config's tta_model and tta_pipeline",
    )
    cli.add_prepare_argument(parser, default=False)
    cli.add_keep_ratio_arguments(parser)
    cli.add_run_arguments(parser)
    args = parser.parse_args(argv)
    if not args.wait_time >= 0:
        parser.error(f'--wait-time must be 0 or more seconds, got {args.wait_time}')
    return args


def main(argv: list[str] | None = None) -> int:
    """Evaluates; returns the exit code."""
    args = parse_args(argv)
    with cli.running(args) as prepared:
        from mmdyn.engine.hooks.check_weights import CheckWeightsHook
        from mmdyn.engine.hooks.prepare_model import PrepareModelHook
        from mmdyn.engine.prepare import TellStart, build_runner, prepare_testing

        prepare = vars(args).pop('prepare')
        cfg, notes = prepare_testing(**vars(args))
        runner = build_runner(cfg, notes)
        runner.register_hook(CheckWeightsHook(runner, whole=True))
        runner.register_hook(TellStart(prepared))
        if prepare:
            runner.register_hook(PrepareModelHook())
        runner.test()
    return 0


if __name__ == '__main__':
    sys.exit(cli.run(main))
