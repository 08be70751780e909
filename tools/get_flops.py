"""Count the multiply-adds of a model, dense and sparse, per part; for any config."""

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

sys.path.append(str(Path(__file__).resolve().parents[1]))  # for use from a checkout

from mmdyn import cli


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 on a usage error."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='Counts multiply-adds (MACs), which papers call FLOPs; strictly, one is 2 FLOPs. '
        f'docs/flops.md lists what is counted. {cli.EPILOG}',
    )
    cli.add_model_arguments(
        parser, "the cost of a detector's heads and of ThresholdPolicy depends on the weights"
    )
    pictures = parser.add_mutually_exclusive_group(required=True)
    pictures.add_argument(
        '--shape',
        type=int,
        nargs='+',
        metavar='PIXELS',
        help='one picture of noise of this height and width; one number for a square',
    )
    pictures.add_argument(
        '--images',
        metavar='FOLDER',
        help="pictures in a folder, through the config's test pipeline",
    )
    pictures.add_argument(
        '--num-images',
        type=int,
        metavar='N',
        help="the first N pictures of the config's validation set",
    )
    cli.add_policy_argument(parser)
    parser.add_argument(
        '--seed',
        type=cli.seed,
        default=0,
        help='random seed of noise and random weights (default: %(default)s)',
    )
    parser.add_argument('--out', type=Path, metavar='FILE.json', help='also write the counts here')
    cli.add_keep_ratio_arguments(parser)
    cli.add_config_arguments(parser)
    args = parser.parse_args(argv)
    if args.shape is not None and len(args.shape) > 2:
        parser.error(f'--shape takes a height and a width, got {len(args.shape)} numbers')
    return args


def main(argv: list[str] | None = None) -> int:
    """Count; returns the exit code."""
    args = parse_args(argv)
    warnings.simplefilter('ignore')  # of the libraries
    with cli.exit_on_bad_input() as prepared, cli.checkpoints_as_data(args.trust_checkpoint):
        from mmdyn.analysis.flops import count_predictions
        from mmdyn.analysis.lines import set_policy
        from mmdyn.analysis.progress import Meter
        from mmdyn.checks import prepare_file
        from mmdyn.whole_files import write_json

        ratios = dict(keep_ratio=args.keep_ratio, keep_ratios=args.keep_ratios)
        loaded = cli.load_model(args, **ratios, seed=args.seed)
        model = loaded.model
        source, pictures = find_pictures(loaded.cfg, args)
        set_policy(model, cli.make_policy(args.policy))
        model.data_preprocessor(pictures[0], training=False)  # fails now if a picture doesn't fit
        prepare_file('--out', args.out)
        prepared()
        with Meter({'counting': 1}) as meter, meter.stage('counting', len(pictures)) as advance:
            executed = count_predictions(model, pictures, advance)
    report = make_report(args, source, model, executed)
    show(report)
    if args.out is not None:
        write_json(args.out, report)
        print(f'written to {args.out}')
    return 0


def find_pictures(cfg, args: argparse.Namespace) -> tuple[str, Sequence]:
    """Description of the source of pictures, and the pictures."""
    from mmdyn.analysis import images

    if args.shape is not None:
        hw = args.shape[0], args.shape[-1]
        return f'noise of {hw[0]}x{hw[1]} pixels', images.noise_samples(cfg, hw, args.seed)
    if args.images is not None:
        return f'folder {args.images}', images.folder_samples(cfg, args.images)
    return 'validation set', images.validation_samples(cfg, args.num_images)


