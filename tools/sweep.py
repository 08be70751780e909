"""Sweep keep ratios of one or several models for metric, GMACs and latency; or meet a budget."""

import argparse
import shlex
import sys
import warnings
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # for use from a checkout

from mmdyn import cli

RATIOS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 on a usage error."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='Dense means every keep ratio at 1, with the same weights. Brackets hold quartiles '
        'of time, and for mIoU a 95 % bootstrap interval over the test images. A budget search '
        'selects on a part of the test set: report the metric on other images. See '
        f'docs/pick_a_ratio.md. {cli.EPILOG}',
    )
    parser.add_argument(
        'config', nargs='?', help='the config: a file, or a packaged one as mmdyn::NAME.py'
    )
    parser.add_argument('checkpoint', nargs='?', help='the weights: a file or an address')
    parser.add_argument(
        '--model',
        nargs=3,
        action='append',
        default=[],
        dest='models',
        metavar=('NAME', 'CONFIG', 'CHECKPOINT'),
        help='instead of CONFIG and CHECKPOINT: a model to compare with others on one test set; '
        'repeat for each, the first is the reference',
    )
    swept = parser.add_argument_group('sweep')
    cli.add_swept_ratio_arguments(swept, ' '.join(map(str, RATIOS)))
    swept.add_argument(
        '--tile-ratio',
        type=float,
        nargs='+',
        metavar='R',
        help='fractions of tiles of a head or neck that chooses tiles, combined with every keep '
        "ratio (default: the config's)",
    )
    swept.add_argument(
        '--policy',
        nargs='+',
        action='append',
        metavar=('NAME', 'KEY=VALUE'),
        help='another policy to sweep besides the learned selection, for example StaticPolicy '
        'seed=1; repeatable',
    )
    swept.add_argument(
        '--dense-twin',
        nargs=2,
        metavar=('CONFIG', 'CHECKPOINT'),
        help='a model trained without sparsity, for comparison',
    )
    searched = parser.add_argument_group('budget search, instead of a sweep')
    budget = searched.add_mutually_exclusive_group()
    for option, text in (
        ('--budget-ms', 'milliseconds per normalised image on this machine'),
        ('--budget-gflops', "10^9 multiply-adds per image, papers' GFLOPs"),
    ):
        budget.add_argument(option, type=float, help=text)
    for option, kind, default, text in (
        ('--trials', cli.count, 16, 'maximum number of settings to measure'),
        ('--step', float, 0.1, 'step between keep ratios'),
        ('--lowest', float, 0.1, 'lowest keep ratio of any predictor'),
        ('--margin', float, 0.05, 'fraction of a time budget to leave free'),
    ):
        text += ' (default: %(default)s)'
        searched.add_argument(option, type=kind, default=default, help=text)
    measured = parser.add_argument_group('measurement')
    measured.add_argument(
        '--images',
        type=cli.count,
        metavar='N',
        help='evaluate on N test images, evenly spread (default: all; 64 for a budget)',
    )
    measured.add_argument(
        '--metric', help="metric to maximise (default: mIoU, or COCO's mask AP, or box AP)"
    )
    measured.add_argument(
        '--part',
        choices=('end-to-end', 'backbone'),
        default='end-to-end',
        help='measure time and multiply-adds of the whole model, from normalised image to '
        'prediction, or of the backbone (default: %(default)s)',
    )
    cli.add_timing_arguments(measured)
    cli.add_data_root_argument(measured)
    measured.add_argument(
        '--out',
        type=Path,
        default=Path('work_dirs/sweep'),
        metavar='FOLDER',
        help='folder for sweep.csv, sweep.json, sweep.md, sweep.png and logs '
        '(default: %(default)s)',
    )
    cli.add_config_arguments(parser)
    args = parser.parse_args(argv)
    check(parser, args)
    return args


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exit with code 2 on conflicting arguments."""
    if bool(args.models) == (args.checkpoint is not None) or (args.models and args.config):
        parser.error('give CONFIG and CHECKPOINT, or --model for each of several models')
    names = [name for name, *_ in args.models]
    if len(set(names)) < len(names):
        parser.error(f'--model: names must be unique, got {", ".join(names)}')
    for name in names:
        if Path(name).name != name or name in ('', '..', 'dense twin'):
            parser.error(f'--model: a name must also be a valid folder name, got {name!r}')
    budgets = dict(ms=args.budget_ms, GMACs=args.budget_gflops)
    args.budget = next((found for found in budgets.items() if found[1] is not None), None)
    for option in ('model', 'keep_ratio', 'keep_ratios', 'tile_ratio', 'policy', 'dense_twin'):
        if args.budget and getattr(args, option.replace('model', 'models')):
            parser.error(
                f'--{option.replace("_", "-")} is for a sweep and can not be combined with a '
                'budget: give one or the other'
            )


def main(argv: list[str] | None = None) -> int:
    """Sweep or search; returns the exit code."""
    args = parse_args(argv)
    warnings.simplefilter('ignore')  # of the libraries; they would break the progress display
    with cli.exit_on_bad_input() as prepared:
        from mmdyn.analysis.measuring import threads
        from mmdyn.checks import check_folder

        check_folder('--out', args.out)
        args.out.mkdir(parents=True, exist_ok=True)
        with cli.checkpoints_as_data(args.trust_checkpoint), threads(args.threads):
            testers = make_testers(args)
            return (
                search(args, testers, prepared) if args.budget else sweep(args, testers, prepared)
            )


def make_testers(args: argparse.Namespace) -> dict:
    """Testers of the models on the (selected) test set, by name."""
    from mmdyn.analysis.evaluating import ModelTester, check_metric, check_same_test_set
    from mmdyn.analysis.lines import TWIN

    models = args.models or [('', args.config, args.checkpoint)]
    if args.dense_twin:
        models = [*models, (TWIN, *args.dense_twin)]
    testers = {
        name: ModelTester(
            config,
            checkpoint,
            args.out / (name or 'logs'),
            args.cfg_options,
            data_root=args.data_root,
            images=64 if args.budget and args.images is None else args.images,
            device=args.device,
            trust_checkpoint=args.trust_checkpoint,
        )
        for name, config, checkpoint in models
    }
    for tester in testers.values():
        cli.show_notes(tester.loaded)
        check_metric(tester, args.metric)
    check_same_test_set({name or args.config: tester for name, tester in testers.items()})
    return testers


def make_lines(args: argparse.Namespace, testers: dict) -> list:
    """The settings to sweep."""
    from mmdyn.analysis.lines import TWIN, Line, lines_of
    from mmdyn.models.deciding import tile_part

    if args.models:
        loaded = [tester.loaded for tester in testers.values()]
        if (args.keep_ratio or args.keep_ratios) and not any(one.is_sparse for one in loaded):
            raise ValueError('keep ratios need a sparse backbone, but no --model has one')
        if args.tile_ratio and not any(tile_part(one.model) for one in loaded):
            raise ValueError('--tile-ratio needs a head or neck with tiles, but no --model has one')
    policies = {' '.join(words): cli.make_policy(words) for words in args.policy or ()}
    lines = []
    for name, tester in testers.items():
        loaded = tester.loaded
        if name == TWIN:
            if loaded.is_sparse:
                kind = type(loaded.backbone).__name__
                raise ValueError(f'--dense-twin needs a dense model, {loaded.name} has a {kind}')
            lines.append(Line(TWIN, loaded.model))
            continue
        # With several models each gets the settings that apply to it.
        takes = loaded.is_sparse or not args.models
        own = RATIOS if loaded.is_sparse and not args.keep_ratios else ()
        ratios = own if args.keep_ratio is None else args.keep_ratio
        has_tiles = tile_part(loaded.model) is not None or not args.models
        lines += lines_of(
            loaded,
            [*map(loaded.ladder, ratios), *args.keep_ratios] if takes else (),
            tile_ratios=args.tile_ratio or () if has_tiles else (),
            policies=policies,
            random=not args.no_random,
            seed=args.seed,
            of=name,
        )
    return lines


def sweep(args: argparse.Namespace, testers: dict, prepared) -> int:
    """Measure every line, writing intermediate results after each evaluation."""
    from mmdyn.analysis import rows as measured
    from mmdyn.analysis.progress import Meter

    lines, first = make_lines(args, testers), next(iter(testers.values()))
    batches = first.batches(args.num_images)
    prepared()
    models = {id(tester.loaded.model): tester for tester in testers.values()}
    steps = measured.steps_of(len(lines), len(batches), args.rounds, first.steps)
    settings = dict(rounds=args.rounds, seed=args.seed, metric=args.metric)
    results = describe_run(args, first, batches)
    with Meter({'measuring': 1}, sys.stderr) as meter, meter.stage('measuring', steps) as advance:
        for rows in measured.sweep(lines, models, args.part, batches, advance=advance, **settings):
            write(args, results, rows)
    report(args, results, rows)
    return 0


def search(args: argparse.Namespace, testers: dict, prepared) -> int:
    """Search for ratios that meet the budget, and show the trials."""
    from mmdyn.analysis.budget import CHOSEN, Budget, Search
    from mmdyn.analysis.progress import Meter

    (unit, limit), (tester,) = args.budget, testers.values()
    batches = tester.batches(args.num_images)
    names = ('metric', 'trials', 'rounds', 'step', 'lowest', 'seed')
    settings = {name: getattr(args, name) for name in names}
    budget = Budget(unit, limit, args.margin)
    searching = Search(tester, budget, args.part, batches, **settings)
    steps = searching.steps
    prepared()
    results = describe_run(args, tester, batches)
    results['budget'] = dict(unit=unit, limit=limit, margin=args.margin)
    with Meter({'searching': 1}, sys.stderr) as meter, meter.stage('searching', steps) as advance:
        rows, problem = searching.run(advance)
    write(args, results, rows)
    chosen = next((row.line for row in rows if row.note == CHOSEN), None)
    report(args, results, rows, chosen)
    if chosen is None:
        print(f'error: {problem}', file=sys.stderr)
        return cli.BAD_INPUT
    show_chosen(args, chosen.keep_ratios, results['settings']['sizes'])
    return 0


def describe_run(args: argparse.Namespace, tester, batches: list) -> dict:
    """Conditions of the measurements, for JSON."""
    from mmdyn.analysis.machine import describe_machine, load_average, versions

    sizes = {f'{b.inputs.shape[-2]}x{b.inputs.shape[-1]}': None for b in batches}
    loaded = tester.loaded
    return dict(
        machine=describe_machine(loaded.device),
        versions=versions(),
        settings=dict(
            config=', '.join(name for name, *_ in args.models) or loaded.name,
            weights='their weights' if args.models else loaded.weights,
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
    """Write the results so far, each file atomically."""
    from mmdyn.analysis.rows import flat, pareto, table, write_csv
    from mmdyn.analysis.tables import to_markdown
    from mmdyn.whole_files import write_json, write_text

    costs = dict(gmacs=lambda row: row.gmacs, ms=lambda row: row.latency.median)
    front = {unit: [row.line.name for row in pareto(rows, costs[unit])] for unit in costs}
    content = dict(results, points=[flat(row.as_json()) for row in rows], front=front)
    write_json(args.out / 'sweep.json', content)
    write_csv(rows, args.out / 'sweep.csv')
    write_text(args.out / 'sweep.md', to_markdown(*table(rows)))


def report(args: argparse.Namespace, results: dict, rows, chosen=None) -> None:
    """Print the table and draw the plot."""
    from mmdyn.analysis.machine import describe
    from mmdyn.analysis.plotting import draw_pareto
    from mmdyn.analysis.rows import table
    from mmdyn.analysis.tables import print_table, print_text
    from mmdyn.whole_files import write_figure

    settings, budget = results['settings'], results.get('budget')
    print_table(*table(rows))
    print_text(
        f'{settings["config"]} with {settings["weights"]}, {settings["part"]}, one image at a '
        f'time: {rows[0].metric} on {settings["evaluated_on"]} images, time (from the normalised '
        f'image) and multiply-adds on {settings["timed_on"]} of {" and ".join(settings["sizes"])}, '
        f'{settings["rounds"]} rounds. {describe(results["machine"], results["versions"])}.'
    )
    figure = draw_pareto(
        rows,
        f'{settings["config"]}, {settings["weights"]}, {settings["part"]}',
        budget=(budget['unit'], budget['limit']) if budget else None,
        chosen=chosen and chosen.name,
    )
    write_figure(args.out / 'sweep.png', figure, dpi=150)
    print(f'written to {args.out}: sweep.csv, sweep.json, sweep.md, sweep.png')


def show_chosen(args: argparse.Namespace, ratios: tuple, sizes: list[str]) -> None:
    """Print the ratios to paste into a config, and the command that times them again."""
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
    if args.cfg_options:
        words += ['--cfg-options', *(f'{key}={value}' for key, value in args.cfg_options.items())]
    print(f'To time it again: {shlex.join(words)}')


if __name__ == '__main__':
    sys.exit(cli.run(main))
