"""The model zoo: tables from the metafiles in configs/.

Writes model_zoo.md beside this file and the tables in configs/*/README.md. With --measure it first
counts the multiply-adds of the named configs, of all if none is named, and writes them into the
metafiles.
The metrics there are entered by hand, each with the command that gave it or its source.
"""

import argparse
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from mmdyn import cli
from mmdyn.analysis.tables import to_markdown
from mmdyn.whole_files import write_text

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / 'benchmarks' / 'model_zoo.md'
BEGIN, END = '<!-- model zoo: written by benchmarks/model_zoo.py -->\n', '<!-- end of model zoo -->'
COMMAND = 'python benchmarks/model_zoo.py --measure'

DENSE, CONFIGURED = 'dense twin', 'as configured'
COLUMNS = (DENSE, 'keep ratio 1', 'keep ratio 0.9', CONFIGURED, 'keep ratio 0.5')
"""What is counted and tested. Metric names end with their column, ``mIoU(keep ratio 1)``; without
one it is the config as is. Later keep ratios decrease from the first."""

INTRODUCTION = """\
# Model zoo: multiply-adds and metrics of every config

**No weights are released**, and nothing sparse was trained on ADE20K or COCO.
[Which config to take](../docs/model_zoo.md).

- **measured here** comes with the command; **quoted** with the source: the hosts' figures for their
  own dense models, never ours.
- **dense twin**: the dense model that a config makes sparse. mmseg and mmdet take their ConvNeXt
  from mmpretrain; ours with everything kept, which executes the same, is counted in its place.
  Compare with *keep ratio 1*: the hosts' Swin pads maps to whole windows, up to 28 % more
  multiply-adds on small ones, and ours does not.
- **keep ratio**: the first predictor's. The others fall from it by 0.2 each (ViT: r, r², r³).
  *As configured* is 0.7, or a dense backbone under a sparse head. Heads and necks that choose tiles
  have the fraction of tiles in the config.
- **GMACs**: 10⁹ multiply-adds ([what counts](../docs/flops.md)) that one picture of noise executes,
  backbone with predictors / whole model without the mask head, whose work depends on what is found.
- Metrics in per cent, on the data's validation set, single scale. ± is the standard deviation over
  seeds.

Written by `python benchmarks/model_zoo.py` from the metafiles in `configs/`; with `--measure` it
counts anew.
"""


class _Dumper(yaml.SafeDumper):
    """Block style, except for mappings of numbers."""

    def represent_mapping(self, tag: str, mapping: Any, flow_style: bool | None = None) -> Any:
        numbers = all(isinstance(value, (int, float)) for value in mapping.values())
        return super().represent_mapping(tag, mapping, flow_style=numbers)


def read() -> dict[Path, dict[str, Any]]:
    """Read the metafiles in the order of model-index.yml."""
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
    return {ROOT / name: yaml.safe_load((ROOT / name).read_text()) for name in index}


def write(path: Path, metafile: Mapping[str, Any]) -> None:
    """Write a metafile."""
    text = yaml.dump(metafile, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)
    write_text(path, text)


def measure(model: Mapping[str, Any]) -> dict[str, Any]:
    """Count a config's multiply-adds.

    Args:
        model: a metafile's entry; ``GMACs: {Input: HxW}`` in its metadata gives the size.

    Returns:
        Metadata to update.
    """
    from mmdyn.analysis.flops import count_parameters
    from mmdyn.analysis.images import noise_samples
    from mmdyn.engine.loading import load_model
    from mmdyn.models.deciding import tile_part

    metadata = model['Metadata']
    loaded = load_model(str(ROOT / model['Config']))
    backbone, tiles = loaded.backbone, tile_part(loaded.model)
    (picture,) = noise_samples(loaded.cfg, tuple(map(int, metadata['GMACs']['Input'].split('x'))))
    backbones, wholes = (
        {DENSE: macs} for macs in _count_twin(loaded, metadata.get('Dense Twin'), picture)
    )
    backbones[CONFIGURED], wholes[CONFIGURED] = _count(loaded.model, picture)
    # Maps have the same size at all ratios, so the rest of the model costs the same.
    above = wholes[CONFIGURED] - backbones[CONFIGURED]
    configured = backbone.keep_ratios if loaded.is_sparse else ()
    for column in (column for column in COLUMNS if 'ratio' in column and loaded.is_sparse):
        backbone.set_keep_ratios(loaded.ladder(float(column.rpartition(' ')[2])))
        backbones[column] = _count_backbone(loaded.model, picture)
        wholes[column] = backbones[column] + above
    found: dict[str, Any] = {
        'Parameters': list(count_parameters(loaded.model).values())[-1].total()
    }
    if configured:
        found['Keep Ratios'] = ', '.join(f'{ratio:g}' for ratio in configured)
    if tiles is not None:
        found['Tile Ratio'] = tiles.tile_ratio
    parts = {
        part: {column: round(macs[column] / 1e9, 3) for column in COLUMNS if column in macs}
        for part, macs in (('Backbone', backbones), ('Whole Model', wholes))
    }
    return found | {'GMACs': {'Input': metadata['GMACs']['Input'], 'Measured': COMMAND, **parts}}


