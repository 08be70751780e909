"""Writes the MiniScenes data set: rendered, labelled, the same bytes for the same parameters.

One folder holds the same scenes for two hosts::

    images/{training,validation}/000000.png        RGB
    annotations/{training,validation}/000000.png   class index 0..9, one per pixel
    instances_{training,validation}.json           COCO, categories 1..6 for the things
    manifest.json                                  parameters, format, sha256 of every file

Needs numpy, Pillow and rich only, so that any host can build it. From a shell::

    python -m mmdyn.datasets.mini_scenes ROOT [--size 128] [--train 240] [--val 60] [--seed 0]
"""

import argparse
import hashlib
import io
import json
import numbers
import os
import secrets
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track

from mmdyn.datasets.scene_renderer import (
    CLASSES,
    PALETTE,
    STUFF_CLASSES,
    THING_CLASSES,
    Instance,
    Scene,
    check_size,
    render_scene,
)

__all__ = [
    'CLASSES',
    'PALETTE',
    'SPLITS',
    'STUFF_CLASSES',
    'THING_CLASSES',
    'Instance',
    'Scene',
    'build_mini_scenes',
    'check_mini_scenes',
    'render_scene',
]

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

    A folder that is already there is checked, not written. A new one is built beside
    ``root`` and renamed, so it is never half-written; several processes may do so at
    once, the first to finish wins and the others take what it made.

    Args:
        root: the folder; its parents are made.
        size: side of the pictures in pixels.
        train, val: number of scenes in each split.
        seed: non-negative; other seeds give other scenes.
        progress: report to standard error: a bar on a terminal, else one line.

    Returns:
        ``root`` as a path.

    Raises:
        TypeError, ValueError: a parameter is no integer or out of range.
        ValueError: ``root`` exists and holds anything else than this data set.
        OSError: the folder can't be written.
    """
    parameters = _check_parameters(size=size, train=train, val=val, seed=seed)
    root = Path(root)
    if _is_taken(root):
        check_mini_scenes(root, **parameters)
        return root

    target = root.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    # A sibling, because only within one file system is a rename one step. Not
    # tempfile.mkdtemp: the folder becomes the data set, and others may want to read it.
    building = target.parent / f'.{target.name}.{secrets.token_hex(6)}.building'
    building.mkdir()
    try:
        _write_data_set(building, parameters, root if progress else None)
        try:
            os.rename(building, target)
        except OSError:
            # Another process may have been first, which is as good; else it's an error.
            if not (target / MANIFEST).is_file():
                raise
            check_mini_scenes(root, **parameters)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return root


def check_mini_scenes(
    root: str | os.PathLike, *, size: int = 128, train: int = 240, val: int = 60, seed: int = 0
) -> None:
    """Check that a folder holds exactly the data set of these parameters.

    Raises:
        TypeError, ValueError: a parameter is no integer or out of range.
        ValueError: the folder holds something else, or a file of it has changed; the
            message names the folder and the difference.
        FileNotFoundError: there is no such folder.
    """
    parameters = _check_parameters(size=size, train=train, val=val, seed=seed)
    root = Path(root)
    if not root.exists():
        raise FileNotFoundError(f'no MiniScenes at {root}: build_mini_scenes makes them')
    manifest = _read_manifest(root)
    if manifest['format'] != _FORMAT:
        raise _refusal(root, f'has format {manifest["format"]}, this version writes {_FORMAT}')
    if manifest['parameters'] != parameters:
        different = ', '.join(
            f'{name} is {manifest["parameters"].get(name)}, wanted {value}'
            for name, value in parameters.items()
            if manifest['parameters'].get(name) != value
        )
        raise _refusal(root, f'holds MiniScenes of other parameters: {different or "unknown ones"}')
    # Loaders take every picture they find, so one too many matters as well.
    surplus = sorted(set(_picture_names(root)) - set(manifest['files']))
    if surplus:
        raise _refusal(root, f'holds a file that is no part of it: {surplus[0]}')
    for name, digest in manifest['files'].items():
        path = root / name
        if not path.is_file():
            raise _refusal(root, f'lacks {name}')
        if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise _refusal(root, f'holds a {name} that is not the one it was made with')


# ---------------------------------------------------------------------------
# Checking
# ---------------------------------------------------------------------------


def _check_parameters(**parameters) -> dict[str, int]:
    check_size(parameters['size'])
    for name, least in (('train', 1), ('val', 1), ('seed', 0)):
        value = parameters[name]
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise TypeError(f'{name} must be an integer, got {value!r}')
        if value < least:
            raise ValueError(f'{name} must be at least {least}, got {value}')
    return {name: int(value) for name, value in parameters.items()}


def _is_taken(root: Path) -> bool:
    """Whether something is there already; an empty folder is as good as none."""
    if not root.is_dir():
        return root.exists()
    return any(root.iterdir())


def _read_manifest(root: Path) -> dict:
    path = root / MANIFEST
    if not path.is_file():
        raise _refusal(root, f'is not a MiniScenes folder: it has no {MANIFEST}')
    try:
        manifest = json.loads(path.read_text(encoding='utf-8'))
        well_formed = (
            isinstance(manifest['format'], int)
            and isinstance(manifest['parameters'], dict)
            and isinstance(manifest['files'], dict)
        )
    except (ValueError, KeyError, TypeError):
        well_formed = False
    if not well_formed:
        raise _refusal(root, f'has a damaged {MANIFEST}')
    return manifest


def _picture_names(root: Path) -> Iterator[str]:
    for path in root.glob('*/*/*.png'):
        yield path.relative_to(root).as_posix()


def _refusal(root: Path, problem: str) -> ValueError:
    return ValueError(f'{root} {problem}. Delete the folder or choose another data_root.')


# ---------------------------------------------------------------------------
# Writing
# ---------------------------------------------------------------------------


def _write_data_set(folder: Path, parameters: dict[str, int], shown_as: Path | None) -> None:
    """Write everything into an empty folder; ``shown_as`` is its name in reports, if any."""
    size, seed = parameters['size'], parameters['seed']
    jobs = [
        (number, split, index)
        for number, (split, count) in enumerate(
            zip(SPLITS, (parameters['train'], parameters['val']), strict=True)
        )
        for index in range(count)
    ]
    digests: dict[str, str] = {}
    coco = {split: _empty_coco() for split in SPLITS}
    for kind in ('images', 'annotations'):
        for split in SPLITS:
            (folder / kind / split).mkdir(parents=True)

    for number, split, index in _reported(jobs, size, shown_as):
        # The split is part of the seed: a scene stays the same if the counts change.
        scene = render_scene((seed, number, index), size)
        name = f'{index:06d}.png'
        _write(folder, f'images/{split}/{name}', _png(scene.image), digests)
        _write(folder, f'annotations/{split}/{name}', _png(scene.labels), digests)
        _add_to_coco(coco[split], scene, name)

    for split in SPLITS:
        _write(folder, f'instances_{split}.json', _json(coco[split]), digests)
    manifest = {'format': _FORMAT, 'parameters': parameters, 'files': digests}
    (folder / MANIFEST).write_bytes(_json(manifest, indent=1))


def _reported(jobs: Sequence, size: int, shown_as: Path | None) -> Iterator:
    """Go through the jobs, telling standard error about it."""
    if shown_as is None:
        return iter(jobs)
    console = Console(stderr=True)
    message = f'rendering {len(jobs)} scenes of {size}x{size} into {shown_as}'
    if console.is_terminal:
        return iter(track(jobs, message, console=console))
    print(message, file=sys.stderr, flush=True)
    return iter(jobs)


def _write(folder: Path, name: str, content: bytes, digests: dict[str, str]) -> None:
    (folder / name).write_bytes(content)
    digests[name] = hashlib.sha256(content).hexdigest()


def _png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format='PNG', compress_level=6)
    return stream.getvalue()


def _json(content: dict, indent: int | None = None) -> bytes:
    return (json.dumps(content, indent=indent, sort_keys=True) + '\n').encode('ascii')


# ---------------------------------------------------------------------------
# COCO
# ---------------------------------------------------------------------------


def _empty_coco() -> dict:
    categories = [
        {'id': number, 'name': name, 'supercategory': 'thing'}
        for number, name in enumerate(THING_CLASSES, start=1)
    ]
    info = {'description': 'MiniScenes', 'version': str(_FORMAT)}
    return {'info': info, 'images': [], 'annotations': [], 'categories': categories}


def _add_to_coco(coco: dict, scene: Scene, file_name: str) -> None:
    """Append a scene's picture, and those of its things that are seen well enough."""
    height, width = scene.labels.shape
    image_id = len(coco['images'])
    coco['images'].append(
        {'id': image_id, 'file_name': file_name, 'height': height, 'width': width}
    )
    least = _MIN_INSTANCE_PIXELS * height * width / 128**2
    for class_id, mask in scene.instances:
        area = int(mask.sum())
        if area < least:
            continue
        coco['annotations'].append(
            {
                'id': len(coco['annotations']) + 1,
                'image_id': image_id,
                'category_id': class_id - len(STUFF_CLASSES) + 1,
                'bbox': _bounding_box(mask),
                'area': area,
                'iscrowd': 0,
                # Run lengths and not polygons: they are exact, holes and pieces included.
                'segmentation': {'size': [height, width], 'counts': _run_lengths(mask)},
            }
        )


