"""Reading checkpoints from files and addresses, as data.

A ``.pth`` file is a pickle: reading it plainly runs whatever code its author put in, and the
loader of mmengine's maintained line falls back to reading plainly when the safe way fails. So
files are looked at first, and read with torch's restricted unpickler.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import torch
from mmengine.dist import barrier, get_dist_info
from mmengine.logging import HistoryBuffer
from mmengine.optim import OneCycleParamScheduler
from mmengine.runner import (
    CheckpointLoader,
    get_deprecated_model_names,
    get_external_models,
    get_mmcls_models,
    get_torchvision_models,
)
from mmengine.runner.checkpoint import load_from_ceph, load_from_pavi

from mmdyn.converters.pickles import HARMLESS_ATTRIBUTES, UnusualError, foreign_names, is_zip

# What mmengine's loader takes as an address and not as a path: https://, torchvision:// ...
_URL = re.compile(r'^[A-Za-z][A-Za-z0-9+.-]+:(\w+:)?//')
_MODEL_ZOOS = {
    'torchvision': get_torchvision_models,
    'modelzoo': get_torchvision_models,
    'open-mmlab': get_external_models,
    'openmmlab': get_external_models,
    'mmcls': get_mmcls_models,
}
# Addresses of what can't be looked at before it is read.
_STORAGES = ('pavi://', r'(\S+\:)?s3://', r'(\S+\:)?petrel://')
_PREFIXES = (
    '',
    'http://',
    'https://',
    *(f'{zoo}://' for zoo in _MODEL_ZOOS),
    *_STORAGES,
)
_REMEDY = (
    'If you trust where it comes from, pass --trust-checkpoint (trust_checkpoint=True in Python)'
)
_OWNERS = (HistoryBuffer, OneCycleParamScheduler)
# Files and addresses that the user of this process said may be read whatever they hold.
_trusted: set[str] = set()


class DamagedCheckpointError(ValueError):
    """A file that is no checkpoint, or only a part of one."""


def check_checkpoint(path: str | os.PathLike, trust: bool = False) -> None:
    """Checks that a checkpoint file is there, is whole, and holds data only.

    Its pickles are replayed with stand-ins for everything that they name, which runs none of
    it: every name must be on a short list. Then the file is read with torch's restricted
    unpickler (``weights_only=True``) and the types that mmengine's own checkpoints contain.
    Tensors' values stay on disk (memory-mapped), so that this takes well under a second.

    torch before 2.5 (the original line's 2.1) can't be told about mmengine's types; there the
    short list alone decides.

    Args:
        path: A local path. An address such as ``https://...`` passes: what lies there
            is looked at when it is loaded.
        trust: Accept a file whatever it holds, here and when this process loads it;
            all that is checked here is that it is there, and no part of a zip file.

    Raises:
        FileNotFoundError: If there is no such file.
        PermissionError: If it may not be read.
        DamagedCheckpointError: If the file is damaged or no checkpoint.
        ValueError: If it holds objects whose reading runs code and ``trust`` is
            False.
    """
    path = os.fspath(path)
    if trust:
        _trusted.add(_name(path))
    if is_address(path):
        return
    file = _look_at(path, trust)
    if not trust:
        _read(file, mmap=is_zip(file))  # only the zip format can be mapped
    elif is_zip(file):
        with _damage(file):
            torch._C.PyTorchFileReader(str(file))


def _look_at(path: str | os.PathLike, trust: bool) -> Path:
    """The file, if it is there, and is trusted or its pickles name only what is harmless."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(
            f'checkpoint {_absolute(file)} does not exist or is no file: check the path (a '
            'training writes its checkpoints into its work_dir)'
        )
    if not os.access(file, os.R_OK):
        raise PermissionError(
            f'checkpoint {_absolute(file)} may not be read: change its permissions'
        )
    if trust:
        return file
    try:
        foreign = foreign_names(file)
    except UnusualError as error:
        raise ValueError(
            f'checkpoint {_absolute(file)} holds what is not read as data ({error}). {_REMEDY}'
        ) from error
    except Exception as error:  # a damaged file can raise anything
        raise DamagedCheckpointError(
            f'checkpoint {_absolute(file)} is damaged or no checkpoint '
            f'({_first_line(error)}): download or write it again'
        ) from error
    if foreign:
        raise ValueError(
            f'checkpoint {_absolute(file)} holds more than data ({", ".join(foreign)}): reading '
            f'it would run code that the file brings. {_REMEDY}'
        )
    return file


