"""Data loaders and metrics that name the file where one can't be used."""

import copy
import traceback
from collections.abc import Callable
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from mmengine.runner import Runner

from mmdyn.config_parts import parts
from mmdyn.engine.coco_files import checked
from mmdyn.engine.data_check import argument, class_names, leaf_datasets
from mmdyn.errors import BadDataError, one_line

NAMED_STEPS = 'mmdyn.NamedSteps'


def name_bad_files(runner: Runner) -> None:
    """Has a Runner name what is wrong with its data: files by :class:`mmdyn.datasets.NamedSteps`.

    The Runner's config stays as the user wrote it.

    Args:
        runner: None of its loops built.
    """
    build: Callable[..., Any] = runner.build_dataloader

    def build_dataloader(loader: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(loader, dict):
            return build(loader, *args, **kwargs)
        loader = with_named_steps(loader, runner.cfg)
        leaves = [leaf for _, leaf in leaf_datasets(loader)]
        # A metric without a file of its own takes the data set's masks.
        masks = 'segm' in _measured(
            [runner.cfg.get(f'{kind}_evaluator') for kind in ('val', 'test')]
        )
        masks = masks or any(part.get('with_mask') for _, part in parts(loader, 'loader'))
        try:
            with checked(masks=masks):
                built = build(loader, *args, **kwargs)
        except BadDataError:
            raise
        except Exception as error:  # a reader raises whatever it stumbles over
            # mmengine packs the list of images into one array, which fails where there are none.
            if 'at least one array' in str(error):
                raise BadDataError(_why_empty(leaves)) from error
            dataset = _being_read(error)
            if dataset is None:
                raise
            raise BadDataError(
                f"{dataset.ann_file or dataset.data_root} can't be read by "
                f'{type(dataset).__name__}: {one_line(error)}. Correct what is there, or name '
                'other data (data_root, ann_file)'
            ) from error
        if (hasattr(built.dataset, '__len__') and not len(built.dataset)) or _knows_no_category(
            built.dataset
        ):
            raise BadDataError(_why_empty(leaves))
        return built

    build_metrics: Callable[..., Any] = runner.build_evaluator

    def build_evaluator(evaluator: Any) -> Any:
        measured = _measured(evaluator)
        with checked(masks='segm' in measured, measured=measured):
            built = build_metrics(evaluator)
        for metric in built.metrics:
            if 'segm' in getattr(metric, 'metrics', ()):
                _check_masks(metric)
        return built

    runner.build_dataloader = build_dataloader
    runner.build_evaluator = build_evaluator


def with_named_steps(loader: dict[str, Any], cfg: Config) -> dict[str, Any]:
    """A copy of a data loader's config whose pipelines name the file they fail on.

    Args:
        loader: The config.
        cfg: The whole config: its heads and metrics, too, say which labels they ignore.
    """
    loader = copy.deepcopy(loader)
    judges = [cfg.get(key) for key in ('model', 'val_evaluator', 'test_evaluator')]
    labels = [part.get('ignore_index') for _, part in parts(judges, 'config')]
    ignored = {label for label in labels if isinstance(label, int)}
    for _, leaf in leaf_datasets(loader):
        _name_steps(leaf, ignored)
    return loader


def _name_steps(leaf: dict[str, Any], ignored: set[int]) -> None:
    pipeline = leaf.get('pipeline')
    if not pipeline:
        return
    cls = _class_of(leaf)
    steps = dict(type=NAMED_STEPS, transforms=list(pipeline))
    names = class_names(leaf, cls)
    # mmdet's semantic maps have classes of their own, beside those of instances.
    if names is not None and hasattr(cls, 'get_label_map'):
        steps['num_classes'] = len(names)
    own = argument(leaf, cls, 'ignore_index')
    steps['ignored'] = sorted(ignored | {255 if own is None else own})
    leaf['pipeline'] = [steps]


def _being_read(error: Exception) -> Any:
    """The data set whose list of samples was being read when the error came, or None."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    readers = [frame for frame in frames if frame.f_code.co_name == 'load_data_list']
    return readers[0].f_locals.get('self') if readers else None


def _measured(evaluator: Any) -> set[str]:
    """What the metrics of an evaluator's config measure, as mmdet's CocoMetric says it."""
    found: set[str] = set()
    for _, part in parts(evaluator, 'evaluator'):
        metric = part.get('metric') or 'bbox'
        found |= {metric} if isinstance(metric, str) else set(metric)
    return found


def _check_masks(metric: Any) -> None:
    """Refuses masks that mmdet's CocoMetric would fail on, after the last image."""
    coco = getattr(metric, '_coco_api', None)
    for image in coco.imgs.values() if coco is not None else ():
        for annotation in coco.imgToAnns.get(image['id'], ()):
            try:
                coco.annToRLE(annotation)
            except Exception as error:  # a KeyError, an IndexError, a TypeError ...
                raise BadDataError(
                    f'annotation {annotation["id"]} of image {image.get("file_name")} has no mask '
                    f"that can be used, 'segmentation' is {annotation.get('segmentation')}: "
                    "correct the metric's annotation file, or measure boxes only, metric='bbox'"
                ) from error


def _why_empty(leaves: list[dict[str, Any]]) -> str:
    what = '; '.join(
        f'{leaf.get("type")} of {leaf.get("ann_file") or leaf.get("data_prefix")} in '
        f'{leaf.get("data_root") or "."} with classes {class_names(leaf, _class_of(leaf))}'
        for leaf in leaves
    )
    return (
        f'the data set holds no image that can be used: {what}. Are these classes those of the '
        'annotations (metainfo), the endings those of the files (img_suffix), and does filter_cfg '
        'leave images over?'
    )


def _knows_no_category(dataset: Any) -> bool:
    """Whether mmdet found none of a data set's classes in its annotations."""
    return getattr(dataset, 'cat_ids', None) == []


def _class_of(leaf: dict[str, Any]) -> Any:
    kind = leaf.get('type')
    if not isinstance(kind, str):
        return kind
    scope = DefaultScope.get_current_instance()
    with DATASETS.switch_scope_and_registry(scope and scope.scope_name) as registry:
        return registry.get(kind)
