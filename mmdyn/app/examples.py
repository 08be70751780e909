"""Pictures to pick from, for a model that knows generated scenes only."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from mmdyn.datasets.scene_renderer import render_scene

COUNT = 6
# A stream of random numbers that no split of the data set takes.
_STREAM = 2


def write_scenes(folder: Path, *, size: int = 128, seed: int = 0) -> list[Path]:
    """Render a few MiniScenes that neither training nor validation holds.

    Args:
        folder: there already.
        size: side of the pictures in pixels.
        seed: of the scenes.

    Returns:
        The files.
    """
    files = [folder / f'scene_{index}.png' for index in range(COUNT)]
    for index, file in enumerate(files):
        Image.fromarray(render_scene((seed, _STREAM, index), size).image).save(file)
    return files
