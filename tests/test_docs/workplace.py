"""The folder in which a page's blocks are run, and running them."""

from __future__ import annotations

import contextlib
import importlib
import runpy
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.registry import HOOKS, MODELS, init_default_scope

from mmdyn.__main__ import find_tools
from mmdyn.engine.config import load_config
from mmdyn.models.adapters import use_adapter
from tests.test_docs.fences import ROOT, Fence, fences_of

# What users have and pages only name.
_DENSE_MODEL = (
    "_base_ = 'mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py'\n"
)
# Where pages say that checkpoints lie, and the models they are of.
CHECKPOINTS = {
    'mmdyn::upernet_dynswin_mini_ft.py': (
        'iter_450.pth',
        'work_dirs/demo/sparse/iter_450.pth',
        'work_dirs/upernet_dynswin_mini/iter_450.pth',
    ),
    'mmdyn::upernet_swin_mini.py': ('dense.pth',),
}


def write_checkpoints(folder: Path) -> None:
    """Models of random weights, under each of their names."""
    for config, names in CHECKPOINTS.items():
        weights = dict(state_dict=build(load_config(config)).state_dict())
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            torch.save(weights, folder / name)


def furnish(folder: Path, checkpoints: Path) -> None:
    """Put there what the pages expect: pictures, a film, checkpoints, tools and configs."""
    for name in ('configs', 'tools', 'benchmarks'):
        (folder / name).symlink_to(ROOT / name)
    for source in checkpoints.rglob('*.pth'):
        target = folder / source.relative_to(checkpoints)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(source)
    generator = np.random.default_rng(0)
    frames = generator.integers(0, 255, (6, 96, 128, 3), dtype=np.uint8)
    names = [
        'street.jpg',
        *(f'{where}/{i}.jpg' for where in ('frames', 'pictures') for i in (0, 1)),
    ]
    for name, picture in zip(names, frames, strict=False):
        (folder / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(folder / name), picture)
    film = cv2.VideoWriter(str(folder / 'clip.mp4'), cv2.VideoWriter_fourcc(*'mp4v'), 10, (128, 96))
    for frame in frames[:2]:
        film.write(frame)
    film.release()
    (folder / 'my_dense_model.py').write_text(_DENSE_MODEL)


def run_python(page: Path, folder: Path) -> int:
    """Run a page's Python in order, in one namespace; to be called in the folder.

    Returns:
        How many blocks were run or built.
    """
    namespace: dict[str, Any] = {'__name__': '__main__'}
    done = 0
    for fence in fences_of(page):
        kind = fence.kind()
        if kind == 'config':
            build_config(write(fence, folder))
        elif kind == 'module':
            importlib.import_module(write(fence, folder).stem)
        elif kind == 'python':
            # Below as many empty lines as stand above it: tracebacks show the page's line.
            code = compile('\n' * fence.line + fence.code(), str(page), 'exec')
            exec(code, namespace)
        done += kind in ('config', 'module', 'python')
    return done


def write(fence: Fence, folder: Path) -> Path:
    """Write a block as the file that it is."""
    path = folder / (fence.file_name or f'config_{fence.line}.py')
    base = f'_base_ = {fence.base!r}\n' if fence.base else ''
    path.write_text(base + fence.code())
    return path


def build_config(path: Path) -> Any:
    """Build a config's model and hooks as our tools do, without its downloads."""
    cfg = load_config(str(path))
    use_adapter(cfg)
    for hook in cfg.get('custom_hooks') or []:
        HOOKS.build(hook)
    return build(cfg)


def build(cfg: Any) -> Any:
    """Build a config's model with random weights."""
    init_default_scope(cfg.default_scope)
    _without_checkpoints(cfg.model)
    return MODELS.build(cfg.model)


def _without_checkpoints(node: Any) -> None:
    if isinstance(node, dict):
        for name in ('init_cfg', 'pretrained'):
            if node.get(name) is not None:
                node[name] = None
    for child in node.values() if isinstance(node, dict) else node:
        if isinstance(child, (dict, list, tuple)):
            _without_checkpoints(child)


def run_command(command: list[str]) -> None:
    """Run one of our tools here and now.

    Raises:
        ValueError: if it is none, or it fails.
    """
    program, name, *arguments = command
    path = find_tools().get(name) if program == 'mmdyn' else ROOT / name
    if program not in ('mmdyn', 'python') or path is None or path.parent.name != 'tools':
        raise ValueError(f'only our tools are run, not {" ".join(command)}')
    status: Any = None
    with contextlib.suppress(SystemExit):
        status = runpy.run_path(str(path))['main'](arguments)
    if status != 0:
        raise ValueError(f'{" ".join(command)} failed')
