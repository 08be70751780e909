"""Checkpoints that mean harm, or are none."""

import io
import os
import pickle
import struct
import zipfile
import zlib
from collections import Counter, OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

from tests.reference import dynamic_convnext, dynamic_swin, dynamic_vit

DEPTHS, HEADS = (1, 1, 2, 1), (1, 1, 1, 1)


def saved(content: object, zipped: bool = True) -> bytes:
    """What ``torch.save`` writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def entries(file: bytes) -> dict[str, bytes]:
    """Names and contents of a zip file."""
    with zipfile.ZipFile(io.BytesIO(file)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(contents: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> bytes:
    """The other way around."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w', how) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def with_pickle(program: bytes) -> bytes:
    """A checkpoint in torch's format whose content is a pickle of one's own."""
    return zipped(entries(saved(torch.zeros(3))) | {'archive/data.pkl': b'\x80\x02' + program})


def named(module: str, name: str) -> bytes:
    """The opcodes that put a function on a pickle's stack."""
    return f'c{module}\n{name}\n'.encode()


def text(value: str) -> bytes:
    """Those that put a string there."""
    return b'X' + struct.pack('<I', len(value)) + value.encode()


def attribute(owner: bytes, name: str) -> bytes:
    """Those that put an attribute there."""
    return named('builtins', 'getattr') + owner + text(name) + b'\x86R'


class Calls:
    """An object whose reading calls a function."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.how = function, arguments

    def __reduce__(self) -> tuple:
        return self.how


def through_allowed_names(canary: Path) -> bytes:
    """Reaches os.system from a class that every training's checkpoint names.

    torch's restricted unpickler runs it if it is told that getattr is harmless, as mmengine's
    loader tells it.
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
    """An array of numbers that numpy is to take for addresses of objects."""
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
    """A type of numbers that says of itself that they are addresses of objects."""
    dtype = named('numpy', 'dtype') + text('i8') + b'\x89\x88\x87R'
    state = b'(K\x03' + text('<') + b'NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x3ft'
    made = b'(' + named('numpy', 'ndarray') + b'K\x00\x85' + text('b') + b't'
    array = named('numpy._core.multiarray', '_reconstruct') + made + b'R'
    held = named('_codecs', 'encode') + text('A' * 8) + text('latin1') + b'\x86R'
    return with_pickle(array + b'(K\x01K\x01\x85' + dtype + state + b'b' + b'\x89' + held + b'tb.')


def fifth_pickle(canary: Path) -> bytes:
    """torch's old format: the list of tensors behind the content is a pickle of its own."""
    plain, hostile = saved({}, zipped=False), pickle.dumps(Calls(os.mkdir, str(canary)), 2)
    last = pickle.dumps([], 2)
    assert plain.endswith(last)
    return plain.removesuffix(last) + hostile


def two_contents(canary: Path) -> bytes:
    """Two entries of one name, of which a reader may take either."""
    good = entries(saved({'a': torch.zeros(3)}))
    hostile = entries(saved(Calls(os.mkdir, str(canary))))
    buffer = io.BytesIO(zipped(hostile))
    with zipfile.ZipFile(buffer, 'a') as archive:
        for name, content in good.items():
            archive.writestr(name.upper() if name.endswith('data.pkl') else name, content)
    return buffer.getvalue()


def zip_part(contents: dict[str, bytes], start: int) -> tuple[bytes, bytes]:
    """Entries of a zip file that stand at a place in it, and their directory."""
    data = directory = b''
    for name, content in contents.items():
        size, letters = len(content), name.encode()
        common = (0, 0, 0, 0, zlib.crc32(content), size, size, len(letters), 0)
        place = (0, 0, 0, 0, start + len(data))
        directory += struct.pack('<4s6H3L5H2L', b'PK\1\2', 20, 20, *common, *place) + letters
        data += struct.pack('<4s5H3L2H', b'PK\3\4', 20, *common) + letters + content
    return data, directory


def two_ends(canary: Path) -> bytes:
    """A zip file with two directories: the end names one, and the other stands before the end."""
    good, good_list = zip_part(entries(saved({'a': torch.zeros(3)})), 0)
    hostile, hostile_list = zip_part(entries(saved(Calls(os.mkdir, str(canary)))), len(good))
    file = good + hostile
    places = []
    for directory in (hostile_list, good_list):
        start, count = len(file), directory.count(b'PK\1\2')
        places.append(start + len(directory))
        end = (44, 45, 45, 0, 0, count, count, len(directory), start)
        file += directory + struct.pack('<4sQ2H2L4Q', b'PK\6\6', *end)
    file += struct.pack('<4sLQL', b'PK\6\7', 0, places[0], 1)
    return file + struct.pack('<4s4H2LH', b'PK\5\6', 0, 0, *[2**16 - 1] * 2, *[2**32 - 1] * 2, 0)


