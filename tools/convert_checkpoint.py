"""Convert a checkpoint of another code base, dense or sparse, for mmdyn's models."""

import argparse
import sys
from collections import Counter
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # for use from a checkout

from mmdyn import cli

TARGETS = ('dynamic-swin', 'dynamic-convnext', 'dynamic-vit', 'dynamic-lvvit')


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 on a usage error."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='The layout is recognised by its keys; docs/convert.md lists the supported ones. '
        'SRC may hold a backbone, with or without a classifier, or a whole segmentor or detector, '
        'whose other parts are copied unchanged. Unknown or incomplete checkpoints and wrong '
        'shapes are refused, without '
        f'writing a file. {cli.EPILOG}',
    )
    parser.add_argument('source', metavar='SRC', help='the checkpoint file to convert')
    parser.add_argument('target', metavar='DST', help='the file to write')
    parser.add_argument(
        '--to', choices=TARGETS, required=True, help='the backbone that will load the result'
    )
    parser.add_argument(
        '--force', action='store_true', help='overwrite DST if it exists (default: refuse)'
    )
    cli.add_trust_arguments(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Convert; returns the exit code."""
    args = parse_args(argv)
    source, target = Path(args.source).expanduser(), Path(args.target).expanduser()
    with cli.exit_on_bad_input(), cli.checkpoints_as_data(args.trust_checkpoint):
        from mmdyn.checks import check_file
        from mmdyn.converters.checkpoint_files import read_checkpoint
        from mmdyn.converters.formats import FAMILIES, convert, dataset_meta_of, weights_of
        from mmdyn.errors import printable
        from mmdyn.version import __version__
        from mmdyn.whole_files import write_checkpoint

        check_file('DST', target)
        if target.exists() and source.exists() and target.samefile(source):
            raise ValueError(f'{target} is the file to convert; name another one for the result')
        if target.exists() and not args.force:
            raise ValueError(f'{target} exists; pass --force to overwrite it, or name another file')
        checkpoint = read_checkpoint(args.source, args.trust_checkpoint)
        try:
            state, others = weights_of(checkpoint)
            done = convert(state, args.to)
        except ValueError as error:
            raise ValueError(f'{args.source}: {error}') from error
        meta = dict(format=done.format, source=source.name, mmdyn_version=__version__)
        if done.parts and (classes := dataset_meta_of(checkpoint)):  # which the head predicts
            meta['dataset_meta'] = classes
        write_checkpoint(target, dict(state_dict=done.state_dict, meta=meta))
    for heading, text in [*report(done, others, FAMILIES[args.to]), ('written', target)]:
        print(printable(f'{heading:<15} {text}'))
    return 0


def report(done, others: tuple[str, ...], family) -> list[tuple[str, str]]:
    """Headings and texts on a conversion; ``others`` are the entries that are not weights."""
    shown = (f'{k} {v}' for k, v in done.arguments.items() if k not in family.assumed)
    rows = [('format', done.format), ('shapes', ', '.join(shown))]
    rows += [('', f"{name} is not stored: the config's value is used") for name in family.assumed]
    rows.append(('converted', f'{len(done.state_dict) - len(done.parts)} tensors of the backbone'))
    parts = Counter(name.partition('.')[0] for name in done.parts)
    rows += [('copied', f'{count} tensors of {part}') for part, count in parts.items()]
    reasons = Counter(done.dropped.values())
    rows += [('left out', f'{count} tensors: {reason}') for reason, count in reasons.items()]
    if others:
        rows.append(('left out', f'besides weights: {", ".join(others)}'))
    found = f'{done.predictors} found' if done.predictors else 'none found: they start untrained'
    norms = ', '.join(dict.fromkeys(name.partition('.')[0] for name in done.missing))
    rows.append(('predictors', found))
    rows.append(('missing', f'{norms}: start untrained' if norms else 'nothing'))
    rows.append(('checked', f'names and shapes, against mmdyn.{family.backbone}'))
    return rows


if __name__ == '__main__':
    sys.exit(cli.run(main))
