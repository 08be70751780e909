"""Compare trained segmentors, dense and sparse ones, in one run: mIoU, GMACs, latency."""

import argparse
import importlib.util
import sys
import warnings
from pathlib import Path

if importlib.util.find_spec('mmdyn') is None:  # run from a checkout, nothing installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmdyn import cli
from mmdyn.whole_files import write_json, write_text


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line; ends the process with code 2 if it makes no sense."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='Every mIoU has its 95 % bootstrap interval over the validation images, and so has '
        "its difference to the first model's, on the same images. The intervals take images to be "
        'independent (frames of one video are not) and say nothing about other training seeds. '
        f'GMACs and latency are of the backbone. --cfg-options hold for every config. {cli.EPILOG}',
    )
    parser.add_argument(
        '--model',
        nargs=3,
        action='append',
        required=True,
        dest='models',
        metavar=('NAME', 'CONFIG', 'CHECKPOINT'),
        help='a model to compare; to be given for each, the first is the reference',
    )
    parser.add_argument(
        '--learned',
        type=float,
        nargs='*',
        default=[1.0, 0.9, 0.7, 0.5],
        metavar='R',
        help="first keep ratios of a sparse model's own choice; later ones fall as with test.py's "
        '--keep-ratio (default: 1 0.9 0.7 0.5)',
    )
    parser.add_argument(
        '--random',
        type=float,
        nargs='*',
        default=[0.7],
        metavar='R',
        help='first keep ratios of a random choice (default: 0.7)',
    )
    parser.add_argument(
        '--seed', type=cli.seed, default=0, help='of the random choice (default: %(default)s)'
    )
    parser.add_argument(
        '--rounds',
        type=cli.count,
        default=30,
        help='timed calls of each line, on different images (default: %(default)s)',
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('work_dirs/compare'),
        help='folder for results.json, results.md and logs (default: %(default)s)',
    )
    cli.add_config_arguments(parser)
    args = parser.parse_args(argv)
    names = [name for name, _, _ in args.models]
    if len(set(names)) < len(names):
        parser.error(f'--model: every name may be given once, got {", ".join(names)}')
    for name in names:
        if not name or Path(name).name != name:
            parser.error(f'--model: a name is that of a folder for logs too, got {name!r}')
    if not args.learned and not args.random:
        parser.error('--learned and --random are both empty: give at least one keep ratio')
    return args


def main(argv: list[str] | None = None) -> int:
    """Compares; returns the exit code."""
    args = parse_args(argv)
    warnings.simplefilter('ignore')  # of the libraries; they would tear the progress display
    with cli.exit_on_bad_input() as prepared, cli.checkpoints_as_data(args.trust_checkpoint):
        from mmdyn.compat import require_host

        require_host('mmseg')
        from mmdyn.analysis import comparison
        from mmdyn.analysis.evaluating import ModelTester, check_same_test_set
        from mmdyn.analysis.lines import lines_to_compare
        from mmdyn.analysis.tables import to_markdown
        from mmdyn.checks import check_folder

        check_folder('--out', args.out)
        models = {
            name: ModelTester(
                config,
                checkpoint,
                args.out / name,
                args.cfg_options,
                trust_checkpoint=args.trust_checkpoint,
            )
            for name, config, checkpoint in args.models
        }
        check_same_test_set(models)
        for model in models.values():
            model.check_areas()
        lines = [
            line
            for name, model in models.items()
            for line in lines_to_compare(
                name, model.loaded, learned=args.learned, random=args.random, seed=args.seed
            )
        ]
        prepared()
        rows = evaluate(models, lines, args)

    headings = comparison.HEADINGS
    headings = (*headings[:3], '95 %', 'against the first', *headings[3:])
    table = to_markdown(headings, [as_text(row, rows[0]) for row in rows])
    write_json(args.out / 'results.json', rows)
    write_text(args.out / 'results.md', table)
    print(table)
    print(f'written to {args.out / "results.json"} and {args.out / "results.md"}')
    return 0


def evaluate(models: dict, lines: list, args: argparse.Namespace) -> list[dict]:
    """Runs the comparison behind a progress display; returns what is written of each line."""
    from mmdyn.analysis.comparison import as_json, compare
    from mmdyn.analysis.intervals import bootstrap_miou
    from mmdyn.analysis.progress import Meter

    images = models[lines[0].of].steps
    steps = len(lines) * (images + args.rounds + 3)
    with Meter({'evaluating': steps}) as meter, meter.stage('evaluating', steps) as advance:
        found, areas = compare(models, lines, seed=args.seed, rounds=args.rounds, advance=advance)
    rows = [as_json(row, args.seed) for row in found]
    for number, (row, own) in enumerate(zip(rows, areas, strict=True)):
        row['miou_interval'] = [round(end, 2) for end in bootstrap_miou(*own)]
        row['difference'] = round(row['miou'] - rows[0]['miou'], 2)
        ends = bootstrap_miou(*own, reference=areas[0]) if number else (0.0, 0.0)
        row['difference_interval'] = [round(end, 2) for end in ends]
    return rows


def as_text(row: dict, first: dict) -> tuple[str, ...]:
    """A row's cells with the 95 % intervals in between."""
    from mmdyn.analysis.comparison import cells

    shown, against = cells(row), '-'
    low, high = row['miou_interval']
    if row is not first:
        ends = '{:+.2f}, {:+.2f}'.format(*row['difference_interval'])
        against = f'{row["difference"]:+.2f} ({ends})'
    return (*shown[:3], f'{low:.2f}, {high:.2f}', against, *shown[3:])


if __name__ == '__main__':
    sys.exit(cli.run(main))
