"""Is a learned choice of locations better than a random one? On real pictures, with controls.

Per task and seed: one dense model is trained from scratch; from it, with one budget, sparse models
that choose by learned scores, at random, statically (the same locations in every picture), by the
labels, or nothing, and the dense model is trained on. Finished units are read again from the work
directory, interrupted trainings resumed. To use more cores, run several processes with different
seeds and --out, then one for all seeds with --finished. Writes choice.json (`rows`, one per model;
`differences`, with intervals; `times`), choice.md and choice.png.
"""

import argparse
import itertools
import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from choice_recipes import RECIPES
from choice_report import draw_choices, write_report
from choice_timing import times
from choice_training import TASKS, TESTED_ONLY, Laboratory, Unit, images_of, scores

from mmdyn import cli
from mmdyn.analysis.machine import describe_machine
from mmdyn.memory import keep_freed_memory
from mmdyn.whole_files import write_figure, write_json

LADDERS = ((0.3, 0.2, 0.1), (0.7, 0.5, 0.3))
NOTHING = (0.001, 0.001, 0.001)
"""One location of a picture takes the slow path."""
METHODS = ('learned', 'random', 'oracle', 'static', *TESTED_ONLY)
DRAWS = {False: 2000, True: 300}
"""Of images and seeds, for segmentors and detectors."""
COMPARISONS = (
    ('learned', 'random'),
    ('learned', 'static'),
    ('inverted', 'random'),
    ('inverted', 'learned'),
    ('oracle', 'random'),
    ('oracle in test', 'random'),
    ('learned', 'fast only'),
    ('learned', 'dense longer'),
    ('random', 'dense longer'),
    ('fast only', 'dense longer'),
    ('dense longer', 'dense'),
)
Model = tuple[str, tuple[float, ...], str]
"""Method, ladder and recipe of a :class:`Unit`."""
_LADDER_OF = {'dense': (), 'dense longer': (), 'fast only': NOTHING}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line; ends the process with code 2 if it makes no sense."""
    parser = common.seed_parser(__doc__, 'choice')
    parser.add_argument('--data', type=Path, required=True, help='folder with nuclei and camvid')
    parser.add_argument('--tasks', nargs='+', choices=TASKS, default=list(TASKS))
    parser.add_argument('--methods', nargs='+', choices=METHODS, default=list(METHODS))
    parser.add_argument(
        '--recipes',
        nargs='+',
        choices=list(RECIPES)[1:],
        default=[],
        help='also fine-tune in these ways',
    )
    parser.add_argument(
        '--finished', action='store_true', help='train nothing: report what is finished'
    )
    parser.add_argument(
        '--time', action='store_true', help='also time the models; nothing else should run'
    )
    parser.add_argument(
        '--pictures',
        nargs=2,
        action='append',
        default=[],
        metavar=('TASK', 'FILE'),
        help="also draw where the first seed's models compute on a picture of the task's folder",
    )
    parser.add_argument(
        '--threads', type=cli.count, default=1, help='CPU threads (default: %(default)s)'
    )
    return common.parse_seeds(parser, argv)


def units(
    task: str, seed: int, methods: Sequence[str] = METHODS, recipes: Sequence[str] = ()
) -> Iterator[Unit]:
    """The models of a task and seed, in the order of training."""
    yield Unit(task, seed, 'dense')
    yield Unit(task, seed, 'dense longer')
    yield Unit(task, seed, 'fast only', NOTHING)
    for ladder, method in itertools.product(LADDERS, methods):
        yield Unit(task, seed, method, ladder)
    for recipe in recipes:
        ladder = LADDERS[RECIPES[recipe].ladder]
        yield Unit(task, seed, 'learned', ladder, recipe)
        if RECIPES[recipe].for_random:
            yield Unit(task, seed, 'random', ladder, recipe)


class Draws:
    """Metrics of one task's units on the same drawn images.

    Args:
        laboratory: with the results.
        task: whose.
    """

    def __init__(self, laboratory: Laboratory, task: str) -> None:
        self.laboratory, self.task = laboratory, TASKS[task]
        self.random = np.random.default_rng(0)
        self._images: np.ndarray | None = None
        self._known: dict[str, dict[str, np.ndarray]] = {}

    def of(self, unit: Unit) -> dict[str, np.ndarray]:
        """(draws,) in per cent for each metric."""
        key = f'{unit.seed}/{unit.name}'
        if key not in self._known:
            with np.load(unit.folder(self.laboratory.work_dir) / 'images.npz') as file:
                arrays = dict(file)
            if self._images is None:
                count = images_of(self.task, arrays)
                self._images = self.random.multinomial(
                    count, np.full(count, 1 / count), DRAWS[self.task.detects]
                ).astype(float)
            self._known[key] = scores(self.task, arrays, self._images)
        return self._known[key]

    def interval(self, pairs: Sequence[tuple[Unit, Unit]], metric: str) -> tuple[float, float]:
        """95 % interval of the mean difference over images and seeds.

        A bootstrap of n seeds has (n - 1) / n of their variance; that is made up for.

        Args:
            pairs: two units of each seed.
            metric: its name.
        """
        each = np.stack([self.of(one)[metric] - self.of(other)[metric] for one, other in pairs])
        seeds, mean = len(each), each.mean(axis=0)
        drawn = np.random.default_rng(1).integers(seeds, size=each.shape)
        between = np.take_along_axis(each, drawn, axis=0).mean(axis=0) - mean
        factor = (seeds / (seeds - 1)) ** 0.5 if seeds > 1 else 1.0
        low, high = np.percentile(mean + factor * between, [2.5, 97.5])
        return float(low), float(high)


def comparisons(recipes: Sequence[str]) -> Iterator[tuple[tuple[float, ...], Model, Model]]:
    """Ladder and the two models of every difference that is reported."""
    for ladder, names in itertools.product(((), *LADDERS), COMPARISONS):
        if (names[0] in _LADDER_OF) == (not ladder):
            one, other = ((name, _LADDER_OF.get(name, ladder), '') for name in names)
            yield ladder, one, other
    for recipe in recipes:
        ladder = LADDERS[RECIPES[recipe].ladder]
        for_random = RECIPES[recipe].for_random
        learned = ('learned', ladder, recipe)
        yield ladder, learned, ('learned', ladder, '')
        yield ladder, learned, ('random', ladder, recipe if for_random else '')
        if for_random:
            yield ladder, ('random', ladder, recipe), ('random', ladder, '')


def differences(laboratory: Laboratory, done: Sequence[tuple[Unit, dict]]) -> list[dict[str, Any]]:
    """Compare models on the seeds that have both."""
    found = []
    rows = dict(done)
    recipes = [name for name in RECIPES if name and any(unit.recipe == name for unit, _ in done)]
    for task in dict.fromkeys(unit.task for unit, _ in done):
        draws = Draws(laboratory, task)
        seeds = sorted({unit.seed for unit, _ in done if unit.task == task})
        for ladder, one, other in comparisons(recipes):
            pairs = [(Unit(task, seed, *one), Unit(task, seed, *other)) for seed in seeds]
            pairs = [(a, b) for a, b in pairs if a in rows and b in rows]
            if not pairs:
                continue
            for metric in TASKS[task].metrics:
                each = [rows[a][metric] - rows[b][metric] for a, b in pairs]
                low, high = draws.interval(pairs, metric)
                found.append(
                    dict(
                        task=task,
                        ladder=list(ladder),
                        recipe=one[2],
                        metric=metric,
                        first=one[0],
                        second=other[0],
                        difference=float(np.mean(each)),
                        low=low,
                        high=high,
                        each=each,
                    )
                )
    return found


def command_of(args: argparse.Namespace) -> str:
    """The command line that gives these results."""
    words = ['python benchmarks/choice.py --data FOLDER --tasks', *args.tasks]
    words += ['--seeds', *map(str, args.seeds), '--threads', str(args.threads)]
    if args.methods != list(METHODS):
        words += ['--methods', *(f"'{name}'" if ' ' in name else name for name in args.methods)]
    if args.recipes:
        words += ['--recipes', *args.recipes]
    return ' '.join(words)


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; returns the exit code."""
    args = parse_args(argv)
    warnings.simplefilter('ignore')  # of the libraries
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    laboratory = Laboratory(args.work_dir, args.data)
    path = args.out / 'choice.json'
    with cli.exit_on_bad_input() as prepared:
        args.out.mkdir(parents=True, exist_ok=True)
        for task in (*args.tasks, *(task for task, _ in args.pictures)):
            laboratory.check(task)
        wanted = [
            unit
            for seed, task in itertools.product(args.seeds, args.tasks)
            for unit in units(task, seed, args.methods, args.recipes)
            if not args.finished or laboratory.finished(unit)
        ]
        if not wanted:
            raise ValueError(f'nothing is finished in {args.work_dir}: run without --finished')
        prepared()
        row_of = laboratory.finished if args.finished else laboratory.result
        done = [(unit, row_of(unit)) for unit in wanted]
    result = dict(
        machine=describe_machine(),
        rows=[row for _, row in done],
        differences=differences(laboratory, done),
    )
    if args.time:
        result['times'] = [
            one for task in args.tasks for one in times(laboratory, task, args.seeds[0], LADDERS)
        ]
    else:  # those measured before, and where
        before = json.loads(path.read_text()) if path.exists() else {}
        result['times'] = before.get('times', [])
        result['machine'] = before.get('machine', result['machine'])
    write_json(path, result)
    print(write_report(args.out, result, command_of(args)))
    if args.pictures:
        figure = draw_choices(laboratory, args.pictures, args.seeds[0], LADDERS)
        write_figure(args.out / 'choice_pictures.png', figure, dpi=100)
    return 0


if __name__ == '__main__':
    sys.exit(cli.run(main))
