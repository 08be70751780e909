"""The data lie elsewhere than a config says: one folder in place of another."""

import os

from mmengine.config import Config

from mmdyn.engine.data_check import leaf_datasets
from mmdyn.engine.metrics import metrics_of

_SPLITS = ('train', 'val', 'test')


def set_data_root(cfg: Config, root: str) -> None:
    """Put a folder in the place of the one that a config's data sets and metrics read from.

    Data sets in wrappers are reached too; so are annotation files that metrics such as
    mmdet's ``CocoMetric`` read by themselves.

    Args:
        cfg: A whole config, edited in place.
        root: The folder.

    Raises:
        ValueError: If the config's data sets name no ``data_root``, or several.
    """
    leaves = [
        leaf
        for split in _SPLITS
        for _, leaf in leaf_datasets(cfg.get(f'{split}_dataloader'))
        if leaf.get('data_root')
    ]
    roots = sorted({os.path.normpath(leaf['data_root']) for leaf in leaves})
    if len(roots) != 1:
        found = ' and '.join(roots) if roots else 'no data_root'
        raise ValueError(
            f'--data-root {root}: the data sets of the config name {found}, so it is not clear '
            'what to put it in place of: say where each one lies, with --cfg-options '
            'train_dataloader.dataset.data_root=FOLDER and so on'
        )
    for leaf in leaves:
        leaf['data_root'] = root
    for split in _SPLITS:
        for metric in metrics_of(cfg.get(f'{split}_evaluator')):
            _move_annotations(metric, roots[0], root)


def _move_annotations(metric: dict, old: str, new: str) -> None:
    for key in ('ann_file', 'seg_prefix'):
        path = metric.get(key)
        if isinstance(path, str) and not _below(path, old).startswith('..'):
            metric[key] = os.path.join(new, _below(path, old))


def _below(path: str, root: str) -> str:
    """The way from a folder to a path, both absolute or both relative; '..' first if outside."""
    same = os.path.isabs(path) == os.path.isabs(root)
    return os.path.relpath(path, root) if same else os.pardir