def zip_behind(canary: Path) -> bytes:
    """The old format, and behind it a harmless zip file that says that it starts there too."""
    file = saved(Calls(os.mkdir, str(canary)), zipped=False)
    data, directory = zip_part(entries(saved({'a': torch.zeros(3)})), len(file))
    directory += zip_part({'archive/more': b''}, 0)[1]
    count, start = directory.count(b'PK\1\2'), len(file + data)
    end = (0, 0, count, count, len(directory), start, 0)
    return file + data + directory + struct.pack('<4s4H2LH', b'PK\5\6', *end)


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
    'two contents': two_contents,
    'two ends': two_ends,
    'a zip file behind the old format': zip_behind,
    'objects as numbers': objects_as_numbers,
    'numbers as objects': numbers_as_objects,
}
"""Files that run code when they are loaded, by how; each would leave something at a path."""


# Remembers a pair of pairs of pairs, whose hash takes 2^60 steps; and the way to take it out.
NEST, NESTED = b'](' + b')q\x00' + b'h\x00h\x00\x86q\x00' * 60 + b'e', b'h\x00'


def nested(program: bytes) -> bytes:
    """Such a thing where it is hashed, compared or shown."""
    return with_pickle(NEST + program)


def outside(where: str, zip_format: bool) -> bytes:
    """A tensor that ends far behind its memory, which torch would make longer."""
    file = saved({'a': torch.zeros(3000)}, zip_format)
    near = b'QK\x00M' + struct.pack('<H', 3000) + b'\x85'
    far = b'J' + struct.pack('<i', 2 * 10**9)
    content = entries(file)['archive/data.pkl'] if zip_format else file
    start, rest = content.split(near)
    if where == 'offset':
        content = start + near.replace(b'K\x00', far) + rest
    else:
        content = start + near + rest.replace(b'K\x01', far, 1)
    return zipped(entries(file) | {'archive/data.pkl': content}) if zip_format else content


def huge_storage(zip_format: bool, times: int = -1) -> bytes:
    """A tensor of 8 GB in a file of some bytes; or once, then its memory alone is as large."""
    file = saved({'a': torch.zeros(3000)}, zip_format)
    small, large = b'M' + struct.pack('<H', 3000), b'J' + struct.pack('<i', 2 * 10**9)
    if not zip_format:
        return file.replace(small, large, times)
    contents = entries(file)
    contents['archive/data.pkl'] = contents['archive/data.pkl'].replace(small, large, times)
    return zipped(contents)


def expanded() -> bytes:
    """A tensor of 4 TB that is one number."""
    return saved({'stages.0.downsample.reduction.weight': torch.zeros(1).expand(10**12)})


def calls_with(module: str, name: str, number: int) -> bytes:
    """Something that is made as large as a number says."""
    return with_pickle(named(module, name) + b'\x8a\x08' + struct.pack('<q', number) + b'\x85R.')


def compressed(size: int) -> bytes:
    """A zip file that unpacks to so many bytes."""
    contents = entries(saved({'a': torch.zeros(3)})) | {
        'archive/data.pkl': b'\x80\x02' + b'N0' * size
    }
    return zipped(contents, zipfile.ZIP_DEFLATED)


def many_objects() -> bytes:
    """A pickle that claims to remember billions of objects."""
    return with_pickle(b'Nr' + struct.pack('<I', 2**32 - 2) + b'.')


def repeated(module: str, name: str, arguments: bytes, times: int = 20_000) -> bytes:
    """Something that is made of the same long thing again and again."""
    made = named(module, name) + b'q\x00' + arguments + b'q\x01]('
    return with_pickle(made + b'h\x00h\x01R' * times + b'e.')


def swapped_arrays() -> bytes:
    """Arrays of one long string of bytes, which are copied as their order is changed."""
    state = b'(K\x03' + text('>') + b'NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb'
    dtype = named('numpy', 'dtype') + text('u2') + b'\x89\x88\x87R' + state
    held = named('_codecs', 'encode') + text('A' * 200_000) + text('latin1') + b'\x86R'
    program = b'(K\x01J' + struct.pack('<i', 100_000) + b'\x85' + dtype + b'\x89' + held + b'tq\x01'
    made = named('numpy.core.multiarray', '_reconstruct') + b'q\x02'
    made += b'(' + named('numpy', 'ndarray') + b'K\x00\x85' + text('b') + b'tq\x03'
    return with_pickle(program + made + b'](' + b'h\x02h\x03Rh\x01b' * 10_000 + b'e.')


def doubled_lists() -> bytes:
    """A log buffer whose values are 2^25 numbers."""
    program = b']K\x00aq\x00' + b'](h\x00h\x00eq\x00' * 25
    name = named('mmengine.logging.history_buffer', 'HistoryBuffer')
    return with_pickle(program + name + b'h\x00h\x00\x86R.')