def read_checkpoint(path: str | os.PathLike, trust: bool = False, map_location: Any = 'cpu') -> Any:
    """Reads a checkpoint file, looked at as by :func:`check_checkpoint`; data only unless trusted.

    Args:
        path: A local file.
        trust: Read it even if that runs code which the file brings.
        map_location: Where its tensors go, as for ``torch.load``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If ``path`` is an address, or the file is damaged, no
            checkpoint, or holds more than data and ``trust`` is False.
    """
    if is_address(os.fspath(path)):
        raise ValueError(f'{path} is an address; download it, then name the file')
    file = _look_at(path, trust)
    return _read(file, map_location, trust)


def load_checkpoint(source: str, map_location: Any = 'cpu') -> Any:
    """Reads a checkpoint from wherever mmengine's loader would, data only.

    What :func:`check_checkpoint` was told to trust is read whatever it holds.

    Args:
        source: A path, or an address: ``https://...``, ``torchvision://...``, ``open-mmlab://...``.
        map_location: Where its tensors go, as for ``torch.load``.

    Raises:
        FileNotFoundError: If there is no such file.
        OSError: If an address can't be read.
        ValueError: As :func:`read_checkpoint`; or an address is of a kind that
            can't be looked at before it is read.
    """
    trusted = _name(source) in _trusted
    if not is_address(source):
        return read_checkpoint(source, trusted, map_location)
    if trusted and any(re.match(start, source) for start in _STORAGES):
        load = load_from_pavi if source.startswith('pavi://') else load_from_ceph
        return load(source, map_location)
    try:
        content = read_checkpoint(_fetch(_url_of(source)), trusted, map_location)
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f'{source}: {error}') from error
    return _backbone_of(content) if source.startswith('mmcls://') else content


def guard_loading() -> None:
    """Has mmengine read every checkpoint through :func:`load_checkpoint`, in this process.

    That of ``load_from``, of ``resume``, and those that the hosts' modules are initialised
    with.
    """
    CheckpointLoader.register_scheme(list(_PREFIXES), load_from_checked, force=True)


def load_from_checked(filename: str, map_location: Any = None) -> Any:
    """:func:`load_checkpoint` under a name that mmengine makes a line of its log from.

    Takes out the config that trainings with mmcv 1 left in ``meta``, unless the file is trusted:
    mmengine runs that text, a Python file, on resuming.
    """
    content = load_checkpoint(filename, map_location)
    meta = content.get('meta') if isinstance(content, dict) else None
    if isinstance(meta, dict) and _name(filename) not in _trusted:
        meta.pop('config', None)
    return content


def is_address(path: str) -> bool:
    """Whether mmengine's loader takes ``path`` as an address and not as a local path.

    Args:
        path: What stands in a config or on a command line.

    Returns:
        True for ``https://...``, ``open-mmlab://...``, ``s3://...`` and the like.
    """
    # The loader takes an address of no known scheme as a path after all.
    return _URL.match(path) is not None and not os.path.exists(path)


def _name(path: str) -> str:
    return path if is_address(path) else os.path.realpath(os.path.expanduser(path))