def _count(model: Any, picture: Any, without: str = '') -> tuple[int, int]:
    """Multiply-adds of backbone and whole model, without one part and without mask heads."""
    from mmdyn.analysis.flops import count_prediction

    whole, _ = count_prediction(model, picture)
    whole = whole.without(without).without('mask_head').total
    return _count_backbone(model, picture, without), whole


def _count_backbone(model: Any, picture: Any, without: str = '') -> int:
    from mmdyn.analysis.counting import count_executed

    inputs = model.data_preprocessor(picture, training=False)['inputs']
    count, _ = count_executed(lambda: model.backbone(inputs), model.backbone)
    return count.without(without).total


def _count_twin(loaded: Any, twin: Mapping[str, Any] | None, picture: Any) -> tuple[int, int]:
    from mmengine.config import Config

    from mmdyn.analysis.counting import PREDICTORS
    from mmdyn.analysis.lines import dense
    from mmdyn.analysis.stock import build_stock_model
    from mmdyn.config_lookup import resolve_config_path
    from mmdyn.engine.loading import load_model

    if twin is None:
        return _count(build_stock_model(loaded), picture)
    path = resolve_config_path(twin['Config'])
    cfg = Config.fromfile(path, import_custom_modules=False)  # without mmpretrain
    if cfg.model.backbone.type.startswith('mmpretrain.'):
        model = loaded.model
    else:
        model = load_model(twin['Config']).model
    with dense(model):
        return _count(model, picture, PREDICTORS)


def measure_all(metafiles: Mapping[Path, dict[str, Any]], names: list[str]) -> None:
    """Count the named models (default: all) and write their metafiles."""
    from mmdyn.analysis.progress import Meter

    models = {model['Name']: (path, model) for path, model in models_of(metafiles)}
    unknown = sorted(set(names) - set(models))
    if unknown:
        raise ValueError(f'--measure: no metafile has {unknown[0]}; use {", ".join(models)}')
    with Meter(dict.fromkeys(names or models, 1)) as meter:
        for name in names or models:
            path, model = models[name]
            with meter.stage(name, 1):
                model['Metadata'].update(measure(model))
            write(path, metafiles[path])