def moved_tensor() -> bytes:
    """A tensor of three numbers that is told to be one of 10^10."""
    content = entries(saved(torch.zeros(3)))['archive/data.pkl']
    storage = content[content.index(b'((') + 1 : content.index(b'Q') + 1]
    size = b'\x8a\x05' + (10**10).to_bytes(5, 'little') + b'\x85'
    return with_pickle(content[2:-1] + b'(' + storage + b'K\x00' + size + b'K\x01\x85tb.')


BOMBS: dict[str, Callable[[], bytes]] = {
    'nested keys': lambda: nested(b'}' + NESTED + b'Ns.'),
    'nested items': lambda: nested(named('builtins', 'set') + b']' + NESTED + b'a\x85R.'),
    'nested keys, as of protocol 0': lambda: nested(b'(' + NESTED + b'Nd.'),
    'nested items, as of protocol 4': lambda: nested(b'(' + NESTED + b'\x91.'),
    'nested counter': lambda: nested(named('collections', 'Counter') + b']' + NESTED + b'a\x85R.'),
    'nested slice': lambda: nested(b'}' + named('builtins', 'slice') + NESTED + b'\x85RNs.'),
    'nested attribute': lambda: nested(
        named('builtins', 'getattr') + named('torch', 'Size') + NESTED + b'\x86R.'
    ),
    'nested dtype': lambda: nested(named('numpy', 'dtype') + NESTED + b'\x85R.'),
    'nested encoding': lambda: nested(named('_codecs', 'encode') + text('a') + NESTED + b'\x86R.'),
    'nested key of memory': lambda: nested(
        b'(' + text('storage') + named('torch', 'FloatStorage') + NESTED + text('cpu') + b'K\x01tQ.'
    ),
    'nested word': lambda: nested(
        b'(' + NESTED + named('torch', 'FloatStorage') + text('0') + text('cpu') + b'K\x01tQ.'
    ),
    **{
        f'far {where}, {"new" if zip_format else "old"} format': partial(outside, where, zip_format)
        for where in ('offset', 'stride')
        for zip_format in (True, False)
    },
    'huge tensor': lambda: huge_storage(True),
    'huge tensor, old format': lambda: huge_storage(False),
    'huge memory': lambda: huge_storage(True, 1),
    'huge memory, old format': lambda: huge_storage(False, 1),
    'expanded tensor': expanded,
    'huge bytearray': lambda: calls_with('builtins', 'bytearray', 10**11),
    'huge array': lambda: calls_with('numpy', 'ndarray', 10**11),
    'huge tensor by its class': lambda: calls_with('torch', 'Tensor', 10**11),
    'zip bomb': lambda: compressed(5 * 10**7),
    'many objects': many_objects,
    'many strings': lambda: repeated(
        '_codecs', 'encode', text('A' * 200_000) + text('latin1') + b'\x86'
    ),
    'many sizes': lambda: repeated('torch', 'Size', b'(' + b'K\x01' * 50_000 + b't\x85'),
    'many sets': lambda: repeated('builtins', 'set', b'](' + b'K\x01' * 50_000 + b'e\x85'),
    'many numbers': lambda: repeated(
        'numpy.core.multiarray',
        'scalar',
        named('numpy', 'dtype') + text('U999999') + b'\x89\x88\x87R\x85',
    ),
    'many arrays': swapped_arrays,
    'many values': doubled_lists,
    'many dictionaries': lambda: with_pickle(b'](' + b'}' * 5_000_000 + b'e.'),
    'moved tensor': moved_tensor,
    'huge bytes, old format': lambda: b'\x80\x04\x8e' + struct.pack('<Q', 2**40) + b'N.',
    'huge bytearray, old format': lambda: b'\x80\x05\x96' + struct.pack('<Q', 2**32) + b'N.',
    'huge number': lambda: with_pickle(b'I' + b'9' * 10**6 + b'\n.'),
    'deep lists': lambda: with_pickle(b']' * 10**5 + b'a' * (10**5 - 1) + b'.'),
    'empty': lambda: b'',
    'text': lambda: b'hello ' * 999,
    'safetensors': lambda: struct.pack('<Q', 2) + b'{}',
    'safetensors, huge header': lambda: struct.pack('<Q', 2**62) + b'{"a":',
}
"""Files that would take a machine's memory or time, or are no checkpoints."""


def states() -> dict[str, dict[str, torch.Tensor]]:
    """Small state dicts of the layouts that are known, by family."""
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
    """A checkpoint as a training of mmengine saves it."""
    buffer = HistoryBuffer()
    buffer.update(1.0)
    return dict(
        meta=dict(epoch=0, iter=2, palette=np.zeros((2, 3), np.uint8), score=np.float64(0.5)),
        message_hub=dict(log_scalars=OrderedDict(loss=buffer)),
        state_dict=state,
        param_schedulers=[dict(milestones=Counter([8, 11]), last_step=2)],
        optimizer=dict(state={0: dict(step=torch.zeros(()))}, param_groups=[dict(params=[0])]),
    )