def _bounding_box(mask: np.ndarray) -> list[int]:
    """[x, y, width, height] in pixels of the True part of a mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x, y = int(columns[0]), int(rows[0])
    return [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]


def _run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed code: lengths of runs down the columns, the first one of False."""
    flat = mask.ravel(order='F')
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    starts = [0, *changes.tolist(), flat.size]
    lengths = np.diff(starts).tolist()
    return [0, *lengths] if flat[0] else lengths


# ---------------------------------------------------------------------------
# Command line
# ---------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Build or check a folder; return the exit code, 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog='python -m mmdyn.datasets.mini_scenes',
        description='Render the MiniScenes data set, or check the one that is there.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument('root', help='folder to build or check')
    parser.add_argument('--size', type=int, default=128, help='side of the pictures in pixels')
    parser.add_argument('--train', type=int, default=240, help='number of training scenes')
    parser.add_argument('--val', type=int, default=60, help='number of validation scenes')
    parser.add_argument('--seed', type=int, default=0, help='other seeds give other scenes')
    options = vars(parser.parse_args(arguments))
    try:
        root = build_mini_scenes(**options)
    except (OSError, ValueError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    print(f'{root}: {options["train"]} training and {options["val"]} validation scenes')
    return 0


if __name__ == '__main__':
    sys.exit(main())