def models_of(metafiles: Mapping[Path, dict[str, Any]]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Entries of all models, with their files."""
    for path, metafile in metafiles.items():
        for model in metafile['Models']:
            yield path, model


def table(metafile: Mapping[str, Any], root: str) -> str:
    """Table of a method with its list of sources.

    Args:
        metafile: of the method.
        root: relative path from the page to the repository's root, ``'../'``.
    """
    sources: dict[str, int] = {}

    def cite(*entries: Mapping[str, Any]) -> str:
        kinds: dict[str, list[str]] = {}
        for entry in entries:
            number = sources.setdefault(_source(entry, root), len(sources) + 1)
            numbers = kinds.setdefault('quoted' if 'Quoted' in entry else 'measured here', [])
            numbers += [str(number)] if str(number) not in numbers else []
        found = [f'*{kind}* ({", ".join(numbers)})' for kind, numbers in kinds.items()]
        return ', '.join(found) or '-'

    rows = []
    for model in metafile['Models']:
        macs = model['Metadata']['GMACs']
        rows.append(
            [
                f'[{model["Name"]}]({root}{model["Config"]})',
                f'GMACs, {macs["Input"]}',
                *(_pair(macs, column) for column in COLUMNS),
                cite(macs),
            ]
        )
        rows += [['', *row] for row in _metric_rows(model, cite)]
    headings = ('config', '', DENSE, *COLUMNS[1:], 'source')
    listed = '\n'.join(f'{number}. {text}' for text, number in sources.items())
    return f'{to_markdown(headings, rows)}\n{listed}\n'


def _pair(macs: Mapping[str, Any], column: str) -> str:
    counts = [macs[part].get(column) for part in ('Backbone', 'Whole Model')]
    if None in counts:
        return '-'
    digits = 3 if max(counts) < 10 else 1
    return ' / '.join(f'{count:.{digits}f}' for count in counts)


def _metric_rows(model: Mapping[str, Any], cite: Any) -> Iterator[list[str]]:
    """One row for each metric of the model or its dense twin: name, columns, sources."""
    twin = model['Metadata'].get('Dense Twin', {})
    data = model['Metadata']['Training Data']
    for result in model.get('Results', [{}]):
        known = [name for entry in (result, twin) for name in entry.get('Metrics', {})]
        for metric in dict.fromkeys(name for name in known if '(' not in name) or ['metric']:
            cells = [value_of(twin, metric)]
            for column in COLUMNS[1:]:
                own = column == CONFIGURED
                cells.append(value_of(result, metric if own else f'{metric}({column})'))
            if not result:
                cells[COLUMNS.index(CONFIGURED)] = model['Metadata']['Status']
            entries = [entry for entry in (twin, result) if metric in entry.get('Metrics', {})]
            yield [f'{metric}, {data}', *cells, cite(*entries)]


def value_of(entry: Mapping[str, Any], metric: str) -> str:
    """Format a metric with its deviation, if any; a dash if missing."""
    value = entry.get('Metrics', {}).get(metric)
    deviation = entry.get('Standard Deviations', {}).get(metric)
    if value is None:
        return '-'
    return f'{value:g}' if deviation is None else f'{value:.2f} ± {deviation:.2f}'


def _source(entry: Mapping[str, Any], root: str) -> str:
    if 'Quoted' in entry:
        return f'quoted from {entry["Quoted"]}'
    parts = [f'measured here by `{entry["Measured"]}`']
    if 'Page' in entry:
        parts.append(f'[{entry["Page"]}]({root}{entry["Page"]})')
    parts += [entry['Note']] if 'Note' in entry else []
    return '; '.join(parts)


def pages(metafiles: Mapping[Path, dict[str, Any]]) -> dict[Path, str]:
    """All generated pages.

    Raises:
        ValueError: if a README has no place for its table.
    """
    zoo, written = [INTRODUCTION], {}
    for metafile in metafiles.values():
        (method,) = metafile['Collections']
        readme = ROOT / method['README']
        before, begin, rest = readme.read_text().partition(BEGIN)
        _, end, after = rest.partition(END)
        if not (begin and end):
            raise ValueError(f'{method["README"]} lacks the lines {BEGIN.strip()!r} and {END!r}')
        found = table(metafile, '../../')
        page = f'../../{PAGE.relative_to(ROOT)}'
        note = f'What the columns mean, and the other methods: [model zoo]({page}).'
        written[readme] = f'{before}{begin}\n{found}\n{note}\n\n{end}{after}'
        title = f'## {method["Name"]}\n\n[README](../{method["README"]})\n'
        zoo.append(f'{title}\n{table(metafile, "../")}')
    return {PAGE: '\n'.join(zoo), **written}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 on a usage error."""
    parser = argparse.ArgumentParser(description=__doc__, epilog=cli.EPILOG)
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument(
        '--check', action='store_true', help='write nothing; exit with 1 if a page is out of date'
    )
    modes.add_argument(
        '--measure',
        nargs='*',
        metavar='CONFIG',
        help='first count the multiply-adds of these configs (default: all; about half an hour on '
        'one core)',
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Write or check the pages; returns the exit code."""
    args = parse_args(argv)
    warnings.simplefilter('ignore')  # of the libraries
    with cli.exit_on_bad_input():
        metafiles = read()
        if args.measure is not None:
            measure_all(metafiles, args.measure)
        wanted = pages(metafiles)
    old = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    for path in old:
        print(f'{"out of date" if args.check else "written"}: {path.relative_to(ROOT)}')
        if not args.check:
            write_text(path, wanted[path])
    return int(args.check and bool(old))


if __name__ == '__main__':
    sys.exit(cli.run(main))
