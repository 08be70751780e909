"""Generates the MiniScenes data set: rendered labelled scenes, determined by the parameters.

One folder holds the same scenes for both hosts::

    images/{training,validation}/000000.png        RGB
    annotations/{training,validation}/000000.png   class index 0..9 of each pixel
    instances_{training,validation}.json           COCO, categories 1..6 for the things
    manifest.json                                  parameters and format
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track

from mmdyn.checks import MAX_SEED, check_integer
from mmdyn.datasets.scene_renderer import (
    STUFF_CLASSES,
    THING_CLASSES,
    Scene,
    check_size,
    render_scene,
)
from mmdyn.whole_files import new_folder

SPLITS = ('training', 'validation')
MANIFEST = 'manifest.json'

# Increase it whenever the same parameters give other files.
_FORMAT = 2
# Instances with fewer visible pixels (at a side of 128) are omitted as too hard.
_MIN_INSTANCE_PIXELS = 8


def build_mini_scenes(
    root: str | os.PathLike,
    *,
    size: int = 128,
    train: int = 240,
    val: int = 60,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Build the data set of these parameters in ``root`` unless it is there.

    The parameters and numbers of files of an existing folder are checked. A new one is built next
    to ``root`` and renamed, so it is never incomplete; several processes may do so at once, and all
    use the first result.

    Args:
        root: the folder; parents are created.
        size: side of the pictures in pixels.
        train, val: number of scenes in each split.
        seed: determines the scenes.
        progress: whether to show progress bars on standard error.

    Returns:
        ``root`` as a path.

    Raises:
        TypeError, ValueError: if a parameter is not an integer or out of range.
        ValueError: if ``root`` exists and is not this data set.
        OSError: if the folder can't be written.
    """
    parameters = dict(
        size=check_size(size),
        train=check_integer('train', train),
        val=check_integer('val', val),
        seed=check_integer('seed', seed, 0, MAX_SEED),
    )
    root = Path(root)
    if root.exists() and not (root.is_dir() and not any(root.iterdir())):
        _check(root, parameters)
        return root

    with new_folder(root) as building:
        for number, (split, count) in enumerate(zip(SPLITS, (train, val), strict=True)):
            # Seeded by split and index, so that scenes don't depend on the counts.
            seeds = [(seed, number, index) for index in range(count)]
            shown = track(
                seeds,
                f'rendering {count} scenes of {size}x{size} for {split} into {root}',
                console=Console(stderr=True),
                disable=not progress,
            )
            _write_split(building, split, (render_scene(one, size) for one in shown))
        manifest = dict(format=_FORMAT, parameters=parameters)
        (building / MANIFEST).write_text(json.dumps(manifest, indent=1) + '\n')
    _check(root, parameters)  # another process may have been faster
    return root


def _check(root: Path, parameters: dict[str, int]) -> None:
    """Refuse a folder that is not the data set of these parameters."""
    problem = None
    try:
        manifest = json.loads((root / MANIFEST).read_text(encoding='utf-8'))
        if manifest['format'] != _FORMAT:
            problem = f'has format {manifest["format"]}, this version writes {_FORMAT}'
        elif manifest['parameters'] != parameters:
            different = (
                f'{name} is {manifest["parameters"].get(name)}, wanted {value}'
                for name, value in parameters.items()
                if manifest['parameters'].get(name) != value
            )
            problem = f'is MiniScenes with other parameters: {", ".join(different)}'
        else:
            for split, count in zip(SPLITS, (parameters['train'], parameters['val']), strict=True):
                for kind in ('images', 'annotations'):
                    found = sum(1 for _ in (root / kind / split).glob('*.png'))
                    if found != count:
                        problem = f'has {found} pictures in {kind}/{split}, not {count}'
    except OSError:
        problem = f'is not a MiniScenes folder: it has no {MANIFEST}'
    except (ValueError, KeyError, TypeError, AttributeError):
        problem = f'has a damaged {MANIFEST}'
    if problem is not None:
        raise ValueError(f'{root} {problem}. Delete the folder or choose another data_root.')


def _write_split(folder: Path, split: str, scenes: Iterable[Scene]) -> None:
    """Write a split's pictures, label maps and COCO file."""
    for kind in ('images', 'annotations'):
        (folder / kind / split).mkdir(parents=True)
    categories = [
        dict(id=number, name=name, supercategory='thing')
        for number, name in enumerate(THING_CLASSES, start=1)
    ]
    info = dict(description='MiniScenes', version=str(_FORMAT))
    coco = dict(info=info, images=[], annotations=[], categories=categories)
    for index, scene in enumerate(scenes):
        name = f'{index:06d}.png'
        for kind, pixels in (('images', scene.image), ('annotations', scene.labels)):
            with open(folder / kind / split / name, 'wb') as file:
                Image.fromarray(pixels).save(file, format='PNG')
        _add_to_coco(coco, scene, name)
    content = json.dumps(coco, sort_keys=True) + '\n'
    (folder / f'instances_{split}.json').write_text(content)


def _add_to_coco(coco: dict, scene: Scene, file_name: str) -> None:
    """Append a scene's picture and its sufficiently visible things."""
    height, width = scene.labels.shape
    image_id = len(coco['images'])
    coco['images'].append(dict(id=image_id, file_name=file_name, height=height, width=width))
    for class_id, mask in scene.instances:
        area = int(mask.sum())
        if area < _MIN_INSTANCE_PIXELS * height * width / 128**2:
            continue
        left, top, right, bottom = Image.fromarray(mask.astype(np.uint8)).getbbox()
        annotation = dict(
            id=len(coco['annotations']) + 1,
            image_id=image_id,
            category_id=class_id - len(STUFF_CLASSES) + 1,
            bbox=[left, top, right - left, bottom - top],
            area=area,
            iscrowd=0,
            # Run lengths are exact, unlike polygons, with holes and disconnected parts.
            segmentation=dict(size=[height, width], counts=_run_lengths(mask)),
        )
        coco['annotations'].append(annotation)


def _run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed encoding: lengths of runs in column order, starting with False."""
    flat = mask.ravel(order='F')
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    lengths = np.diff([0, *changes.tolist(), flat.size]).tolist()
    return [0, *lengths] if flat[0] else lengths
