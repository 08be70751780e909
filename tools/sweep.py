"""Sweep keep ratios of one checkpoint: metric, GMACs and latency; or find what meets a budget."""

import argparse
import importlib.util
import itertools
import shlex
import sys
import warnings
from pathlib import Path

if importlib.util.find_spec('mmdyn') is None:  # run from a checkout, nothing installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmdyn import cli

WARMUP = 2


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line; ends the process with code 2 if it makes no sense."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='Time and multiply-adds are of single images of the test set, as its pipeline '
        'makes them; lines are timed against each other, on the same images. Dense means every '
        'keep ratio at 1, with the same weights. With a budget, ratios are looked for that meet it '
        'with the best metric on a part of the test set: that is what the metric is chosen by, so '
        f'report it on other images. docs/pick_a_ratio.md says more. {cli.EPILOG}',
    )
    parser.add_argument('config', help='the config: a file, or a packaged one as mmdyn::NAME.py')
    parser.add_argument('checkpoint', help='the weights: a file or an address')
    add_sweep_arguments(parser)
    add_budget_arguments(parser)
    add_measuring_arguments(parser)
    cli.add_config_arguments(parser)
    args = parser.parse_args(argv)
    check(parser, args)
    return args


def add_sweep_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what says which lines are measured."""
    group = parser.add_argument_group('what is swept')
    cli.add_swept_ratio_arguments(group, '0.9 0.8 0.7 0.6 0.5 0.4 0.3')
    group.add_argument(
        '--tile-ratio',
        type=float,
        nargs='+',
        default=[],
        metavar='R',
        help='fractions of tiles of a head or neck that goes by tiles, each with every keep ratio '
        "(default: the config's)",
    )
    group.add_argument(
        '--policy',
        nargs='+',
        action='append',
        default=[],
        metavar=('NAME', 'KEY=VALUE'),
        help='another way to choose, swept like the learned one, for example StaticPolicy seed=1; '
        'may be given again',
    )
    group.add_argument(
        '--dense-twin',
        nargs=2,
        metavar=('CONFIG', 'CHECKPOINT'),
        help='a dense model that was trained as such, for comparison',
    )


def add_budget_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the search."""
    group = parser.add_argument_group('a budget, instead of a sweep')
    budget = group.add_mutually_exclusive_group()
    budget.add_argument(
        '--budget-ms',
        type=float,
        metavar='MS',
        help='milliseconds of an image on this machine, reading and normalising it aside',
    )
    budget.add_argument(
        '--budget-gflops',
        type=float,
        metavar='G',
        help='10^9 multiply-adds of an image, the GMACs of the other tools, GFLOPs in papers',
    )
    group.add_argument(
        '--trials',
        type=cli.count,
        default=16,
        help='choices of ratios that are measured, at most (default: %(default)s)',
    )
    group.add_argument(
        '--step',
        type=float,
        default=0.1,
        help='between two keep ratios that are considered (default: %(default)s)',
    )
    group.add_argument(
        '--lowest',
        type=float,
        default=0.1,
        metavar='R',
        help='keep ratio that no predictor goes below (default: %(default)s)',
    )
    group.add_argument(
        '--margin',
        type=float,
        default=0.05,
        help='fraction of a time budget that the search leaves free (default: %(default)s)',
    )


def add_measuring_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what says how to measure, and where the results go."""
    group = parser.add_argument_group('how it is measured')
    group.add_argument(
        '--images',
        type=cli.count,
        metavar='N',
        help='evaluate on so many test images, evenly spread (default: all; 64 for a budget)',
    )
    group.add_argument(
        '--metric',
        metavar='NAME',
        help="what is to be high (default: mIoU, or COCO's mask AP, or box AP)",
    )
    group.add_argument(
        '--part',
        choices=('end-to-end', 'backbone'),
        default='end-to-end',
        help='whose time and multiply-adds: the whole model, from normalised image to prediction, '
        'or the backbone '
        '(default: %(default)s)',
    )
    cli.add_timing_arguments(group)
    group.add_argument(
        '--data-root',
        metavar='FOLDER',
        help='where the data lie, in place of the folder that the config names for them',
    )
    group.add_argument(
        '--out',
        type=Path,
        default=Path('work_dirs/sweep'),
        metavar='FOLDER',
        help='folder for sweep.csv, sweep.json, sweep.png and logs (default: %(default)s)',
    )


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the process with code 2 if a value makes no sense."""
    args.searches = args.budget_ms is not None or args.budget_gflops is not None
    swept = dict(
        keep_ratio=args.keep_ratio,
        keep_ratios=args.keep_ratios,
        tile_ratio=args.tile_ratio,
        policy=args.policy,
        dense_twin=args.dense_twin,
    )
    for option, value in swept.items():
        if args.searches and value:
            parser.error(
                f'--{option.replace("_", "-")} says what is swept, and a budget searches: give '
                'one or the other'
            )


