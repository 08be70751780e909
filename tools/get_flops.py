"""Count what a model executes for pictures, part by part, dense and sparse; any config's."""

import argparse
import importlib.util
import sys
import warnings
from pathlib import Path

if importlib.util.find_spec('mmdyn') is None:  # run from a checkout, nothing installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmdyn import cli


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line; ends the process with code 2 if it makes no sense."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='Counts multiply-adds (MACs), which papers call FLOPs; strictly, one is 2 FLOPs. '
        f'What is counted and what is not: docs/flops.md. {cli.EPILOG}',
    )
    parser.add_argument('config', help='the config: a file, or a packaged one as mmdyn::NAME.py')
    parser.add_argument(
        'checkpoint',
        nargs='?',
        help="the weights: a file or an address (default: random ones; a detector's heads, and "
        'ThresholdPolicy, work on what the weights find)',
    )
    pictures = parser.add_mutually_exclusive_group(required=True)
    pictures.add_argument(
        '--shape',
        type=int,
        nargs='+',
        metavar='PIXELS',
        help='one picture of noise of this height and width; one number makes a square',
    )
    pictures.add_argument(
        '--images',
        metavar='FOLDER',
        help="the pictures of a folder, through the config's test pipeline",
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
        help='of the noise and the random weights (default: %(default)s)',
    )
    parser.add_argument('--out', type=Path, metavar='FILE.json', help='write the counts there')
    cli.add_keep_ratio_arguments(parser)
    cli.add_config_arguments(parser)
    args = parser.parse_args(argv)
    if args.shape is not None and len(args.shape) > 2:
        parser.error(f'--shape takes a height and a width, got {len(args.shape)} numbers')
    return args


def main(argv: list[str] | None = None) -> int:
    """Counts; returns the exit code."""
    args = parse_args(argv)
    warnings.simplefilter('ignore')  # of the libraries
    with cli.exit_on_bad_input() as prepared, cli.checkpoints_as_data(args.trust_checkpoint):
        from mmdyn.analysis import flops
        from mmdyn.analysis.progress import Meter
        from mmdyn.checks import check_file
        from mmdyn.engine.loading import load_model
        from mmdyn.whole_files import write_json

        loaded = load_model(
            args.config,
            args.checkpoint,
            keep_ratio=args.keep_ratio,
            keep_ratios=args.keep_ratios,
            cfg_options=args.cfg_options,
            trust_checkpoint=args.trust_checkpoint,
            seed=args.seed,
        )
        cfg, model = loaded.cfg, loaded.model
        pictures = find_pictures(cfg, args)
        set_policy(model, args)
        model.data_preprocessor(pictures[0], training=False)  # a picture that doesn't fit ends here
        if args.out is not None:
            check_file('--out', args.out)
            args.out.parent.mkdir(parents=True, exist_ok=True)
        prepared()
        with Meter({'counting': 1}) as meter, meter.stage('counting', len(pictures)) as advance:
            executed = flops.measure(model, pictures, advance)
    report = make_report(model, executed, args)
    show(report)
    if args.out is not None:
        write_json(args.out, report)
        print(f'written to {args.out}')
    return 0


def find_pictures(cfg, args: argparse.Namespace):
    """What to count for, as the command line says."""
    from mmdyn.analysis import images

    if args.shape is not None:
        return images.noise_samples(cfg, (args.shape[0], args.shape[-1]), args.seed)
    if args.images is not None:
        return images.folder_samples(cfg, args.images)
    return images.validation_samples(cfg, args.num_images)


def set_policy(model, args: argparse.Namespace) -> None:
    """Lets what decides, a sparse backbone, a head or a neck, choose as ``--policy`` says."""
    policy = cli.make_policy(args.policy)
    if policy is None:
        return
    from mmdyn.models.deciding import deciding_parts

    deciding = deciding_parts(model)
    if not deciding:
        raise ValueError(
            f'--policy {" ".join(args.policy)} is for a sparse backbone such as mmdyn.DynamicSwin, '
            f'the config has {type(model.backbone).__name__}: leave it out'
        )
    for part in deciding:
        part.policy = policy


def source_of(args: argparse.Namespace) -> str:
    """Which pictures were counted for, in words."""
    if args.shape is not None:
        return f'noise of {args.shape[0]}x{args.shape[-1]} pixels'
    return 'validation set' if args.images is None else f'folder {args.images}'


