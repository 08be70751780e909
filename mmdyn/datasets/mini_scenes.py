"""Writes the MiniScenes data set: rendered, labelled, the same files for the same parameters.

One folder holds the same scenes for two hosts::

    images/{training,validation}/000000.png        RGB
    annotations/{training,validation}/000000.png   class index 0..9, one per pixel
    instances_{training,validation}.json           COCO, categories 1..6 for the things
    manifest.json                                  parameters and format
"""

import json
import os
import secrets
import shutil
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

SPLITS = ('training', 'validation')
MANIFEST = 'manifest.json'

# To be raised whenever the same parameters give other files.
_FORMAT = 2
# An instance seen in fewer pixels (at a side of 128) is no fair target for a detector.
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
    """Make sure that ``root`` holds the data set of these parameters.

    A folder that is already there is not written; its parameters and numbers of files are
    checked. A new one is built beside
    ``root`` and renamed, so it is never half-written; several processes may do so at
    once, the first to finish wins and the others take what it made.

    Args:
        root: the folder; its parents are made.
        size: side of the pictures in pixels.
        train, val: number of scenes in each split.
        seed: other seeds give other scenes.
        progress: show bars on standard error.

    Returns:
        ``root`` as a path.

    Raises:
        TypeError, ValueError: a parameter is no integer or out of range.
        ValueError: ``root`` exists and holds anything else than this data set.
        OSError: the folder can't be written.
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

    target = root.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    # A sibling, because only within one file system is a rename one step. Not
    # tempfile.mkdtemp: the folder becomes the data set, and others may want to read it.
    building = target.parent / f'.{target.name}.{secrets.token_hex(6)}.building'
    building.mkdir()
    try:
        for number, (split, count) in enumerate(zip(SPLITS, (train, val), strict=True)):
            # The split is part of the seed: a scene stays the same if the counts change.
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
        try:
            os.rename(building, target)
        except OSError:
            # Another process may have been first, which is as good; else it's an error.
            if not (target / MANIFEST).is_file():
                raise
            _check(root, parameters)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return root


def _check(root: Path, parameters: dict[str, int]) -> None:
    """Refuse a folder that does not hold the data set of these parameters."""
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
            problem = f'holds MiniScenes of other parameters: {", ".join(different)}'
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
    """Append a scene's picture, and those of its things that are seen well enough."""
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
            # Run lengths and not polygons: they are exact, holes and pieces included.
            segmentation=dict(size=[height, width], counts=_run_lengths(mask)),
        )
        coco['annotations'].append(annotation)


def _run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed code: lengths of runs down the columns, the first one of False."""
    flat = mask.ravel(order='F')
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    lengths = np.diff([0, *changes.tolist(), flat.size]).tolist()
    return [0, *lengths] if flat[0] else lengths