def main(argv: list[str] | None = None) -> int:
    """Sweeps or searches; returns the exit code."""
    args = parse_args(argv)
    args.options = given_options(sys.argv[1:] if argv is None else argv)
    warnings.simplefilter('ignore')  # of the libraries; they would tear the progress display
    with cli.exit_on_bad_input() as prepared:
        from mmdyn.analysis.measuring import threads
        from mmdyn.checks import check_folder

        check_folder('--out', args.out)
        args.out.mkdir(parents=True, exist_ok=True)
        prepared()
        with cli.checkpoints_as_data(args.trust_checkpoint), threads(args.threads):
            return search(args) if args.searches else sweep(args)


def given_options(argv: list[str]) -> list[str]:
    """The words of --cfg-options, for the command that is recommended."""
    if '--cfg-options' not in argv:
        return []
    begin = argv.index('--cfg-options') + 1
    return list(itertools.takewhile(lambda word: '=' in word, argv[begin:]))


def make_tester(args: argparse.Namespace, config: str, checkpoint: str, name: str):
    """A model with its test set, or the part of it that was asked for."""
    from mmdyn.analysis.evaluating import ModelTester

    images = 64 if args.searches and args.images is None else args.images
    tester = ModelTester(
        config,
        checkpoint,
        args.out / name,
        args.cfg_options,
        data_root=args.data_root,
        images=images,
        device=args.device,
        trust_checkpoint=args.trust_checkpoint,
    )
    for note in tester.loaded.notes:
        print(note, file=sys.stderr)
    return tester


def make_lines(args: argparse.Namespace, tester) -> tuple[list, dict]:
    """What is swept, and the test set of each model by the model's id."""
    from mmdyn.analysis.evaluating import check_same_test_set
    from mmdyn.analysis.lines import TWIN, Line, lines_to_sweep

    loaded = tester.loaded
    ratios = args.keep_ratio
    if ratios is None:
        own = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]
        ratios = [] if args.keep_ratios or not loaded.is_sparse else own
    lines = lines_to_sweep(
        loaded,
        [*map(loaded.ladder, ratios), *map(tuple, args.keep_ratios)],
        tile_ratios=args.tile_ratio,
        policies={' '.join(words): cli.make_policy(words) for words in args.policy},
        random=not args.no_random,
        seed=args.seed,
    )
    testers = {id(loaded.model): tester}
    if args.dense_twin:
        twin = make_tester(args, *args.dense_twin, 'twin_logs')
        if twin.loaded.is_sparse:
            raise ValueError(
                f'--dense-twin takes a dense model, {twin.loaded.name} has a '
                f'{type(twin.loaded.backbone).__name__}'
            )
        check_same_test_set({'the dense twin': twin, loaded.name: tester})
        lines.append(Line(TWIN, twin.loaded.model))
        testers[id(twin.loaded.model)] = twin
    return lines, testers


def sweep(args: argparse.Namespace) -> int:
    """Measures every line; what is known is written after each evaluation."""
    from mmdyn.analysis import rows as measured
    from mmdyn.analysis.evaluating import check_metric
    from mmdyn.analysis.progress import Meter

    with cli.exit_on_bad_input():
        tester = make_tester(args, args.config, args.checkpoint, 'logs')
        check_metric(tester, args.metric)
        lines, testers = make_lines(args, tester)
        batches = tester.batches(args.num_images)
    rounds = args.rounds + WARMUP
    costs = {
        'counting': 3 * len(lines) * len(batches),
        'timing': len(lines) * rounds,
        'evaluating': len(lines) * tester.steps,
    }
    results = describe_run(args, tester, batches)
    with Meter(costs, sys.stderr) as meter:
        with meter.stage('counting', len(lines) * len(batches)) as told:
            gmacs = measured.count_lines(lines, args.part, batches, told)
        with meter.stage('timing', len(lines) * rounds) as told:
            times = measured.time_lines(
                lines,
                args.part,
                batches,
                rounds=args.rounds,
                warmup=WARMUP,
                seed=args.seed,
                advance=told,
            )
        metrics: dict[str, dict[str, float]] = {}
        with meter.stage('evaluating', len(lines) * tester.steps) as told:
            for name, found in measured.evaluate_lines(lines, testers, told):
                metrics[name] = found
                rows = measured.rows_of(lines, metrics, gmacs, times, args.metric)
                write(args, results, rows)
    report(args, results, rows)
    return 0


