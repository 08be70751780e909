"""Options of ``tools/test.py``: test-time augmentation, saved predictions, drawings.

They differ between the hosts, which are told apart by ``default_scope``.
"""

import copy
import inspect

from mmengine.config import Config, ConfigDict
from mmengine.registry import METRICS

from mmdyn.checks import check_file, check_folder
from mmdyn.config_parts import class_of, parts, type_name
from mmdyn.engine.data_check import class_names, leaf_datasets, typed_leaves
from mmdyn.engine.metrics import add_metric, metrics_of

_MOST_CLASSES = 255  # in an 8-bit label map, besides 255 = no class
_NOT_MERGED = ('mask_head', 'panoptic_head', 'panoptic_fusion_head')


def use_tta(cfg: Config) -> str | None:
    """Wrap the model for test-time augmentation and replace the test pipeline, in place.

    Uses ``tta_model`` and ``tta_pipeline`` of the config. A detector's config without them gets
    flips, merged by NMS, and a line for the log is returned.

    Raises:
        ValueError: if a segmentor's config lacks one of the two, or a detector predicts masks.
    """
    lacking = [key for key in ('tta_model', 'tta_pipeline') if key not in cfg]
    if lacking and cfg.get('default_scope') != 'mmdet':
        raise ValueError(
            f'--tta: the config does not set {" and ".join(lacking)}: add them (mmseg has an '
            'example in its _base_ data set configs), or remove --tta'
        )
    if 'tta_model' in lacking:
        merging = dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)
        cfg.tta_model = dict(type='DetTTAModel', tta_cfg=merging)
    if type_name(cfg.tta_model) == 'DetTTAModel':
        for place, part in parts(cfg.model, 'model'):
            if any(part.get(head) for head in _NOT_MERGED):
                raise ValueError(
                    f"--tta: mmdet's DetTTAModel merges boxes only, but {place} is "
                    f'{part.get("type")}, which predicts masks: remove --tta'
                )
    for _, leaf in leaf_datasets(cfg.test_dataloader):
        if 'tta_pipeline' in lacking:
            # The last step packs; each flipped copy is packed separately.
            flips = [dict(type='RandomFlip', prob=prob) for prob in (1.0, 0.0)]
            steps = [flips, [dict(type='PackDetInputs')]]
            leaf.pipeline = [*leaf.pipeline[:-1], dict(type='TestTimeAug', transforms=steps)]
        else:
            leaf.pipeline = copy.deepcopy(cfg.tta_pipeline)
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    return f'--tta: the config has no {" and ".join(lacking)}: flips are used.' if lacking else None


def set_out(cfg: Config, out: str) -> None:
    """Also write the predictions to files.

    Args:
        cfg: edited in place.
        out: a .pkl or .pickle file for a detector, a folder for PNG label maps for a segmentor.

    Raises:
        OSError: if it is not writable.
        ValueError: if a detector's ``out`` has another suffix, its evaluator takes no further
            metric, no metric of a segmentor can write predictions, or there are more classes than
            fit mmseg's label maps.
    """
    if cfg.get('default_scope') == 'mmdyn':
        raise ValueError('--out: classifiers have no predictions to write: use tools/infer.py')
    if cfg.get('default_scope') == 'mmdet':
        if not out.endswith(('.pkl', '.pickle')):
            raise ValueError(f'--out of a detector must end in .pkl or .pickle, got {out}')
        check_file('--out', out)
        dump = dict(type='mmdet.DumpDetResults', out_file_path=out)
        if not add_metric(cfg, 'test_evaluator', dump):
            raise ValueError(
                f'--out: test_evaluator of type {type_name(cfg.test_evaluator)} takes no '
                'further metric: test one data set at a time, or remove --out'
            )
        return
    for leaf in typed_leaves(cfg, 'test_dataloader'):
        names = class_names(leaf) or ()
        if len(names) > _MOST_CLASSES:
            raise ValueError(
                f'--out: {leaf.place} has {len(names)} classes, but mmseg writes 8-bit label maps '
                f'of at most {_MOST_CLASSES}: use tools/infer.py --labels'
            )
    metrics = metrics_of(cfg.test_evaluator)
    writers = [metric for metric in metrics if _takes(metric, 'output_dir', cfg)]
    if not writers:
        raise ValueError(
            f'--out: none of the metrics ({", ".join(type_name(m) for m in metrics)}) writes '
            "predictions: add one that does, such as dict(type='IoUMetric'), or remove --out"
        )
    check_folder('--out', out)
    writers[0].output_dir = out


def set_drawing(cfg: Config, show: bool, show_dir: str | None, wait_time: float) -> None:
    """Draw predictions in a window, to files, or both.

    Args:
        cfg: edited in place.
        show: whether to open windows, each for ``wait_time`` seconds.
        show_dir: folder for drawings, or None.
        wait_time: in seconds.

    Raises:
        OSError: if ``show_dir`` is not writable.
        ValueError: if the config has no visualization hook.
    """
    hook = (cfg.get('default_hooks') or {}).get('visualization')
    if hook is None:
        if cfg.get('default_scope') == 'mmdyn':
            raise ValueError('--show and --show-dir are not for classifiers: use tools/infer.py')
        kind = 'Det' if cfg.get('default_scope') == 'mmdet' else 'Seg'
        raise ValueError(
            '--show and --show-dir need a visualization hook: add --cfg-options '
            f'default_hooks.visualization.type={kind}VisualizationHook'
        )
    hook.draw = True
    if show:
        hook.show, hook.wait_time = True, wait_time
    if show_dir is None:
        return
    check_folder('--show-dir', show_dir)
    if cfg.get('default_scope') == 'mmdet':
        hook.test_out_dir = show_dir
    else:
        cfg.visualizer.save_dir = show_dir


def _takes(metric: dict, argument: str, cfg: Config) -> bool:
    cls = class_of(metric['type'], cfg.get('default_scope'), METRICS)
    return cls is not None and argument in inspect.signature(cls).parameters
