"""Train a segmentor, detector or classifier."""

import argparse
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # for use from a checkout

from mmdyn import cli


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 on a usage error."""
    parser = argparse.ArgumentParser(description=__doc__, epilog=cli.EPILOG)
    parser.add_argument(
        'config', help="the training's config: a file, or a packaged one as mmdyn::NAME.py"
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='resume from this checkpoint, by default from the latest one in the work directory '
        '(from scratch if there is none); also restores the RNG state',
    )
    parser.add_argument('--amp', action='store_true', help='train with mixed precision (GPU only)')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help="scale the learning rate with the total batch size, from the config's "
        'auto_scale_lr.base_batch_size',
    )
    cli.add_run_arguments(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Train; returns the exit code."""
    args = parse_args(argv)
    with cli.running(args, 'make room, then resume with --resume') as prepared:
        from mmdyn.engine.hooks.check_weights import CheckWeightsHook
        from mmdyn.engine.prepare import IterationCallback, build_runner, prepare_training
        from mmdyn.engine.resuming import named_checkpoint
        from mmdyn.engine.wrappers import unwrapped
        from mmdyn.models.adapters import check_adapted

        cfg, notes = prepare_training(**vars(args))
        runner = build_runner(cfg, notes)
        model = unwrapped(runner.model)
        check_adapted(model)
        runner.register_hook(CheckWeightsHook(runner, whole=False))
        if isinstance(getattr(model, 'teacher_setting', None), dict):
            model.teacher  # noqa: B018, built on first use: now, before training
        runner.register_hook(IterationCallback(prepared))
        try:
            runner.train()
        except cli.Terminated as end:
            named = named_checkpoint(Path(runner.work_dir))
            place = f'continues from {named}' if named else 'starts over: no checkpoint was saved'
            raise cli.Terminated(f'at iteration {runner.iter}: --resume {place}') from end
    return 0


if __name__ == '__main__':
    sys.exit(cli.run(main))