def search(args: argparse.Namespace) -> int:
    """Looks for ratios that meet the budget, and shows what was tried."""
    from mmdyn.analysis.budget_search import Budget, BudgetSearch, Effort
    from mmdyn.analysis.evaluating import check_metric
    from mmdyn.analysis.progress import Meter

    unit, limit = 'GMACs', args.budget_gflops
    if limit is None:
        unit, limit = 'ms', args.budget_ms
    with cli.exit_on_bad_input():
        budget = Budget(unit, limit, args.margin)
        tester = make_tester(args, args.config, args.checkpoint, 'logs')
        check_metric(tester, args.metric)
        batches = tester.batches(args.num_images)
        effort = Effort(args.trials, args.rounds, args.step, args.lowest, args.seed)
        searching = BudgetSearch(
            tester, budget, args.part, batches, metric=args.metric, effort=effort
        )
    with Meter(searching.costs(), sys.stderr) as meter:
        found = searching.run(meter)
    results = describe_run(args, tester, batches)
    results['budget'] = dict(unit=unit, limit=limit, margin=args.margin)
    write(args, results, found.rows)
    report(args, results, found.rows, found.chosen)
    if found.chosen is None:
        print(f'error: {found.problem}', file=sys.stderr)
        return cli.BAD_INPUT
    show_chosen(args, found.chosen, results['settings']['sizes'])
    return 0


def describe_run(args: argparse.Namespace, tester, batches: list) -> dict:
    """What all rows were measured with, as JSON can hold it."""
    from mmdyn.analysis.machine import describe_machine, load_average, versions

    loaded = tester.loaded
    sizes = {f'{b.inputs.shape[-2]}x{b.inputs.shape[-1]}': None for b in batches}
    return dict(
        machine=describe_machine(loaded.device),
        versions=versions(),
        settings=dict(
            config=loaded.name,
            weights=loaded.weights,
            part=args.part,
            evaluated_on=len(tester.dataset),
            timed_on=len(batches),
            sizes=list(sizes),
            rounds=args.rounds,
            seed=args.seed,
            load_average=load_average(),
        ),
    )


def write(args: argparse.Namespace, results: dict, rows) -> None:
    """Writes what is known so far, each file in one step."""
    from mmdyn.analysis.rows import pareto, write_csv
    from mmdyn.whole_files import write_json

    costs = dict(gmacs=lambda row: row.gmacs, ms=lambda row: row.latency.median)
    front = {unit: [row.line.name for row in pareto(rows, costs[unit])] for unit in costs}
    content = dict(results, points=[row.as_json() for row in rows], front=front)
    write_json(args.out / 'sweep.json', content)
    write_csv(rows, args.out / 'sweep.csv')


def report(args: argparse.Namespace, results: dict, rows, chosen=None) -> None:
    """Prints the table and draws the plot."""
    from mmdyn.analysis.machine import describe
    from mmdyn.analysis.plotting import draw_pareto
    from mmdyn.analysis.rows import cells
    from mmdyn.analysis.tables import print_table, print_text
    from mmdyn.whole_files import write_figure

    settings, budget = results['settings'], results.get('budget')
    metric = next(row.metric for row in rows if row.metric)
    headings = ('model', metric, 'GMACs', 'ms', 'speed-up', 'note')
    print_table(headings, map(cells, rows))
    print_text(
        f'{settings["config"]} with {settings["weights"]}, {settings["part"]}, one image at a '
        f'time: {metric} on {settings["evaluated_on"]} images, time (from the normalised image) '
        f'and multiply-adds on {settings["timed_on"]} of {" and ".join(settings["sizes"])}, '
        f'{settings["rounds"]} rounds. {describe(results["machine"], results["versions"])}.'
    )
    figure = draw_pareto(
        rows,
        f'{settings["config"]}, {settings["weights"]}, {settings["part"]}',
        budget=(budget['unit'], budget['limit']) if budget else None,
        chosen=chosen and chosen.line.name,
    )
    write_figure(args.out / 'sweep.png', figure, dpi=150)
    print(f'written to {args.out}: sweep.csv, sweep.json, sweep.png')


def show_chosen(args: argparse.Namespace, chosen, sizes: list[str]) -> None:
    """Prints the ratios to paste into a config, and how to time them again."""
    ratios = chosen.line.keep_ratios
    print('\nBest within the budget, for model.backbone of the config:')
    print(f'\n    keep_ratios={ratios},\n')
    if len(sizes) > 1:
        return
    here = Path('tools/benchmark.py')
    words = ['python', str(here)] if here.is_file() else ['mmdyn', 'benchmark']
    words += [args.config, args.checkpoint, '--part', args.part, '--shape', *sizes[0].split('x')]
    words += ['--keep-ratios', *map(str, ratios)]
    for option in ('device', 'threads'):
        if getattr(args, option) is not None:
            words += [f'--{option}', str(getattr(args, option))]
    words += ['--trust-checkpoint'] if args.trust_checkpoint else []
    words += ['--cfg-options', *args.options] if args.options else []
    print(f'To time it again: {shlex.join(words)}')


if __name__ == '__main__':
    sys.exit(cli.run(main))
