"""A table of all private attributes of other packages that mmdyn uses.

Add a row for each new one, and check the rows when raising a version.
"""

import ast
import importlib
import inspect
import pkgutil
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType
from typing import NamedTuple

import pytest

pytest.importorskip('mmseg')
pytest.importorskip('mmdet')

import mmdyn

ROOT = Path(mmdyn.__file__).parent


class Internal(NamedTuple):
    """A private attribute."""

    owner: str  # 'module:object'; without an object, the module has it
    signature: tuple[str, ...] | None  # after self; None = no function
    why: str


ATTRIBUTES = {
    '_decode_head_forward_train': Internal(
        'mmseg.models:EncoderDecoder',
        ('inputs', 'data_samples'),
        'the one place in which the training computes logits: computed once, they serve the '
        "host's losses and the distillation",
    ),
    '_load_from_state_dict': Internal(
        'torch.nn:Module',
        (
            'state_dict',
            'prefix',
            'local_metadata',
            'strict',
            'missing_keys',
            'unexpected_keys',
            'error_msgs',
        ),
        "torch's place for loading older names, the only one that sees a whole model's "
        'loading (load_from) too',
    ),
    '_transform_inputs': Internal(
        'mmseg.models.decode_heads.decode_head:BaseDecodeHead',
        ('inputs',),
        "which of the backbone's maps the head looks at; every decode head of mmseg's calls it",
    ),
    '_channel_conversion': Internal(
        'mmengine.model:ImgDataPreprocessor',
        None,
        'whether a teacher sees the images with their channels in the same order',
    ),
    '_save_checkpoint_with_step': Internal(
        'mmengine.hooks:CheckpointHook',
        ('runner', 'step', 'meta'),
        'the one place where a checkpoint is written, named as the last one, and an old one '
        'removed: here in an order that a kill can break off anywhere',
    ),
    '_validate_cfg': Internal(
        'mmengine.optim:DefaultOptimWrapperConstructor',
        (),
        "checks part_lr_mult beside the host's own checks",
    ),
    '_get_cfg_path': Internal(
        'mmengine.config:Config',
        ('cfg_path', 'filename'),
        "_base_ = 'mmdyn::...' in flat folders, on both lines",
    ),
    '_Unpickler': Internal(
        'pickle:',
        None,
        'the unpickler in Python, with torch before 2.6: that in C lets a file set attributes '
        'of whole classes',
    ),
    '_C': Internal(
        'torch:',
        None,
        "torch's own reader of zip files (PyTorchFileReader), for an early look at one that "
        'is trusted, and, with torch before 2.6, for whether torch would take it for a '
        'program',
    ),
    '_get_allowed_globals': Internal(
        'torch:_weights_only_unpickler',
        (),
        'the names that torch allows by default, with torch before 2.6, which does not read safely',
    ),
    '_weights_only_unpickler': Internal(
        'torch:',
        None,
        'where these are',
    ),
    '_load_metainfo': Internal(
        'mmengine.dataset:BaseDataset',
        ('metainfo',),
        'the classes that a data set reads from a file, without the data set itself',
    ),
    '_orig_mod': Internal(
        'torch._dynamo.eval_frame:OptimizedModule',
        None,
        'the model inside what torch.compile returns',
    ),
    '_dynamo': Internal(
        'torch:',
        None,
        'how often a region may be compiled anew has no public setting, and torch 2.1 tells '
        'nowhere else whether it compiles',
    ),
    '_assert_async': Internal(
        'torch:',
        None,
        'an assertion about values on a device, for which nobody waits',
    ),
    '_linear_pointwise': Internal(
        'torch:ops.mkldnn',
        None,
        'a product with a weight that is laid out already; torch.compile uses it with freezing',
    ),
    '_reorder_linear_weight': Internal(
        'torch:ops.mkldnn',
        None,
        'lays such a weight out',
    ),
    '_register_load_state_dict_pre_hook': Internal(
        'torch.nn:Module',
        None,
        'prepared models load no other weights; torch before 2.5 has no public name for it',
    ),
    '_get_tracing_state': Internal(
        'torch._C:',
        None,
        'the graph that torch.jit records, if any: what is made once for a size is no part of it',
    ),
    '_set_tracing_state': Internal(
        'torch._C:',
        None,
        'the same',
    ),
    '_getframe': Internal(
        'sys:',
        None,
        'tells which module an operator is executed for',
    ),
    '_schema': Internal(
        'torch:ops.aten.mm.default',
        None,
        "an operator's name and arguments",
    ),
}

# Attributes of instances: set in a constructor, or by a wrapper.
ON_INSTANCES = ('_channel_conversion', '_orig_mod')


def is_private(name):
    return name.startswith('_') and not name.startswith('__')


def trees():
    return [ast.parse(path.read_text()) for path in ROOT.rglob('*.py') if '.mim' not in path.parts]


def names_we_define():
    """Names of our functions, classes and attributes."""
    for node in (node for tree in trees() for node in ast.walk(tree)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def private_uses(tree, ours):
    """Private attributes that are read, set, or accessed by name, except ours on `self`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            name, owner = node.attr, node.value
        elif (
            isinstance(node, ast.Call)
            and getattr(node.func, 'id', None) in ('getattr', 'hasattr', 'setattr', 'delattr')
            and isinstance(node.args[1], ast.Constant)
        ):
            name, owner = node.args[1].value, node.args[0]
        else:
            continue
        on_self = isinstance(owner, ast.Name) and owner.id in ('self', 'cls')
        if is_private(name) and not (on_self and name in ours):
            yield name


def resolve(owner):
    module, _, path = owner.partition(':')
    found = importlib.import_module(module)
    for part in filter(None, path.split('.')):
        found = getattr(found, part)
    return found


def test_no_other_private_attribute_is_used():
    ours = set(names_we_define())
    assert {name for tree in trees() for name in private_uses(tree, ours)} == set(ATTRIBUTES)


def our_classes():
    for info in pkgutil.walk_packages(mmdyn.__path__, 'mmdyn.'):
        needs_onnx = info.name.startswith('mmdyn.deploy.') and find_spec('onnx') is None
        if not (info.name.endswith('__main__') or needs_onnx):
            for cls in vars(importlib.import_module(info.name)).values():
                if isinstance(cls, type) and cls.__module__.startswith('mmdyn.'):
                    yield cls


def test_nothing_else_private_is_overridden():
    """No method of ours has the name of a private one in a base class of another package."""
    methods = (FunctionType, property, classmethod, staticmethod)
    seen = {
        (name, base)
        for cls in our_classes()
        for part in cls.__mro__  # including mixins and the host's class
        if part.__module__.startswith('mmdyn.')
        for name, value in vars(part).items()
        if is_private(name) and isinstance(value, methods)
        for base in cls.__mro__[1:]
        if name in vars(base) and not base.__module__.startswith('mmdyn.')
    }
    assert all(issubclass(base, resolve(ATTRIBUTES[name].owner)) for name, base in seen)


@pytest.mark.parametrize('name', [name for name in ATTRIBUTES if name not in ON_INSTANCES])
def test_each_is_there_and_takes_what_we_pass(name):
    row = ATTRIBUTES[name]
    found = getattr(resolve(row.owner), name)
    if row.signature is not None:
        assert tuple(p for p in inspect.signature(found).parameters if p != 'self') == row.signature
