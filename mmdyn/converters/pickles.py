"""What is in a checkpoint's pickles, found out without making any of it.

A pickle is a program without branches: it names functions of installed packages and calls
them. Here it is replayed with stand-ins for everything that it names, so all that reading the
file would do is seen first: a name off a short list, memory that the file does not hold, a key
whose hash takes for ever.
"""

from __future__ import annotations

import io
import math
import mmap
import os
import pickle
import re
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

# A file in torch's old format is five pickles, the fourth the content, then the tensors.
_LEGACY_PICKLES = 5
# What is in the file once may be used often, but not without end: what is made is bounded.
_SHARING = 16
_SLACK = 2**20
_MOST_DIMENSIONS = 64
# Each may make an object. A training's file takes about 270 for each of a model's parameters.
_MOST_READS = 1_000_000
# Bytes of an item of a list, dictionary or tuple; it takes two in a pickle.
_ITEM = 16

# What torch writes. Other instructions ask for memory by a number, or for what torch cannot read.
_INSTRUCTIONS = (
    'PROTO', 'STOP', 'MARK', 'POP', 'POP_MARK', 'BINPUT', 'LONG_BINPUT', 'BINGET', 'LONG_BINGET',
    'NONE', 'NEWTRUE', 'NEWFALSE', 'BININT', 'BININT1', 'BININT2', 'LONG1', 'BINFLOAT',
    'BINUNICODE', 'SHORT_BINSTRING', 'EMPTY_TUPLE', 'TUPLE', 'TUPLE1', 'TUPLE2', 'TUPLE3',
    'EMPTY_LIST', 'APPEND', 'APPENDS', 'EMPTY_DICT', 'SETITEM', 'SETITEMS',
    'GLOBAL', 'REDUCE', 'NEWOBJ', 'BUILD', 'BINPERSID',
)  # fmt: skip
_ITEMSIZES = {
    'BFloat16': 2, 'Bool': 1, 'Byte': 1, 'Char': 1, 'ComplexDouble': 16, 'ComplexFloat': 8,
    'Double': 8, 'Float': 4, 'Half': 2, 'Int': 4, 'Long': 8, 'Short': 2, 'Untyped': 1,
}  # fmt: skip
_LATIN = ('latin1', 'latin-1')
_NUMPY_CORES = ('numpy.core.multiarray', 'numpy._core.multiarray')
_HARMLESS = {
    'builtins.complex',
    'torch.Size',
    'torch.device',
}
# Made, they are tensors.
_PARAMETERS = (
    'torch._utils._rebuild_parameter',
    'torch._utils._rebuild_parameter_with_state',
    'torch.nn.parameter.Parameter',
)
# What functions are told to make; called, they would make one of any size.
_ARGUMENTS = {'numpy.ndarray', 'torch.Tensor'}
_HISTORY = 'mmengine.logging.history_buffer.HistoryBuffer'
# Methods of theirs that mmengine's classes pickle by name: a log buffer's, a schedule's.
HARMLESS_ATTRIBUTES = {
    _HISTORY: ('min', 'max', 'current', 'mean'),
    'mmengine.optim.scheduler.param_scheduler.OneCycleParamScheduler': (
        '_annealing_cos',
        '_annealing_linear',
    ),
}
# Numbers and text; neither objects nor records, which could hold some.
_PLAIN_DTYPE = re.compile(r'[<>|=]?(?:[?biufc][0-9]{0,2}|[SUmM][0-9]{0,6}(?:\[\w+\])?)')


class UnusualError(ValueError):
    """A file that may be whole, but is not read as data."""


def foreign_names(file: str | os.PathLike) -> list[str]:
    """Names what a checkpoint's pickles refer to beyond plain data; runs none of it.

    Args:
        file: A local file.

    Returns:
        Sorted qualified names such as 'posix.system'; empty if all that the pickles need is
        tensors, arrays and mmengine's log buffers.

    Raises:
        UnusualError: If the file holds what is not read as data, though torch could.
        ValueError: If the file is no checkpoint that torch writes, or declares more than it
            holds.
        Exception: Whatever the unpickler raises if the file is damaged.
    """
    found: set[str] = set()
    try:
        (_replay_zip if is_zip(file) else _replay_legacy)(file, found)
    except Exception:
        # Stand-ins for what is not known need not do what the rest of the file expects of them.
        if not found:
            raise
    return sorted(found)


def is_zip(file: str | os.PathLike) -> bool:
    """Whether torch reads a file in its format of today, a zip file, or in the old one.

    Args:
        file: A local file.
    """
    with open(file, 'rb') as stream:
        return stream.read(4) == b'PK\3\4'