def make_report(args: argparse.Namespace, source: str, model, executed: dict) -> dict:
    """The report that is shown and written as JSON."""
    from mmdyn.analysis.counting import MacCount
    from mmdyn.analysis.flops import count_parameters

    parameters = count_parameters(model)
    policy = getattr(model.backbone, 'policy', None)
    report = dict(
        config=args.config,
        checkpoint=args.checkpoint,
        pictures=dict(count=len(executed['dense']), source=source),
        two_stage=hasattr(model, 'roi_head'),
        policy=None if policy is None else type(policy).__name__,
        keep_ratios=list(getattr(model.backbone, 'keep_ratios', [])),
        unit='multiply-adds (MACs) per picture, mean; 1 MAC = 2 FLOPs',
        models={},
    )
    for name, found in executed.items():
        counts, kept = zip(*found, strict=True)
        whole, totals = sum(counts, MacCount()), [count.total for count in counts]
        macs = {part: number / len(counts) for part, number in whole.by_group().items()}
        report['models'][name] = dict(
            macs=mean(totals),
            lowest=min(totals),
            highest=max(totals),
            parameters=parameters[name].total(),
            kept_fractions=[round(mean(column), 4) for column in zip(*kept, strict=True)],
            parts={
                part: dict(macs=macs.get(part, 0), parameters=parameters[name][part])
                for part in dict.fromkeys([*parameters[name], *macs])
            },
            operators=dict(whole.by_op()),
            not_counted=dict(whole.free),
            unknown=dict(whole.unknown),
        )
    return report


def show(report: dict) -> None:
    """Print the table and notes."""
    from mmdyn.analysis.tables import print_table

    models = report['models']
    headings = ('part', 'params (M)', *(f'{name} GMACs' for name in models))
    headings += ('sparse / dense',) if len(models) == 2 else ()
    *_, last = models.values()

    def row(name: str, costs: list) -> tuple[str, ...]:
        """Row of a part: its cost in each model ('-' if it lacks the part), and the ratio."""
        macs = [None if cost is None else cost['macs'] for cost in costs]
        shown = ['-' if number is None else f'{number / 1e9:.3f}' for number in macs]
        if len(macs) == 2:
            shown.append(f'{macs[1] / macs[0]:.1%}' if macs[0] else '-')
        return (name, f'{costs[-1]["parameters"] / 1e6:.2f}', *shown)

    parts = [
        row(name, [one['parts'].get(name) for one in models.values()]) for name in last['parts']
    ]
    total = row('whole model', list(models.values()))
    print_table(headings, parts, f'{report["config"]}: multiply-adds', total=total)
    for line in explanations(report):
        print(line)


def explanations(report: dict) -> list[str]:
    """Notes on the numbers; see docs/flops.md for more."""
    models, count = report['models'], report['pictures']['count']
    lines = [
        '1 GMAC = 10^9 multiply-adds = 2 GFLOPs. Papers and most tools call multiply-adds FLOPs: '
        'compare GMACs with theirs.'
    ]
    for name, model in models.items():
        text = f'{name}: {model["parameters"] / 1e6:.2f} M parameters, '
        text += f'{2 * model["macs"] / 1e9:.3f} GFLOPs'
        if count > 1:
            ends = f'{model["lowest"] / 1e9:.3f} to {model["highest"] / 1e9:.3f} GMACs'
            text += f', mean of {count} pictures, {ends}'
        if model['kept_fractions']:
            kept = ', '.join(f'{fraction:.2f}' for fraction in model['kept_fractions'])
            text += f'; {report["policy"]} kept {kept}'
        if model['unknown']:
            text += f'; A LOWER BOUND: unknown operators {", ".join(sorted(model["unknown"]))}'
        lines.append(text)
    if 'sparse' in models:
        lines.append('dense is the same model at keep ratio 1, without predictors and fast paths')
    if report['two_stage']:
        lines.append(
            'A two-stage detector: the cost of its heads depends on the proposals, and may differ '
            'between dense and sparse.'
        )
    if report['checkpoint'] is None:
        lines.append(
            'Random weights: the cost of a ThresholdPolicy and of detections is arbitrary; with a '
            'fixed number of kept locations the cost is the same for any weights.'
        )
    return lines


if __name__ == '__main__':
    sys.exit(cli.run(main))