def make_report(model, executed: dict, args: argparse.Namespace) -> dict:
    """What is written as JSON, and shown."""
    from mmdyn.analysis.flops import count_parameters

    parameters = count_parameters(model)
    policy = getattr(model.backbone, 'policy', None)
    report = dict(
        config=args.config,
        checkpoint=args.checkpoint,
        pictures=dict(count=len(executed['dense'].totals), source=source_of(args)),
        two_stage=hasattr(model, 'roi_head'),
        policy=None if policy is None else type(policy).__name__,
        keep_ratios=list(getattr(model.backbone, 'keep_ratios', [])),
        unit='multiply-adds (MACs) per picture, mean; 1 MAC = 2 FLOPs',
        models={},
    )
    for name, result in executed.items():
        macs = result.by_group()
        report['models'][name] = dict(
            macs=result.mean,
            lowest=min(result.totals),
            highest=max(result.totals),
            parameters=parameters[name].total(),
            kept_fractions=[round(kept, 4) for kept in result.kept_fractions()],
            parts={
                part: dict(macs=macs.get(part, 0), parameters=parameters[name][part])
                for part in dict.fromkeys([*parameters[name], *macs])
            },
            operators=dict(result.count.by_op()),
            not_counted=dict(result.count.free),
            unknown=dict(result.count.unknown),
        )
    return report


def show(report: dict) -> None:
    """Prints the table and what is to be known of it."""
    from mmdyn.analysis.tables import print_table

    models = report['models']
    headings = ('part', 'params (M)', *(f'{name} GMACs' for name in models))
    headings += ('sparse / dense',) if len(models) == 2 else ()
    last = list(models.values())[-1]

    def row(part: str, cost: dict, costs: list) -> tuple[str, ...]:
        return (part, f'{cost["parameters"] / 1e6:.2f}', *cells(costs))

    print_table(
        headings,
        [
            row(part, cost, [model['parts'].get(part) for model in models.values()])
            for part, cost in last['parts'].items()
        ],
        f'{report["config"]}: multiply-adds',
        total=row('whole model', last, list(models.values())),
    )
    for line in explanations(report):
        print(line)


def cells(costs: list) -> list[str]:
    """GMACs of a part in each model, and the ratio; a part that a model lacks is a dash."""
    macs = [None if cost is None else cost['macs'] for cost in costs]
    shown = ['-' if number is None else f'{number / 1e9:.3f}' for number in macs]
    if len(macs) == 2:
        shown.append(f'{macs[1] / macs[0]:.1%}' if macs[0] else '-')
    return shown


def explanations(report: dict) -> list[str]:
    """What is to be known of the numbers, for people."""
    models, count = report['models'], report['pictures']['count']
    lines = [
        '1 GMAC = 10^9 multiply-adds = 2 GFLOPs. Papers and most tools call multiply-adds FLOPs: '
        'compare GMACs with theirs.',
        'Counted as executed: matrix products, convolutions, attention. Norms, activations, '
        'copies, resampling, RoIAlign and NMS are free by convention (--out lists them).',
    ]
    for name, model in models.items():
        text = f'{name}: {model["parameters"] / 1e6:.2f} M parameters, '
        text += f'{2 * model["macs"] / 1e9:.3f} GFLOPs'
        if count > 1:
            text += (
                f', mean of {count} pictures, {model["lowest"] / 1e9:.3f} to '
                f'{model["highest"] / 1e9:.3f} GMACs'
            )
        if name == 'sparse' and model['kept_fractions']:
            kept = ', '.join(f'{fraction:.2f}' for fraction in model['kept_fractions'])
            text += f'; {report["policy"]} kept {kept}'
        if model['unknown']:
            text += f'; A LOWER BOUND, nothing is known of {", ".join(sorted(model["unknown"]))}'
        lines.append(text)
    if 'sparse' in models:
        lines.append('dense is the same model at keep ratio 1, without predictors and fast paths')
    if report['two_stage']:
        lines.append(
            'A two-stage detector: its heads work on what is found, so what they execute depends '
            'on pictures and weights, and may differ from dense to sparse.'
        )
    if report['checkpoint'] is None:
        text = 'Random weights'
        if 'sparse' in models:
            text += (
                ", which don't matter to a choice of a given number (top-k, random, static), but "
                'decide what a ThresholdPolicy keeps'
            )
        if report['two_stage']:
            text += '; they find hardly anything: give a checkpoint to see what heads execute'
        lines.append(f'{text}.')
    return lines


if __name__ == '__main__':
    sys.exit(cli.run(main))