def _url_of(address: str) -> str:
    """The https address behind a model zoo's."""
    kind, _, name = address.partition('://')
    if kind in ('http', 'https'):
        return address
    models = _MODEL_ZOOS[kind]() if kind in _MODEL_ZOOS else {}
    if models and kind in ('open-mmlab', 'openmmlab'):
        name = get_deprecated_model_names().get(name, name)
    url = models.get(name, '')
    if not url.startswith(('http://', 'https://')):
        remedy = f'. {_REMEDY}' if kind not in _MODEL_ZOOS else ''
        raise ValueError(
            'it is no address that can be downloaded and looked at before it is read; download it '
            f'yourself, then name the file{remedy}'
        )
    return url


def _fetch(url: str) -> str:
    """Downloads a file to where torch.hub keeps those that it downloads, unless it is there."""
    folder = os.path.join(torch.hub.get_dir(), 'checkpoints')
    file = os.path.join(folder, os.path.basename(urlparse(url).path))
    rank, processes = get_dist_info()
    if rank == 0:
        _download(url, file)
    if processes > 1:
        barrier()
        _download(url, file)  # machines that don't share the folder
    return file


def _download(url: str, file: str) -> None:
    if not os.path.exists(file):
        os.makedirs(os.path.dirname(file), exist_ok=True)
        torch.hub.download_url_to_file(url, file, progress=False)


def _backbone_of(content: Any) -> dict[str, Any]:
    """The backbone's weights among a classifier's, as mmengine takes them."""
    state = content.get('state_dict', content)
    start = 'backbone.'
    return dict(
        state_dict=OrderedDict(
            (name[len(start) :], value) for name, value in state.items() if name.startswith(start)
        )
    )


def _read(file: Path, map_location: Any = 'cpu', trust: bool = False, **kwargs: Any) -> Any:
    """Reads a file, with torch's restricted unpickler unless it is trusted or torch is too old."""
    with _damage(file), contextlib.nullcontext() if trust else _harmless_types():
        return torch.load(
            str(file),
            map_location=map_location,
            weights_only=not trust and _can_allow(),
            **kwargs,
        )


@contextlib.contextmanager
def _damage(file: Path) -> Iterator[None]:
    """What torch raises for a file it cannot read."""
    try:
        yield
    except Exception as error:  # a dozen types
        raise DamagedCheckpointError(
            f'checkpoint {_absolute(file)} cannot be read ({_first_line(error)}): download or '
            'write it again'
        ) from error


def _can_allow() -> bool:
    """Whether this torch can be told which types beyond tensors are harmless."""
    return hasattr(torch.serialization, 'safe_globals')


@contextlib.contextmanager
def _harmless_types() -> Iterator[None]:
    """Tells torch what mmengine's checkpoints hold beyond tensors.

    mmengine has such a list of its own on the maintained line; it holds ``getattr``, with
    which a file can reach, and call, anything.
    """
    if not _can_allow():
        yield
        return
    core = np._core if hasattr(np, '_core') else np.core
    dtypes = {type(np.dtype(code)) for code in np.typecodes['All'] if code not in 'OV'}
    types = [
        *_OWNERS,
        _attribute,
        bytes,
        slice,
        np.ndarray,
        np.dtype,
        core.multiarray._reconstruct,
        core.multiarray.scalar,
        *dtypes,
    ]
    with torch.serialization.safe_globals(types):
        yield


def _attribute(owner: Any, name: str) -> Any:
    """What stands for ``getattr`` while a checkpoint is read."""
    owners = [known for known in _OWNERS if known is owner]
    if not owners or name not in HARMLESS_ATTRIBUTES[f'{owner.__module__}.{owner.__qualname__}']:
        raise ValueError(f'it asks for {name!r} of {owner!r}')
    return getattr(owner, name)


# Pickles, and so torch, know functions by these.
_attribute.__module__, _attribute.__name__, _attribute.__qualname__ = (
    'builtins',
    'getattr',
    'getattr',
)


def _absolute(file: Path) -> Path:
    return Path(os.path.abspath(file))


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    if isinstance(error, KeyError) or not text:
        return f'{type(error).__name__} {text}'.rstrip()
    return text.splitlines()[0][:200]
