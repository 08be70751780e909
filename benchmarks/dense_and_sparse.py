"""One picture through a dense and a sparse model: predictions, times, where the sparse computed.

The dense model runs as the host runs it unless ``--prepare-dense`` is given, the sparse one is
prepared; both are timed in turns, in one process.
"""

import argparse
import sys
import warnings
from pathlib import Path

import numpy as np
from tile_pictures import draw_rows

from mmdyn import cli
from mmdyn.analysis.machine import describe_machine
from mmdyn.apis import DynamicInferencer, Inference
from mmdyn.app.comparing import Comparer
from mmdyn.visualization.inference import dim, kept_counts, predicted
from mmdyn.whole_files import write_figure


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line; ends the process with code 2 if it makes no sense."""
    parser = argparse.ArgumentParser(description=__doc__, epilog=cli.EPILOG)
    parser.add_argument('sparse', nargs=2, metavar=('CONFIG', 'CHECKPOINT'))
    parser.add_argument('--dense', nargs=2, metavar=('CONFIG', 'CHECKPOINT'), required=True)
    parser.add_argument('--picture', required=True, metavar='FILE')
    parser.add_argument('--out', type=Path, required=True, metavar='FILE.png')
    parser.add_argument('--prepare-dense', action='store_true', help='prepare the dense model too')
    parser.add_argument(
        '--seconds', type=float, default=30.0, help='measured (default: %(default)g)'
    )
    parser.add_argument('--threads', type=cli.count, help="CPU threads (default: torch's choice)")
    return parser.parse_args(argv)


def panels(dense: Inference, sparse: Inference, ms: tuple[float, float]) -> list:
    """Titled pictures: the picture, both predictions, where backbone and head computed in full.

    Args:
        dense, sparse: of the same picture.
        ms: that each model takes.
    """
    picture, choices, tiles = sparse.picture.rgb, sparse.choices, sparse.tiles
    share = np.mean([choice.fraction for choice in choices])
    kept = kept_counts(sparse) / len(choices)
    return [
        ('picture', picture),
        (f'dense (mmseg): {ms[0]:.0f} ms', predicted(dense)),
        (f'sparse (mmdyn): {ms[1]:.0f} ms', predicted(sparse)),
        (f'backbone: {share:.0%} on the slow path', dim(picture, kept)),
        (
            f'head: {tiles.fraction:.0%} in full resolution',
            dim(picture, tiles.on_picture(kept.shape)),
        ),
    ]


def main(argv: list[str] | None = None) -> int:
    """Times and draws; returns the exit code."""
    args = parse_args(argv)
    warnings.filterwarnings('ignore')  # of the libraries
    with cli.exit_on_bad_input():
        dense = DynamicInferencer(*args.dense, device='cpu', prepare=args.prepare_dense)
        sparse = DynamicInferencer(*args.sparse, device='cpu')
        compare = Comparer(sparse, dense, cpu_threads=args.threads, seconds=args.seconds)
        if set(compare.ratios) != {'keep_ratio', 'tile_ratio'}:
            raise ValueError(f'{args.sparse[0]}: give a config with a sparse backbone and tiles')
        picture = sparse.reader.read(args.picture)
        args.out.parent.mkdir(parents=True, exist_ok=True)
    inferences, rows, _ = compare(picture)
    times = tuple(row.latency.median for row in rows)
    write_figure(args.out, draw_rows([panels(*inferences, times)]), dpi=100)
    same = (inferences[0].labels == inferences[1].labels).mean()
    machine = describe_machine()
    for row in rows:
        print(f'{row.line.kind}: {row.latency.text("{:.0f}")} ms, {row.gmacs:.1f} GMACs')
    print(f'speed-up {rows[1].speedup.text("{:.2f}")}, same class in {same:.2%} of the pixels')
    print(f'{machine["cpu"]}, {machine["threads"]} threads; wrote {args.out}')
    return 0


if __name__ == '__main__':
    sys.exit(cli.run(main))
