"""Data loaders and metrics whose errors name the file."""

import copy
from collections.abc import Callable
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner

from mmdyn.config_parts import noting_parts, part_at_fault, parts, type_name
from mmdyn.engine.coco_files import checked
from mmdyn.engine.data_check import Leaf, argument, class_names, typed_leaves
from mmdyn.errors import BadDataError, one_line


def name_bad_files(runner: Runner) -> None:
    """Make errors of a Runner's data name the file, see :class:`mmdyn.datasets.NamedSteps`.

    Call it before the loops are built. The Runner's config is not changed.
    """
    build: Callable[..., Any] = runner.build_dataloader

    def build_dataloader(loader: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(loader, dict):
            return build(loader, *args, **kwargs)
        loader = with_named_steps(loader, runner.cfg)
        leaves = typed_leaves(runner.cfg, loader)
        # A metric without an annotation file uses the data set's masks.
        masks = 'segm' in _measured(
            [runner.cfg.get(f'{kind}_evaluator') for kind in ('val', 'test')]
        )
        masks = masks or any(part.get('with_mask') for _, part in parts(loader, 'loader'))
        try:
            with checked(masks=masks), noting_parts():
                built = build(loader, *args, **kwargs)
        except BadDataError:
            raise
        except Exception as error:  # data sets raise various errors
            kind = type_name(part_at_fault(error) or {})
            mine = [leaf for leaf in leaves if type_name(leaf.config) == kind]
            if not mine:
                raise
            raise _unreadable(mine, one_line(error)) from error
        # No categories: mmdet found none of the classes in the annotations.
        length = len(built.dataset) if hasattr(built.dataset, '__len__') else None
        if length == 0 or getattr(built.dataset, 'cat_ids', None) == []:
            raise _unreadable(leaves, 'it has no usable image')
        return built

    build_metrics: Callable[..., Any] = runner.build_evaluator

    def build_evaluator(evaluator: Any) -> Any:
        measured = _measured(evaluator)
        with checked(masks='segm' in measured, measured=measured):
            return build_metrics(evaluator)

    runner.build_dataloader = build_dataloader
    runner.build_evaluator = build_evaluator


def with_named_steps(loader: dict[str, Any], cfg: Config) -> dict[str, Any]:
    """Copy a data loader's config with pipelines whose errors name the file.

    ``ignore_index`` is taken from heads and metrics of the whole config as well.
    """
    loader = copy.deepcopy(loader)
    judges = [cfg.get(key) for key in ('model', 'val_evaluator', 'test_evaluator')]
    labels = [part.get('ignore_index') for _, part in parts(judges, 'config')]
    ignored = {label for label in labels if isinstance(label, int)}
    for dataset in typed_leaves(cfg, loader):
        _, leaf, cls = dataset
        if not leaf.get('pipeline'):
            continue
        steps = dict(type='mmdyn.NamedSteps', transforms=list(leaf['pipeline']))
        names = class_names(dataset)
        # mmdet's semantic maps have classes of their own, different from those of instances.
        if names is not None and hasattr(cls, 'get_label_map'):
            steps['num_classes'] = len(names)
        own = argument(leaf, cls, 'ignore_index')
        steps['ignored'] = sorted(ignored | {255 if own is None else own})
        leaf['pipeline'] = [steps]
    return loader


def _measured(evaluator: Any) -> set[str]:
    """What the metrics of an evaluator's config measure, in terms of mmdet's CocoMetric."""
    found: set[str] = set()
    for _, part in parts(evaluator, 'evaluator'):
        metric = part.get('metric') or 'bbox'
        found |= {metric} if isinstance(metric, str) else set(metric)
    return found


def _unreadable(leaves: list[Leaf], reason: str) -> BadDataError:
    # The hosts' errors don't say that no image is left.
    what = '; '.join(
        f'{given.get("ann_file") or given.get("data_prefix")} in {given.get("data_root") or "."} '
        f'by {leaf.cls.__name__} with classes {class_names(leaf)}'
        for leaf in leaves
        for given in [leaf.config]
    )
    return BadDataError(
        f"the data set can't be read, {what}: {reason}. Correct it, or use other data (data_root, "
        'ann_file); check that the classes match the annotations (metainfo) and the suffixes the '
        'files (img_suffix), and that filter_cfg leaves some images'
    )
