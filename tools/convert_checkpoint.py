"""Turn a checkpoint of another release, dense or sparse, into one that mmdyn's models load."""

import argparse
import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec('mmdyn') is None:  # run from a checkout, nothing installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmdyn import cli

TARGETS = ('dynamic-swin', 'dynamic-convnext', 'dynamic-vit')


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line; ends the process with code 2 if it makes no sense."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='The layout is recognised by its keys: the original DynamicSwin, DynamicConvNeXt '
        "and DynamicViT; Microsoft's Swin and FAIR's ConvNeXt; timm's Swin, ConvNeXt and ViT or "
        "DeiT; those of mmseg, mmdet and mmpretrain. Of any width and depth; a backbone's alone, "
        "or a whole segmentor's or detector's, whose other parts stay as they are. What is not "
        f'understood, incomplete or of wrong shapes is refused, and nothing written. {cli.EPILOG}',
    )
    parser.add_argument('source', metavar='SRC', help='the checkpoint file to convert')
    parser.add_argument('target', metavar='DST', help='the file to write')
    parser.add_argument(
        '--to', choices=TARGETS, required=True, help='the kind of backbone that is to load it'
    )
    parser.add_argument(
        '--trust-checkpoint',
        '--trust',
        action='store_true',
        help='read SRC even if it holds more than data, which runs code that it brings: only if '
        'you trust its source',
    )
    parser.add_argument(
        '--force', action='store_true', help='overwrite DST if it exists (default: refuse)'
    )
    cli.add_traceback_argument(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Converts; returns the exit code."""
    args = parse_args(argv)
    source, target = Path(args.source).expanduser(), Path(args.target).expanduser()
    with cli.exit_on_bad_input(), cli.checkpoints_as_data(args.trust_checkpoint):
        from mmdyn.converters import formats
        from mmdyn.converters.reading import read_checkpoint
        from mmdyn.version import __version__
        from mmdyn.whole_files import write_checkpoint

        check_target(target, source, args.force)
        checkpoint = read_checkpoint(args.source, args.trust_checkpoint)
        try:
            state, beside = formats.weights_of(checkpoint)
            done = formats.convert(state, args.to)
        except ValueError as error:
            raise ValueError(f'{args.source}: {error}') from error
        meta = dict(format=done.format, source=source.name, mmdyn_version=__version__)
        write_checkpoint(target, dict(state_dict=done.state_dict, meta=meta))
    show([*report(done, beside, args.to), ('written', str(target))])
    return 0


def check_target(target: Path, source: Path, force: bool) -> None:
    """Checks, before any work is done, that the result may be written."""
    from mmdyn.checks import check_file

    check_file('DST', target)
    if not target.exists():
        return
    if source.exists() and target.samefile(source):
        raise ValueError(f'{target} is the file to convert; name another one for the result')
    if not force:
        raise ValueError(f'{target} exists; pass --force to overwrite it, or name another file')


def report(done, beside: tuple[str, ...], to: str) -> list[tuple[str, str]]:
    """What a conversion did, as headings and texts.

    Args:
        done: a ``mmdyn.converters.formats.Conversion``.
        beside: entries of the file that are no weights.
        to: name of the family.
    """
    from mmdyn.converters.formats import FAMILIES

    family, check = FAMILIES[to], done.check
    # A guess for a ViT, see the family's remark.
    guessed = {'num_heads'} if to == 'dynamic-vit' else set()
    shown = {name: value for name, value in check.arguments.items() if name not in guessed}
    converted = len(done.state_dict) - len(done.parts) - len(done.added)
    rows = [
        ('format', done.format),
        ('shapes', ', '.join(f'{name} {value}' for name, value in shown.items())),
        ('converted', f'{converted} tensors of the backbone'),
    ]
    if family.remark:
        rows.insert(2, ('', family.remark))
    if done.parts:
        parts = count(name.partition('.')[0] for name in done.parts)
        listed = ', '.join(f'{part} {tensors}' for part, tensors in parts.items())
        rows.append(('kept as it is', f'{len(done.parts)} tensors of other parts: {listed}'))
    for reason, tensors in count(done.dropped.values()).items():
        rows.append(('left out', f'{tensors} tensors: {reason}'))
    if beside:
        rows.append(('left out', f'beside the weights: {", ".join(beside)}'))
    if done.added:
        rows.append(('added', f'{", ".join(done.added)}: zeros, as the model has none'))
    if check.predictors:
        rows.append(('predictors', f'{check.predictors} found'))
    else:
        new = 'predictors and fast paths' if to != 'dynamic-vit' else 'predictors'
        rows.append(('predictors', f'none found: {new} start untrained'))
    norms = dict.fromkeys(n.partition('.')[0] for n in check.missing)
    rows.append(('missing', f'{", ".join(norms)}: start untrained' if norms else 'nothing'))
    rows.append(('unexpected', 'nothing'))
    rows.append(('checked', f'names and shapes, against mmdyn.{family.backbone}'))
    return rows


def count(values) -> dict[str, int]:
    """How often each value occurs, in order of appearance."""
    values = list(values)
    return {value: values.count(value) for value in dict.fromkeys(values)}


def show(rows: list[tuple[str, str]]) -> None:
    """Prints headings and texts in two columns."""
    from rich.console import Console
    from rich.table import Table

    from mmdyn.errors import printable

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow='fold')
    for row in rows:
        table.add_row(*map(printable, row))
    Console(markup=False, highlight=False).print(table)


if __name__ == '__main__':
    sys.exit(cli.run(main))
