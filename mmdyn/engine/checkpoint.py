"""Checks of checkpoint files before anything unpickles them.

A ``.pth`` file is a pickle: reading it plainly runs whatever code its author put
in, and the loader of mmengine's maintained line falls back to reading plainly
when the safe way fails. So the tools look first.
"""

import contextlib
import os
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer

from mmdyn.converters.hub import timm_model_name

# What mmengine's loader takes as an address and not as a path: https://, torchvision:// ...
_URL = re.compile(r'^[A-Za-z][A-Za-z0-9+.-]+:(\w+:)?//')
_CHECKPOINT_KEYS = ('pretrained', 'teacher_checkpoint', 'teacher_ckpt')
# A file in torch's old format starts with three small pickles before the content.
_LEGACY_PICKLES = 4

_STORAGES = ('BFloat16', 'Bool', 'Byte', 'Char', 'Double', 'Float', 'Half', 'Int', 'Long', 'Short')
_NUMPY_CORES = ('numpy.core.multiarray', 'numpy._core.multiarray')
_HARMLESS = {
    '_codecs.encode',
    'builtins.set',
    'builtins.slice',
    'collections.OrderedDict',
    'mmengine.logging.history_buffer.HistoryBuffer',
    'numpy.dtype',
    'numpy.ndarray',
    'torch.Size',
    'torch._tensor._rebuild_from_type_v2',
    'torch._utils._rebuild_parameter',
    'torch._utils._rebuild_tensor',
    'torch._utils._rebuild_tensor_v2',
    'torch.device',
    'torch.nn.parameter.Parameter',
    *(f'torch.{name}Storage' for name in _STORAGES),
    *(f'{core}.{name}' for core in _NUMPY_CORES for name in ('_reconstruct', 'scalar')),
}
# mmengine's HistoryBuffer pickles these methods of its own by name.
_HARMLESS_ATTRIBUTES = {'min', 'max', 'current', 'mean'}


def check_checkpoint(path: str | os.PathLike, trust: bool = False) -> None:
    """Checks that a checkpoint file is there, is whole, and holds data only.

    The file is read with torch's restricted unpickler (``weights_only=True``)
    and the types that mmengine's own checkpoints contain. Tensors' values stay on
    disk (memory-mapped), so that this takes well under a second.

    torch before 2.5 (the original line's 2.1) cannot be told about mmengine's
    types. There the pickle is replayed with stand-ins for everything it names,
    which runs none of it, and every name must be on a short list: as strict,
    but the list is ours and not torch's.

    Args:
        path: A local path; an address such as ``https://...``,
            ``torchvision://...`` is passed through unchecked.
        trust: Accept a file that holds more than data.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged or no checkpoint, or if it holds
            objects whose reading runs code and ``trust`` is False.
    """
    path = os.fspath(path)
    if is_address(path):
        return
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(
            f'checkpoint {_absolute(file)} does not exist or is no file: check the path (a '
            'training writes its checkpoints into its work_dir)'
        )
    try:
        _load_safely(file, mmap=zipfile.is_zipfile(file))  # only the zip format can be mapped
        return
    except Exception as error:  # torch raises a dozen types for damaged files
        failure = error
    try:
        foreign = foreign_names(file)
    except Exception as error:
        raise ValueError(
            f'checkpoint {_absolute(file)} is damaged or no checkpoint '
            f'({_first_line(error)}): download or write it again'
        ) from failure
    refused = isinstance(failure, pickle.UnpicklingError) or bool(foreign)
    if not refused:
        raise ValueError(
            f'checkpoint {_absolute(file)} cannot be read ({_first_line(failure)}): download or '
            'write it again'
        ) from failure
    if trust or not (foreign or _can_allow()):
        return
    what = ', '.join(foreign) or "objects that torch's safe load refuses"
    raise ValueError(
        f'checkpoint {_absolute(file)} holds more than data ({what}): reading it would run code '
        'that the file brings. If you trust where it comes from, pass --trust-checkpoint'
    )


def read_checkpoint(path: str | os.PathLike, trust: bool = False) -> Any:
    """Reads a checkpoint file after :func:`check_checkpoint`, data only unless trusted.

    Args:
        path: A local file.
        trust: Read it even if that runs code which the file brings.

    Returns:
        Its content, tensors on the CPU.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If ``path`` is an address, or the file is damaged, no
            checkpoint, or holds more than data and ``trust`` is False.
    """
    if is_address(os.fspath(path)):
        raise ValueError(f'{path} is an address; download it, then name the file')
    check_checkpoint(path, trust)
    file = Path(path).expanduser()
    if trust:
        return torch.load(str(file), map_location='cpu', weights_only=False)
    try:
        return _load_safely(file)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors, and torch {torch.__version__} can't be told what "
            'else is harmless. If you trust where it comes from, pass --trust-checkpoint'
        ) from error


def is_address(path: str) -> bool:
    """Whether mmengine's loader takes ``path`` as an address and not as a local path.

    Args:
        path: What stands in a config or on a command line.

    Returns:
        True for ``https://...``, ``open-mmlab://...``, ``s3://...`` and the like.
    """
    # The loader takes an address of no known scheme as a path after all.
    return _URL.match(path) is not None and not os.path.exists(path)


