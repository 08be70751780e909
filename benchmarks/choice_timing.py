"""Time and multiply-adds of the models of benchmarks/choice.py."""

from collections.abc import Sequence
from typing import Any

from choice_training import TASKS, Laboratory, Unit

from mmdyn.analysis.evaluating import ModelTester
from mmdyn.analysis.lines import PARTS, lines_of
from mmdyn.analysis.rows import measure_lines

PICTURES, ROUNDS = 8, 24


def times(
    laboratory: Laboratory, task: str, seed: int, ladders: Sequence[Sequence[float]]
) -> list[dict[str, Any]]:
    """Time the dense model and the sparse one at each ladder, in turns, end to end at batch 1.

    The policy does not matter: each executes as many slow and fast updates.

    Returns:
        A record for each: ``ms`` and ``speedup`` over the host's dense model are medians.
    """
    testers = []
    for unit in (Unit(task, seed, 'dense'), Unit(task, seed, 'learned', tuple(ladders[0]))):
        config = TASKS[task].sparse if unit.ladder else TASKS[task].dense
        checkpoint = laboratory.checkpoint(unit)
        folder, root = unit.folder(laboratory.work_dir), laboratory.data_root(task)
        testers.append(ModelTester(config, checkpoint, folder, data_root=root))
    lines = lines_of(testers[0].loaded, random=False, of='dense')
    lines += lines_of(testers[1].loaded, list(ladders), random=False, of='sparse')
    costs = measure_lines(lines, PARTS[1], testers[0].batches(PICTURES), rounds=ROUNDS)
    first = costs[lines[0].name]
    return [
        dict(
            task=task,
            model=line.of,
            ladder=[] if line.of == 'dense' else list(line.keep_ratios),
            ms=round(costs[line.name].latency.median, 3),
            speedup=round(costs[line.name].speedup(first).median, 3),
            gmacs=round(costs[line.name].macs / 1e9, 4),
        )
        for line in lines
    ]