def _replay_legacy(file: str | os.PathLike, found: set[str]) -> None:
    if tarfile.is_tarfile(file):
        raise UnusualError('a tar file, the format of torch 0.1')
    # Mapped: what is read is never more than the file, whatever length a pickle declares.
    with open(file, 'rb') as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view:
        for _ in range(_LEGACY_PICKLES):
            _Replay(view, found, len(view)).load()


def _replay_zip(file: str | os.PathLike, found: set[str]) -> None:
    size = os.path.getsize(file)
    with open(file, 'rb') as stream, zipfile.ZipFile(stream) as archive:
        _check_end(stream, size)
        folder, sizes = _records(archive, size)
        content = archive.read(f'{folder}/data.pkl')
        stream.seek(0)
        # What torch will run must be what is looked at here.
        reader = torch._C.PyTorchFileReader(stream)
        names = sorted(f'{folder}/{name}' for name in reader.get_all_records())
        if names != sorted(archive.namelist()) or reader.get_record('data.pkl') != content:
            raise ValueError('a zip file that can be read in two ways')
    _Replay(io.BytesIO(content), found, size, sizes).load()


def _check_end(stream: Any, size: int) -> None:
    """Refuse a zip file whose directory two readers may look for in different places.

    Its end is a record of 22 bytes; in front of that stand, in a large file, one of 56 bytes and
    one of 20 bytes that says where that is.
    """
    stream.seek(max(size - 98, 0))
    tail = stream.read(98)
    end, place, start = tail[-22:], size - 22, struct.Struct('<12x2L2x')
    if tail[-42:-38] == b'PK\6\7':
        place, start = size - 98, struct.Struct('<40x2Q')
        (named,) = struct.unpack('<8xQ4x', tail[-42:-22])
        if named != place or tail[:4] != b'PK\6\6':
            raise ValueError('a zip file with two ends')
    directory, offset = start.unpack(end if place == size - 22 else tail[:56])
    if end[:4] != b'PK\5\6' or offset + directory != place:
        raise ValueError('a zip file whose end is elsewhere')


def _records(archive: zipfile.ZipFile, file_size: int) -> tuple[str, dict[str, int]]:
    """The folder of a checkpoint's zip file, and the bytes of each tensor's memory by its key.

    torch has a reader of its own. What two readers could take for different things is refused:
    names that occur twice, a size that is told twice, a file in front of the archive or behind it.
    """
    entries = archive.infolist()
    folder = entries[0].filename.partition('/')[0] if entries else ''
    sizes = {entry.filename: entry.file_size for entry in entries}
    names = {name.lower() for name in sizes}
    plain = (
        len(names) == len(entries)
        and all(e.filename == e.orig_filename for e in entries)
        and all(e.filename.startswith(f'{folder}/') for e in entries)
        and all(e.extra[:4] == struct.pack('<HH', 1, len(e.extra) - 4) for e in entries if e.extra)
        and min((e.header_offset for e in entries), default=1) == 0
        and not archive.comment
    )
    if not plain or f'{folder}/data.pkl' not in sizes:
        raise ValueError('a zip file that torch.save did not write')
    if f'{folder}/constants.pkl'.lower() in names:
        raise UnusualError('a program of TorchScript')
    if any(e.compress_type != zipfile.ZIP_STORED for e in entries):
        raise UnusualError('a compressed zip file')
    if sum(sizes.values()) > file_size or any(e.compress_size != e.file_size for e in entries):
        raise ValueError('a zip file whose entries are larger than the file')
    start = f'{folder}/data/'
    return folder, {n[len(start) :]: size for n, size in sizes.items() if n.startswith(start)}


class _Made:
    """Stands for what a pickle makes, of about so many bytes."""

    __slots__ = ('size',)

    def __init__(self) -> None:
        self.size = 0

    def __setstate__(self, state: Any) -> None:
        """Takes any state, and forgets it."""


class _Dict(_Made):
    """Stands for a dictionary, and keeps nothing: hashing its keys could take for ever."""

    __slots__ = ('_check_key',)

    def __init__(self, check_key: Callable[[Any], None]) -> None:
        super().__init__()
        self._check_key = check_key

    def __setitem__(self, key: Any, value: Any) -> None:
        self._check_key(key)
        self.size += _ITEM


class _Tensor(_Made):
    """Stands for a tensor."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise UnusualError('it puts a tensor in another place')


class _Named:
    """Stands for a class or function that a pickle names; called, it makes something."""

    def __call__(self, *args: Any) -> _Made:
        return _Made()


@dataclass
class _Owner:
    """Stands for a class of which a pickle may ask for some attributes."""

    name: str

    def __call__(self, *args: Any) -> _Made:
        if self.name != _HISTORY or args:
            raise UnusualError(f'it calls {self.name}')
        return _Made()


@dataclass
class _Numbers(_Named):
    """Stands for a type of numbers, of so many bytes each."""

    itemsize: int


@dataclass
class _Storage:
    """Stands for a tensor's memory: so many numbers, of so many bytes each."""

    count: int
    itemsize: int