def config_checkpoints(cfg: Config) -> Iterator[tuple[str, str]]:
    """The checkpoints that a config's model will load when it is initialised.

    Args:
        cfg: A whole config.

    Yields:
        Where the config names it ('model.backbone.init_cfg.checkpoint'),
        and the path or address.
    """
    yield from _model_checkpoints(cfg.get('model'), 'model')


def check_config_checkpoints(cfg: Config, trust: bool = False) -> None:
    """Checks every local checkpoint that a training with this config will read.

    Args:
        cfg: A whole config; ``load_from`` counts, resuming or not.
        trust: As for :func:`check_checkpoint`.

    Raises:
        FileNotFoundError: As :func:`check_checkpoint`, naming the config's key.
        ValueError: As :func:`check_checkpoint`, naming the config's key.
    """
    # Backbones of ours take timm's names too.
    named = [(key, path) for key, path in config_checkpoints(cfg) if not timm_model_name(path)]
    if cfg.get('load_from'):
        named.append(('load_from', cfg.load_from))
    for key, path in named:
        try:
            check_checkpoint(path, trust)
        except (FileNotFoundError, ValueError) as error:
            raise type(error)(f'{key}: {error}') from error


def foreign_names(file: str | os.PathLike) -> list[str]:
    """Names what a checkpoint's pickle refers to beyond plain data; runs none of it.

    Args:
        file: A local file.

    Returns:
        Sorted qualified names such as 'posix.system'; empty if all
        the pickle needs is tensors, arrays and mmengine's log buffers.

    Raises:
        Exception: Whatever the unpickler raises if the file is no pickle.
    """
    found: set[str] = set()
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            names = [n for n in archive.namelist() if n.split('/')[-1] == 'data.pkl']
            if not names:
                raise ValueError('a zip file without data.pkl')
            with archive.open(names[0]) as stream:
                _InertUnpickler(stream, found).load()
    else:
        with open(file, 'rb') as stream:
            for _ in range(_LEGACY_PICKLES):
                _InertUnpickler(stream, found).load()
    return sorted(found)


class _Inert:
    """Takes the place of everything a pickle names and does nothing."""

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __init__(self, *args, **kwargs) -> None:
        pass

    def _ignore(self, *args) -> None:
        pass

    __setstate__ = __setitem__ = append = extend = add = _ignore

    def __call__(self, *args, **kwargs) -> '_Inert':
        return _Inert()


class _InertUnpickler(pickle.Unpickler):
    """Replays a pickle with :class:`_Inert` objects and notes foreign names.

    A pickle has no branches: what it names here is what it names when loaded.
    """

    def __init__(self, stream, found: set[str]) -> None:
        super().__init__(stream)
        self._found = found

    def find_class(self, module: str, name: str) -> Any:
        # Protocol 2, torch's default, writes the name of Python 2.
        qualified = f'{module}.{name}'.replace('__builtin__.', 'builtins.')
        if qualified == 'builtins.getattr':
            return self._getattr
        if not (qualified in _HARMLESS or _is_dtype(module, name)):
            self._found.add(qualified)
        return _Inert

    def persistent_load(self, pid: Any) -> Any:
        return _Inert()

    def _getattr(self, owner: Any, name: Any, *default: Any) -> Any:
        if name not in _HARMLESS_ATTRIBUTES:
            self._found.add(f'builtins.getattr (of {name!r})')
        return _Inert()


def _is_dtype(module: str, name: str) -> bool:
    if module == 'torch':
        return isinstance(getattr(torch, name, None), torch.dtype)
    return module == 'numpy.dtypes' and name.endswith('DType')


def _can_allow() -> bool:
    """Whether this torch can be told which types beyond tensors are harmless."""
    return hasattr(torch.serialization, 'safe_globals')


def _load_safely(file: Path, **kwargs: Any) -> Any:
    """Reads the file with torch's restricted unpickler, plus mmengine's types if torch can."""
    allowed = (
        torch.serialization.safe_globals(_mmengine_types())
        if _can_allow()
        else contextlib.nullcontext()
    )
    with allowed:
        return torch.load(str(file), map_location='cpu', weights_only=True, **kwargs)


def _mmengine_types() -> list[Any]:
    """What mmengine's checkpoints hold beyond tensors. mmengine has such a list of
    its own on the maintained line; this one takes every dtype of numpy."""
    core = np._core if hasattr(np, '_core') else np.core
    dtypes = {type(np.dtype(code)) for code in np.typecodes['All'] if code not in 'OV'}
    return [
        HistoryBuffer,
        getattr,
        slice,
        np.ndarray,
        np.dtype,
        core.multiarray._reconstruct,
        core.multiarray.scalar,
        *dtypes,
    ]


def _model_checkpoints(node: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, list | tuple):
        for index, item in enumerate(node):
            yield from _model_checkpoints(item, f'{key}.{index}')
    if not isinstance(node, dict):
        return
    # A Pretrained initialisation, or a teacher.
    loads = str(node.get('type', '')).endswith('Pretrained') or key.endswith('.teacher')
    if loads and isinstance(node.get('checkpoint'), str):
        yield f'{key}.checkpoint', node['checkpoint']
    for name, value in node.items():
        if name in _CHECKPOINT_KEYS and isinstance(value, str):
            yield f'{key}.{name}', value
        else:
            yield from _model_checkpoints(value, f'{key}.{name}')


def _absolute(file: Path) -> Path:
    return Path(os.path.abspath(file))


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
