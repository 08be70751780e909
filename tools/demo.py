"""What you get without training, then a small training: dense against sparse."""

import argparse
import sys
import warnings
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # a checkout, not installed

from mmdyn import cli
from mmdyn.whole_files import write_figure, write_json, write_text

RATIOS = (0.9, 0.7, 0.5)
ROUNDS, TIMED = 20, 4
DRAWN = 3


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line; ends the process with code 2 if it makes no sense."""
    parser = argparse.ArgumentParser(description=__doc__, epilog=cli.EPILOG)
    parser.add_argument(
        '--work-dir',
        type=Path,
        default=Path('work_dirs/demo'),
        help='folder for checkpoints and results; models trained there before are used again '
        '(default: %(default)s)',
    )
    parser.add_argument(
        '--seed', type=cli.seed, default=0, help='of the trainings (default: %(default)s)'
    )
    parser.add_argument(
        '--quick',
        action='store_true',
        help='a few iterations on a few scenes: shows that everything runs, its numbers mean '
        'nothing',
    )
    parser.add_argument(
        '--no-training', action='store_true', help='stop after the comparison without training'
    )
    cli.add_traceback_argument(parser)
    return parser.parse_args(argv)


def quick_options(work_dir: Path) -> dict:
    """Config overrides of a run that only shows that everything runs."""
    options = {'train_cfg.max_iters': 2, 'default_hooks.checkpoint.interval': 2}
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        dataset = dict(data_root=str(work_dir / 'data'), train=8, val=4)
        options |= {f'{loader}.dataset.{key}': value for key, value in dataset.items()}
    return options


def show_prepared(quick: bool) -> None:
    """Times mmseg's UperNet before and after ``prepare_for_inference``, and a sparse one."""
    from mmdyn.analysis import demo_prepared
    from mmdyn.analysis.machine import describe_machine
    from mmdyn.analysis.progress import Meter
    from mmdyn.analysis.tables import print_table

    side, rounds = (128, 1) if quick else (512, 5)
    with Meter({'timing': 1.0}) as meter:
        with meter.stage('timing', 3 * (rounds + 1)) as advance:
            rows = demo_prepared.compare(side, rounds, advance)
    cells = [
        (
            row.name,
            f'{row.latency.median:.0f}',
            f'{row.speedup:.2f}x',
            '-' if row.same_labels is None else f'{100 * row.same_labels:.2f} %',
        )
        for row in rows
    ]
    title = f'Without training: from a {side}x{side} photo to its label map'
    print_table(('model', 'ms', 'speed-up', 'same labels'), cells, title)
    machine = describe_machine()
    how = 'fp32, batch 1, random weights, freed memory kept by all'
    print(f'{machine["cpu"]}, {machine["threads"]} threads; {how}; median of {rounds}')
    print('Prepare a model of yours: mmdyn.prepare_for_inference(model)\n', flush=True)


def train_and_compare(work_dir: Path, seed: int, quick: bool) -> None:
    """Trains a dense and a sparse model, evaluates them and writes the results."""
    from PIL import Image

    from mmdyn.analysis import demo_models
    from mmdyn.analysis.demo_models import DENSE, SPARSE
    from mmdyn.analysis.evaluating import ModelTester
    from mmdyn.analysis.images import as_picture, make_batches
    from mmdyn.analysis.lines import PARTS, RANDOM, lines_of
    from mmdyn.analysis.progress import Meter
    from mmdyn.analysis.rows import brief, steps_of, sweep, table
    from mmdyn.analysis.tables import print_table, print_text, to_markdown
    from mmdyn.apis import DynamicInferencer
    from mmdyn.datasets.scene_renderer import render_mosaic
    from mmdyn.engine.config import load_config
    from mmdyn.visualization import draw

    options = quick_options(work_dir) if quick else {}
    scenes = load_config(SPARSE, options).test_dataloader.dataset.val
    steps = steps_of(1 + len(RATIOS) + 1, TIMED, ROUNDS, scenes)
    costs = {**demo_models.costs(options), 'evaluating': 0.1 * steps}
    # A stream of random numbers (2) that no split of the data set takes.
    mosaics = [render_mosaic((seed, 2, number)) for number in range(TIMED)]
    with Meter(costs) as meter:
        dense, sparse = demo_models.train_both(
            work_dir, seed=seed, meter=meter, cfg_options=options
        )
        dense_dir, sparse_dir = work_dir / 'dense', work_dir / 'sparse'
        with meter.stage('evaluating', steps) as advance:
            models = {
                'dense': ModelTester(DENSE, dense, dense_dir, options),
                'sparse': ModelTester(SPARSE, sparse, sparse_dir, options),
            }
            loaded = models['sparse'].loaded
            choices = lines_of(loaded, [*map(loaded.ladder, RATIOS)], seed=seed, of='sparse')
            lines = [
                *lines_of(models['dense'].loaded, of='dense'),
                *(x for x in choices if x.kind != RANDOM),
                *(x for x in choices if x.kind == RANDOM and x.keep_ratios[0] == 0.7),
            ]
            testers = {id(tester.loaded.model): tester for tester in models.values()}
            batches = make_batches(loaded, [as_picture(mosaic) for mosaic in mosaics], 1)
            settings = dict(rounds=ROUNDS, seed=seed, advance=advance)
            *_, rows = sweep(lines, testers, PARTS[0], batches, **settings)

    write_json(work_dir / 'results.json', [brief(row, seed) for row in rows])
    headings, cells = table(rows)
    note = (
        f'mIoU over {scenes} validation scenes of 128x128, in brackets its 95 % bootstrap interval '
        'over them. GMACs (10^9 multiply-adds) and ms (median) are of the backbone on 512x512 '
        "(16 scenes side by side), batch 1; the dense model runs mmseg's own backbone."
    )
    write_text(
        work_dir / 'results.md',
        '# Demo: MiniScenes, dense against sparse\n\n'
        f'{to_markdown(headings, cells)}\n{note} {ROUNDS} interleaved rounds, seed {seed}.\n',
    )
    pictures = work_dir / 'overlays'
    pictures.mkdir(exist_ok=True)
    infer = DynamicInferencer(SPARSE, sparse, cfg_options=options)
    drawn = [Image.fromarray(mosaic) for mosaic in mosaics[:DRAWN]]
    for number, inference in enumerate(infer(drawn, keep_ratio=0.7)):
        write_figure(pictures / f'{number:02d}.png', draw(inference), dpi=110)

    print_table(headings, cells, 'Trained on generated scenes: dense against sparse')
    print_text(note)
    print(f'table     {work_dir / "results.json"}, {work_dir / "results.md"}')
    print(f'pictures  {pictures}: image, prediction, and what each predictor kept')
    print(f'models    {dense}, {sparse}')


def main(argv: list[str] | None = None) -> int:
    """Runs the demo; returns the exit code."""
    args = parse_args(argv)
    warnings.simplefilter('ignore')  # of the libraries; they would tear the progress display
    with cli.exit_on_bad_input():
        from mmdyn.checks import check_folder
        from mmdyn.compat import require_host

        check_folder('--work-dir', args.work_dir)
        args.work_dir.mkdir(parents=True, exist_ok=True)
        require_host('mmseg')
    with cli.checkpoints_as_data():
        show_prepared(args.quick)
        if not args.no_training:
            train_and_compare(args.work_dir, args.seed, args.quick)
    return 0


if __name__ == '__main__':
    sys.exit(cli.run(main))
