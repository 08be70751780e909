"""Malicious and invalid checkpoints."""

import io
import os
import pickle
import struct
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

from tests.reference import dynamic_convnext, dynamic_swin, dynamic_vit

DEPTHS, HEADS = (1, 1, 2, 1), (1, 1, 1, 1)


def saved(content: object, zipped: bool = True) -> bytes:
    """Output of ``torch.save``."""
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def entries(file: bytes) -> dict[str, bytes]:
    """Names and contents of a zip file."""
    with zipfile.ZipFile(io.BytesIO(file)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(contents: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> bytes:
    """Inverse of :func:`entries`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w', how) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def with_pickle(program: bytes) -> bytes:
    """A checkpoint in torch's format with a given pickle as content."""
    return zipped(entries(saved(torch.zeros(3))) | {'archive/data.pkl': b'\x80\x02' + program})


def named(module: str, name: str) -> bytes:
    """Opcodes that push a function onto a pickle's stack."""
    return f'c{module}\n{name}\n'.encode()


def text(value: str) -> bytes:
    """Opcodes that push a string."""
    return b'X' + struct.pack('<I', len(value)) + value.encode()


def attribute(owner: bytes, name: str) -> bytes:
    """Opcodes that push an attribute."""
    return named('builtins', 'getattr') + owner + text(name) + b'\x86R'


class Calls:
    """An object whose unpickling calls a function."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.how = function, arguments

    def __reduce__(self) -> tuple:
        return self.how


def through_allowed_names(canary: Path) -> bytes:
    """Reach os.system from a class that every training checkpoint names.

    torch's restricted unpickler runs it if getattr is allowed, as mmengine's loader does.
    """
    buffer = named('mmengine.logging.history_buffer', 'HistoryBuffer')
    names = attribute(attribute(buffer, '__init__'), '__globals__')
    found = named('collections', 'OrderedDict') + b')R' + names + b'b'
    for name in ('np', 'lib', '_npyio_impl', 'os', 'system'):
        found = attribute(found, name)
    call = b'(' + found + named('torch', 'Tensor') + text(f'touch {canary}') + b'\x85NtR'
    return with_pickle(
        b'}' + text('x') + named('torch._tensor', '_rebuild_from_type_v2') + call + b's.'
    )


def objects_as_numbers(canary: Path) -> bytes:
    """An array of numbers that numpy would use as addresses of objects."""
    dtype = named('numpy', 'dtype') + text('i8') + b'\x89\x88\x87R'
    inner = named('numpy', 'dtype') + text('O') + b'\x89\x88\x87R'
    state = (
        b'(K\x03' + text('|') + b'N' + text('a') + b'\x85'
        b'}' + text('a') + inner + b'K\x00\x86s' + b'K\x08K\x01K\x00t'
    )
    made = b'(' + named('numpy', 'ndarray') + b'K\x00\x85' + text('b') + b't'
    array = named('numpy._core.multiarray', '_reconstruct') + made + b'R'
    held = named('_codecs', 'encode') + text('A' * 8) + text('latin1') + b'\x86R'
    return with_pickle(array + b'(K\x01K\x01\x85' + dtype + state + b'b' + b'\x89' + held + b'tb.')


def numbers_as_objects(canary: Path) -> bytes:
    """A numeric dtype that claims to hold objects."""
    dtype = named('numpy', 'dtype') + text('i8') + b'\x89\x88\x87R'
    state = b'(K\x03' + text('<') + b'NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x3ft'
    made = b'(' + named('numpy', 'ndarray') + b'K\x00\x85' + text('b') + b't'
    array = named('numpy._core.multiarray', '_reconstruct') + made + b'R'
    held = named('_codecs', 'encode') + text('A' * 8) + text('latin1') + b'\x86R'
    return with_pickle(array + b'(K\x01K\x01\x85' + dtype + state + b'b' + b'\x89' + held + b'tb.')


def memory_by_address(canary: Path) -> bytes:
    """A log buffer whose statistics claim to be an array at some address."""
    told = b'}' + text('__array_interface__') + b'}('
    told += (
        text('shape') + b'K\x01\x85' + text('typestr') + text('|O8') + text('version') + b'K\x03'
    )
    told += text('data') + b'K\x08\x89\x86us'
    settings = named('mmengine.config.config', 'ConfigDict') + told + b'\x85Rq\x01'
    buffer = named('mmengine.logging.history_buffer', 'HistoryBuffer')
    return with_pickle(settings + buffer + b'h\x01h\x01\x86R.')


def attribute_of_a_class(canary: Path) -> bytes:
    """A state for a class instead of an object, which would change it for the whole process."""
    buffer = named('mmengine.logging.history_buffer', 'HistoryBuffer')
    return with_pickle(buffer + b'N}' + text('mean') + text('harm') + b's\x86b.')


def fifth_pickle(canary: Path) -> bytes:
    """torch's old format: the list of tensors after the content is a separate pickle."""
    plain, hostile = saved({}, zipped=False), pickle.dumps(Calls(os.mkdir, str(canary)), 2)
    last = pickle.dumps([], 2)
    assert plain.endswith(last)
    return plain.removesuffix(last) + hostile


CODE: dict[str, Callable[[Path], bytes]] = {
    'os.system': lambda canary: saved(Calls(os.system, f'touch {canary}')),
    'builtins.exec': lambda canary: saved(Calls(exec, f'open({str(canary)!r}, "w")')),
    'builtins.eval': lambda canary: saved(Calls(eval, f'open({str(canary)!r}, "w")')),
    'os.mkdir': lambda canary: saved(dict(state_dict={}, meta=Calls(os.mkdir, str(canary)))),
    'os.mkdir, old format': lambda canary: saved(Calls(os.mkdir, str(canary)), zipped=False),
    'behind the content, old format': fifth_pickle,
    'in an optimizer': lambda canary: saved(
        dict(state_dict=dict(a=torch.zeros(1)), optimizer=[Calls(os.mkdir, str(canary))])
    ),
    'torch.load': lambda canary: saved(Calls(torch.load, str(canary))),
    'through allowed names': through_allowed_names,
    'a pickle alone': lambda canary: pickle.dumps(Calls(os.mkdir, str(canary))),
    'memory by its address': memory_by_address,
    'attribute of a class': attribute_of_a_class,
    'objects as numbers': objects_as_numbers,
    'numbers as objects': numbers_as_objects,
}
"""Files that run code or crash when unpickled; some create a file at a given path."""


def states() -> dict[str, dict[str, torch.Tensor]]:
    """Small state dicts of the known layouts, by family."""
    return {
        'dynamic-swin': dynamic_swin.random_state(
            embed_dims=4, depths=DEPTHS, heads=HEADS, window=2, predictors=1
        ),
        'dynamic-convnext': dynamic_convnext.random_state(
            embed_dims=4, depths=DEPTHS, predictors=1
        ),
        'dynamic-vit': dynamic_vit.random_state(
            embed_dims=4, depth=3, predictors=1, patch=4, image=8
        ),
    }


def training(state: dict[str, torch.Tensor]) -> dict:
    """A checkpoint as saved by a training with mmengine."""
    buffer = HistoryBuffer()
    buffer.update(1.0)
    return dict(
        meta=dict(epoch=0, iter=2, palette=np.zeros((2, 3), np.uint8), score=np.float64(0.5)),
        message_hub=dict(log_scalars=OrderedDict(loss=buffer)),
        state_dict=state,
        param_schedulers=[dict(milestones=Counter([8, 11]), last_step=2)],
        optimizer=dict(state={0: dict(step=torch.zeros(()))}, param_groups=[dict(params=[0])]),
    )
