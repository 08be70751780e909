"""Generated pictures of single things, for classifiers: what shape is it?"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dist import is_main_process
from PIL import Image
from rich.console import Console

from mmdyn.checks import check_integer
from mmdyn.datasets.class_folder import ClassFolder
from mmdyn.datasets.scene_renderer import (
    CLASSES,
    STUFF_CLASSES,
    THING_CLASSES,
    Scene,
    render_scene,
)
from mmdyn.registry import DATASETS
from mmdyn.whole_files import new_folder

_MANIFEST = 'manifest.json'
_SCENE = 96  # side of the scenes in pixels
_VIEW = 42  # side of a cut-out
_SHIFT = 6  # of the thing from its middle, at most
_LEAST = 110  # visible pixels of the thing
_OTHERS = 0.15  # of that may be visible of others


def build_mini_things(
    root: str | Path, *, size: int = 48, train: int = 120, val: int = 40, seed: int = 0
) -> Path:
    """Build ``root/{train,val}/CLASS/NUMBER.png`` unless ``root`` is there.

    Every picture is a part of a MiniScenes scene around one thing, whose outline is the class;
    corners of other things may be visible.

    Args:
        root: the folder.
        size: side of the pictures in pixels.
        train, val: number of pictures of each of the six classes.
        seed: determines the pictures.

    Raises:
        TypeError, ValueError: if a number is not a positive integer.
        ValueError: if ``root`` exists and was not built with these arguments.
    """
    root = Path(root)
    counts = dict(train=check_integer('train', train), val=check_integer('val', val))
    manifest = json.dumps(dict(size=check_integer('size', size), **counts, seed=seed))
    if root.is_dir() and any(root.iterdir()):
        if not (root / _MANIFEST).is_file() or (root / _MANIFEST).read_text() != manifest:
            raise ValueError(
                f'{root} is not MiniThings with {manifest}: delete the folder or choose another '
                'data_root'
            )
        return root
    with new_folder(root) as building:
        for number, (split, count) in enumerate(counts.items()):
            _write_split(building / split, size, count, (seed, number))
        (building / _MANIFEST).write_text(manifest)
    return root


def _write_split(folder: Path, size: int, count: int, seed: tuple[int, int]) -> None:
    written: Counter[str] = Counter()
    scene = 0
    for name in THING_CLASSES:
        (folder / name).mkdir(parents=True)
    while min(written[name] for name in THING_CLASSES) < count:
        for name, picture in _things(render_scene((*seed, scene), _SCENE), (*seed, scene)):
            if written[name] < count:
                shown = Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC)
                shown.save(folder / name / f'{written[name]:04d}.png')
                written[name] += 1
        scene += 1


def _things(scene: Scene, seed: tuple[int, ...]) -> list[tuple[str, np.ndarray]]:
    """Class and cut-out of every thing that is well visible, almost alone and not at the edge."""
    random, found = np.random.default_rng(seed), []
    things = scene.labels >= len(STUFF_CLASSES)
    for class_id, mask in scene.instances:
        places = [np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0)]
        shifts = random.integers(-_SHIFT, _SHIFT + 1, size=2)
        starts = [
            int(place[0] + place[-1] + 1 - _VIEW) // 2 + int(shift)
            for place, shift in zip(places, shifts, strict=True)
        ]
        view = tuple(slice(start, start + _VIEW) for start in starts)
        inside = all(0 <= start <= _SCENE - _VIEW for start in starts)
        alone = (things & ~mask)[view].sum() < _OTHERS * mask.sum()
        if inside and alone and mask.sum() >= _LEAST:
            found.append((CLASSES[class_id], scene.image[view]))
    return found


@DATASETS.register_module()
class MiniThingsDataset(ClassFolder):
    """Rendered things in six classes, generated on first use; see
    :func:`mmdyn.datasets.mini_things.build_mini_things`.

    Args:
        split: ``'train'`` or ``'val'``.
        data_root: the folder.
        size, train, val, seed: of ``build_mini_things``.
        **kwargs: of :class:`mmdyn.datasets.class_folder.ClassFolder`.
    """

    METAINFO = dict(classes=tuple(sorted(THING_CLASSES)))
    # The tools don't check for files of this data set, as it generates them.
    builds_itself = True

    def __init__(
        self,
        split: str = 'train',
        data_root: str = 'data/mini_things',
        size: int = 48,
        train: int = 120,
        val: int = 40,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        if is_main_process() and not Path(data_root).exists():
            Console(stderr=True).print(f'rendering {6 * (train + val)} pictures into {data_root}')
        build_mini_things(data_root, size=size, train=train, val=val, seed=seed)
        super().__init__(data_root=data_root, data_prefix=dict(img_path=split), **kwargs)
