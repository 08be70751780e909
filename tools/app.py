"""Serve a web page that compares a sparse model with a dense one on pictures you give it."""

import argparse
import atexit
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # a checkout, not installed

from mmdyn import cli

EXAMPLES = 12  # of a folder, at most
EXAMPLE_SCENES = 6


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line; ends the process with code 2 if it makes no sense."""
    parser = argparse.ArgumentParser(description=__doc__, epilog=cli.EPILOG)
    add = parser.add_argument
    config_help = "the sparse model's config, a file or mmdyn::NAME.py (default: the demo's models)"
    add('config', nargs='?', help=config_help)
    add('checkpoint', nargs='?', help='its weights: a file or an address')
    add(
        '--dense',
        nargs=2,
        metavar=('CONFIG', 'CHECKPOINT'),
        help='a dense model to compare with (default: the sparse one with its ratios at their '
        "highest; of the demo, the demo's)",
    )
    train_help = "train the demo's models first, unless that is done (about 3 minutes on 2 cores)"
    add('--train', action='store_true', help=train_help)
    host_help = 'address to listen at; others than %(default)s let other machines in'
    add('--host', default='127.0.0.1', help=host_help)
    add('--port', type=int, help='(default: the first free one from 7860)')
    upload_help = 'largest file that is accepted (default: %(default)g)'
    add('--max-upload', type=float, default=10.0, metavar='MIB', help=upload_help)
    pixels_help = 'most pixels of a picture that is accepted (default: %(default)g)'
    add('--max-pixels', type=float, default=40.0, metavar='MILLIONS', help=pixels_help)
    side_help = 'larger pictures are shrunk to this longer side (default: %(default)s)'
    add('--max-side', type=cli.count, default=768, metavar='PIXELS', help=side_help)
    examples_help = (
        f'pictures to pick from, the first {EXAMPLES} (default: generated scenes for the demo, '
        'else none)'
    )
    add('--examples', metavar='FOLDER', help=examples_help)
    add('--threads', type=cli.count, help="CPU threads (default: torch's choice)")
    add('--device', help='cpu, cuda, cuda:1 ... (default: a GPU if there is one)')
    cli.add_prepare_argument(parser, default=True, where='; both models alike')
    cli.add_config_arguments(parser)
    args = parser.parse_args(argv)
    if args.config is not None and args.checkpoint is None:
        parser.error('a CONFIG needs its CHECKPOINT (or give neither, for the demo)')
    if args.config is None and args.dense is not None:
        parser.error('--dense goes with CONFIG and CHECKPOINT')
    if args.config is not None and args.train:
        parser.error("--train is for the demo's models: leave CONFIG and CHECKPOINT out")
    if args.port is not None and not 1 <= args.port <= 65535:
        parser.error(f'--port must lie in 1..65535, got {args.port}')
    if not 0 < args.max_upload < float('inf'):
        parser.error(f'--max-upload must be above 0 and finite, got {args.max_upload}')
    return args


def find_models(args: argparse.Namespace) -> tuple[tuple[str, str], tuple[str, str] | None]:
    """Config and checkpoint of the sparse model, and of the dense one if it is another."""
    if args.config is not None:
        return (args.config, args.checkpoint), args.dense
    from mmdyn.analysis import demo_models as demo
    from mmdyn.analysis.progress import Meter

    if args.train:
        with Meter(demo.costs()) as meter:
            found = demo.train_both(demo.WORK_DIR, seed=0, meter=meter)
    else:
        found = demo.find_checkpoints(demo.WORK_DIR)
    if found is None:
        raise FileNotFoundError(
            f'there are no trained models in {demo.WORK_DIR}: make them with `mmdyn demo` (about 4 '
            'minutes on 2 cores), start this with --train, or give a CONFIG and its CHECKPOINT'
        )
    dense, sparse = found
    return (demo.SPARSE, sparse), (demo.DENSE, dense)


def load_comparer(args: argparse.Namespace):
    """The models, ready to be compared."""
    from mmdyn.apis import DynamicInferencer
    from mmdyn.app.comparing import Comparer

    sparse, dense = find_models(args)
    names = ('device', 'trust_checkpoint', 'max_pixels', 'prepare')
    options = {name: getattr(args, name) for name in names}
    return Comparer(
        DynamicInferencer(*sparse, cfg_options=args.cfg_options, **options),
        None if dense is None else DynamicInferencer(*dense, **options),
        cpu_threads=args.threads,
    )


def find_examples(args: argparse.Namespace, comparer, folder: Path) -> list[Path]:
    """Pictures to pick from; generated ones are written into the folder."""
    if args.examples is not None:
        from mmdyn.engine.picture_reader import pictures_in

        return pictures_in(args.examples, comparer.sparse.reader, EXAMPLES)
    if args.config is not None:
        return []
    from PIL import Image

    from mmdyn.datasets.scene_renderer import render_mosaic

    files = [folder / f'scenes_{index}.png' for index in range(EXAMPLE_SCENES)]
    for index, file in enumerate(files):
        # 512x512: in smaller pictures there is little to save. A stream of random numbers (2)
        # that no split of the data set takes.
        Image.fromarray(render_mosaic((0, 2, index))).save(file)
    return files


def import_page(uploads: Path):
    """The page's module; gradio keeps its files in ``uploads``."""
    # Read when gradio is imported.
    os.environ |= {'GRADIO_TEMP_DIR': str(uploads), 'GRADIO_ANALYTICS_ENABLED': 'False'}
    try:
        from mmdyn.app import page
    except ImportError as error:
        raise ImportError(
            f"the page needs gradio ({error}): pip install -r requirements/app.txt or 'mmdyn[app]'"
        ) from error
    return page


def terminate(*_: object) -> None:
    """Handle SIGTERM as Ctrl-C, the second time too: uploads are removed in any case."""
    raise cli.Terminated


def main(argv: list[str] | None = None) -> int:
    """Serves the page until it is interrupted."""
    args = parse_args(argv)
    with contextlib.ExitStack() as stack:
        stack.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, terminate))
        with cli.exit_on_bad_input():
            # Gone when the server ends, with all that was uploaded.
            made = tempfile.TemporaryDirectory(prefix='mmdyn-app-', ignore_cleanup_errors=True)
            folder = Path(stack.enter_context(made))
            page = import_page(folder / 'uploads')
            stack.enter_context(cli.checkpoints_as_data(args.trust_checkpoint))
            comparer = load_comparer(args)
            examples = find_examples(args, comparer, folder)
            blocks = page.build_page(comparer, max_side=args.max_side, examples=examples)
            where = dict(host=args.host, port=args.port)
            page.serve(blocks, folder / 'uploads', max_bytes=int(args.max_upload * 2**20), **where)
        if args.host.strip('[]') not in page.LOOPBACK:
            print(
                f'warning: --host {args.host} lets anyone who reaches this machine use the page; '
                'there is no password',
                file=sys.stderr,
            )
        print(f'the page is at {blocks.local_url} (Ctrl-C ends it)', flush=True)
        try:
            page.wait(blocks)
        except KeyboardInterrupt as end:
            code = cli.TERMINATED if isinstance(end, cli.Terminated) else cli.INTERRUPTED
            for number in (signal.SIGINT, signal.SIGTERM):  # impatience leaves no files behind
                signal.signal(number, signal.SIG_IGN)
            # A prediction may go on in a thread of the server, and write its results; torch aborts
            # the process when the interpreter is taken down around it.
            atexit.register(os._exit, code)
            atexit.register(shutil.rmtree, folder, ignore_errors=True)  # before that
            raise
    return 0


if __name__ == '__main__':
    sys.exit(cli.run(main))
