"""Runs, builds and checks the code blocks of pages."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import re
import runpy
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
import torch
from mmengine.registry import HOOKS, MODELS, init_default_scope

from mmdyn.__main__ import find_tools
from mmdyn.config_lookup import resolve_config_path
from mmdyn.engine.config import load_config
from mmdyn.models.adapters import use_adapter
from tests.test_docs.fences import ROOT, Fence, fences_of

# Files of users that pages refer to.
_DENSE_MODEL = (
    "_base_ = 'mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py'\n"
)
# Checkpoints that pages refer to, with their configs.
CHECKPOINTS = {
    'mmdyn::upernet_dynswin_mini_ft.py': (
        'iter_450.pth',
        'work_dirs/demo/sparse/iter_300.pth',
        'work_dirs/upernet_dynswin_mini/iter_450.pth',
    ),
    'mmdyn::upernet_swin_mini.py': ('dense.pth',),
}


def furnish(folder: Path) -> None:
    """Create the files that the pages expect: pictures, a video, checkpoints, tools, configs."""
    for name in ('configs', 'tools', 'benchmarks'):
        (folder / name).symlink_to(ROOT / name)
    for config, names in CHECKPOINTS.items():
        weights = dict(state_dict=build(load_config(config)).state_dict(), meta={})
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            torch.save(weights, folder / name)
    frames = np.random.default_rng(0).integers(0, 255, (5, 96, 128, 3), dtype=np.uint8)
    names = ['street', 'frames/0', 'frames/1', 'pictures/0', 'pictures/1']
    for name, picture in zip(names, frames, strict=True):
        (folder / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(f'{folder / name}.jpg', picture)
    film = cv2.VideoWriter(str(folder / 'clip.mp4'), cv2.VideoWriter_fourcc(*'mp4v'), 10, (128, 96))
    for frame in frames[:2]:
        film.write(frame)
    film.release()
    (folder / 'my_dense_model.py').write_text(_DENSE_MODEL)


def run_python(page: Path, folder: Path) -> None:
    """Run a page's Python blocks in order, in one namespace, in the current folder."""
    namespace: dict[str, Any] = {'__name__': '__main__'}
    for fence in fences_of(page):
        if fence.kind == 'config':
            build_config(fence)
        elif fence.kind == 'module':
            importlib.import_module(fence.write(folder).stem)
        elif fence.kind == 'python':
            # Preceded by empty lines, so that tracebacks have the page's line numbers.
            exec(compile('\n' * fence.line + fence.code(), str(page), 'exec'), namespace)


def build_config(fence: Fence) -> None:
    """Build a config's model and hooks like our tools, without downloads."""
    cfg = load_config(str(fence.write(Path.cwd())))
    use_adapter(cfg)
    for hook in cfg.get('custom_hooks') or []:
        HOOKS.build(hook)
    build(cfg)


def build(cfg: Any) -> Any:
    """Build a config's model with random weights."""
    init_default_scope(cfg.default_scope)
    _without_checkpoints(cfg.model)
    return MODELS.build(cfg.model)


def _without_checkpoints(node: Any) -> None:
    if isinstance(node, dict):
        node.update({name: None for name in ('init_cfg', 'pretrained') if name in node})
    for child in node.values() if isinstance(node, dict) else node:
        if isinstance(child, (dict, list, tuple)):
            _without_checkpoints(child)


def run_command(command: list[str]) -> None:
    """Run one of our tools in this process."""
    program, name, *arguments = command
    path = find_tools()[name] if program == 'mmdyn' else ROOT / name
    status: Any = None
    with contextlib.suppress(SystemExit):
        status = runpy.run_path(str(path))['main'](arguments)
    assert status == 0, command


def check(command: list[str], folder: Path) -> None:
    """Check a command without running it.

    Args:
        command: the program and its arguments.
        folder: of the files written by the page.
    """
    program, *arguments = command
    if program == 'make':
        makefile = (ROOT / 'Makefile').read_text(encoding='utf-8')
        for word in arguments:
            name, equals, _ = word.partition('=')
            assert re.search(rf'^{name}{" [?]=" if equals else ":"}', makefile, re.M), command
    elif program == 'mmdyn':
        tool = find_tools()[arguments[0]]
        if arguments[1:]:
            parse(tool, arguments[1:], folder)
    elif program == 'python' and arguments[0] == '-c':
        compile(arguments[1], 'command', 'exec')
    elif program == 'python' and arguments[0] != '-m':
        parse(ROOT / arguments[0], arguments[1:], folder)
    elif program == 'bash':
        assert (ROOT / arguments[0]).is_file(), command
        check_configs(arguments[1:], folder)
    else:
        assert program in ('pip', 'git', 'cd', 'python'), command
        for word in arguments:
            assert not word.endswith(('.txt', '.py')) or (ROOT / word).is_file(), command


class Parsed(Exception):
    """Raised when a parser accepted its arguments, to stop the tool."""


def parse(script: Path, arguments: list[str], folder: Path) -> None:
    """Parse arguments with the tool's own parser."""
    check_configs(arguments, folder)
    messages = io.StringIO()
    with (
        mock.patch('sys.path', [str(script.parent), *sys.path]),
        contextlib.redirect_stderr(messages),
        contextlib.suppress(Parsed),
    ):
        try:
            tool = runpy.run_path(str(script))
            if 'parse_args' in tool:
                tool['parse_args'](arguments)
            else:
                with mock.patch('argparse.ArgumentParser.parse_args', _parse_and_stop):
                    tool['main'](arguments)
        except SystemExit:
            raise ValueError(f'{script.name} {arguments}: {messages.getvalue()}') from None


_PARSE_ARGS = argparse.ArgumentParser.parse_args


def _parse_and_stop(parser: argparse.ArgumentParser, argv: list[str]) -> None:
    _PARSE_ARGS(parser, argv)
    raise Parsed


def check_configs(arguments: list[str], folder: Path) -> None:
    """Check that configs exist: ours, the hosts', or the page's; CONFIG is a placeholder."""
    for word in arguments:
        if word.startswith('mmdyn::') or (word.endswith('.py') and not (folder / word).is_file()):
            resolve_config_path(word if '::' in word else ROOT / word)