class _Dtype(_Made):
    """Stands for a plain dtype of numpy, which must stay what its name says."""

    __slots__ = ('_flags', 'itemsize')

    def __init__(self, code: str) -> None:
        super().__init__()
        dtype = np.dtype(code)
        self.itemsize, self._flags = dtype.itemsize, dtype.flags

    def __setstate__(self, state: Any) -> None:
        # Fields and flags could turn numbers into addresses of objects.
        if tuple(state[2:5]) != (None, None, None) or state[7] != self._flags:
            raise UnusualError('it changes a dtype')


# Python's, for the one in C makes room for as many objects as a pickle claims to have.
class _Replay(pickle._Unpickler):
    """Replays a pickle with stand-ins and notes foreign names.

    Args:
        stream: what to read from.
        found: where foreign names are noted.
        file_size: bytes of the whole file.
        sizes: bytes of each tensor's memory by its key; None = they follow the pickles.
    """

    dispatch = {
        getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]]
        for name in _INSTRUCTIONS
    }

    def __init__(
        self, stream: Any, found: set[str], file_size: int, sizes: dict[str, int] | None = None
    ) -> None:
        super().__init__(stream)
        self._read_plainly, self._file_read = self._file_read, self._read_counting
        self._reads = 0
        self._found = found
        self._file_size = file_size
        self._sizes = sizes
        self._stored: dict[str, int] = {}
        self._room = file_size
        self._made = 0
        self._functions: dict[str, Callable[..., Any]] = {
            '_codecs.encode': self._encode,
            'builtins.bytearray': _bytes,
            'builtins.bytes': _bytes,
            'builtins.getattr': self._getattr,
            'builtins.set': self._collection,
            'builtins.slice': self._slice,
            'collections.Counter': self._collection,
            'collections.OrderedDict': self._collection,
            'numpy.dtype': self._dtype,
            'torch._tensor._rebuild_from_type_v2': self._typed,
            'torch._utils._rebuild_tensor': self._tensor,
            'torch._utils._rebuild_tensor_v2': self._tensor,
            'torch._utils._rebuild_tensor_v3': self._typed_tensor,
            **{name: lambda *_: _Tensor() for name in _PARAMETERS},
            **{f'{core}._reconstruct': _array for core in _NUMPY_CORES},
            **{f'{core}.scalar': self._scalar for core in _NUMPY_CORES},
        }

    def _read_counting(self, size: int) -> bytes:
        self._reads += 1
        if self._reads > _MOST_READS:
            raise UnusualError(f'over {_MOST_READS} steps to read it')
        return self._read_plainly(size)

    def load(self) -> Any:
        content = super().load()
        # torch before 2.5 reads with the unpickler in C, which has room for all up to the highest.
        if max(self.memo, default=0) > self._file_size:
            raise ValueError('it counts more objects than it can have')
        return content

    def load_empty_dict(self) -> None:
        self.append(_Dict(self._check_key))

    dispatch[pickle.EMPTY_DICT[0]] = load_empty_dict

    def load_reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.append(self._call(function, arguments))

    dispatch[pickle.REDUCE[0]] = dispatch[pickle.NEWOBJ[0]] = load_reduce

    def load_build(self) -> None:
        state = self.stack.pop()
        self._charge(_size(state if isinstance(state, tuple) else (state,)))
        self.stack[-1].__setstate__(state)

    dispatch[pickle.BUILD[0]] = load_build

    def load_other(self) -> None:
        raise UnusualError('pickled in another way than torch does')

    dispatch = dict.fromkeys(pickle._Unpickler.dispatch, load_other) | dispatch

    def _call(self, function: Callable[..., Any], arguments: tuple) -> Any:
        size = _size(arguments)
        self._charge(size)
        made = function(*arguments)
        if isinstance(made, _Made):
            made.size += size
        return made

    def _charge(self, size: int) -> None:
        """Counts memory, or steps, that something takes which is made from what was read."""
        self._made += size
        if self._made > _SHARING * self._file_size + _SLACK:
            raise UnusualError(f'what it makes is over {_SHARING} times as large as the file')

    def find_class(self, module: str, name: str) -> Any:
        # Protocol 2, torch's default, writes the name of Python 2.
        module = 'builtins' if module == '__builtin__' else module
        qualified = f'{module}.{name}'
        if qualified in self._functions:
            return self._functions[qualified]
        if qualified in _ARGUMENTS:
            return qualified
        if qualified in HARMLESS_ATTRIBUTES:
            return _Owner(qualified)
        if module in ('torch', 'torch.storage') and name.endswith('Storage'):
            itemsize = _ITEMSIZES.get(name.removesuffix('Storage'))
            if not itemsize:
                self._found.add(qualified)
            return _Numbers(itemsize or 1)
        if module == 'torch' and isinstance(getattr(torch, name, None), torch.dtype):
            return _Numbers(getattr(torch, name).itemsize)
        if qualified not in _HARMLESS:
            self._found.add(qualified)
        return _Named()

    def persistent_load(self, pid: Any) -> _Storage:
        word, kind, key, _, count, *view = pid
        if word != 'storage' or not isinstance(key, str) or any(part is not None for part in view):
            raise ValueError('it refers to what is no memory of a tensor')
        size = count * kind.itemsize
        if key not in self._stored:
            self._room -= size
        fits = self._sizes is None or size <= self._sizes[key]
        if size < 0 or self._room < 0 or not fits or self._stored.setdefault(key, size) != size:
            raise ValueError(f'a tensor of {count} values is not in the file')
        return _Storage(count, kind.itemsize)

    def _tensor(
        self, storage: _Storage, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any
    ) -> _Made:
        if len(size) != len(stride) or len(size) > _MOST_DIMENSIONS:
            raise ValueError(f'a tensor has {len(size)} sizes and {len(stride)} strides')
        # torch makes the memory larger where a tensor is not within it.
        end = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1
        values = math.prod(size)
        if min(offset, *size, *stride, 0) < 0 or (end if values else offset) > storage.count:
            raise ValueError('a tensor is not within its memory')
        self._charge(values * storage.itemsize)
        return _Tensor()

    def _typed_tensor(
        self, storage: _Storage, offset: int, size: Any, stride: Any, *rest: Any
    ) -> _Made:
        numbers = rest[2]
        count = storage.count * storage.itemsize // numbers.itemsize
        return self._tensor(_Storage(count, numbers.itemsize), offset, size, stride)

    def _typed(self, make: Callable[..., Any], kind: Any, arguments: tuple, state: Any) -> Any:
        return self._call(make, arguments)

    def _getattr(self, owner: Any, name: Any) -> _Made:
        known = HARMLESS_ATTRIBUTES[owner.name] if isinstance(owner, _Owner) else ()
        if _text(name) not in known:
            self._found.add(f'builtins.getattr (of {name!r})')
        return _Made()

    def _encode(self, text: Any, encoding: Any) -> str:
        if _text(encoding) not in _LATIN:
            self._found.add(f'_codecs.encode (as {encoding!r})')
        return _text(text)

    def _dtype(self, code: Any, *flags: Any) -> _Made:
        if not _PLAIN_DTYPE.fullmatch(_text(code)):
            self._found.add(f'numpy.dtype (of {code!r})')
            return _Made()
        return _Dtype(code)

    def _scalar(self, dtype: Any, *_: Any) -> _Made:
        self._charge(dtype.itemsize if isinstance(dtype, _Dtype) else 0)
        return _Made()

    def _collection(self, items: Any = ()) -> _Made:
        """A set, a counter or an ordered dictionary; what a dictionary holds was looked at."""
        if not isinstance(items, _Made):
            for item in items:
                # An old OrderedDict comes as a list of pairs.
                self._check_key(item[0] if isinstance(item, list) else item)
        return _Dict(self._check_key)

    def _slice(self, *ends: Any) -> _Made:
        self._check_key(ends)
        return _Made()

    def _check_key(self, key: Any) -> None:
        """Refuses keys that nest: hashing what is nested n times over can take 2^n steps."""
        if isinstance(key, tuple):
            self._charge(_size((key,)))
            if any(isinstance(part, tuple) for part in key):
                raise UnusualError('a dictionary with nested tuples as keys')


def _array(kind: Any, shape: Any, *_: Any) -> _Made:
    if kind != 'numpy.ndarray' or shape != (0,):
        raise UnusualError('an array that is more than its values')
    return _Made()


def _bytes(*arguments: Any) -> _Made:
    if arguments and not (len(arguments) == 1 and isinstance(arguments[0], str)):
        raise UnusualError('bytes that are more than their values')
    return _Made()


def _size(values: Iterable[Any]) -> int:
    """About the bytes of copies of some values, or the steps that looking at them takes."""
    sizes = {str: 1, bytes: 1, list: _ITEM, tuple: _ITEM}
    return sum(
        value.size if isinstance(value, _Made) else len(value) * sizes[type(value)]
        for value in values
        if isinstance(value, _Made) or type(value) in sizes
    )


def _text(value: Any) -> str:
    """A string as it is; what nests can take for ever to compare, or to show."""
    if not isinstance(value, str):
        raise ValueError(f'a {type(value).__name__} in place of a name')
    return value
