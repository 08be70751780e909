"""Everything private to another package that mmdyn touches, in one table.

Each entry says why, and what happens once the other package changes it. Whoever adds one adds a
row; whoever raises a version reads the rows.
"""

import ast
import importlib
import inspect
import pkgutil
import re
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType
from typing import NamedTuple

import pytest
import torch

pytest.importorskip('mmseg')
pytest.importorskip('mmdet')

import mmdyn

ROOT = Path(mmdyn.__file__).parent
FILES = sorted(p for p in ROOT.rglob('*.py') if '.mim' not in p.parts)
HOSTS = ('mmcv', 'mmdet', 'mmengine', 'mmseg')


class Internal(NamedTuple):
    """A private attribute."""

    owner: str  # 'module:object'; without an object, the module has it
    files: tuple[str, ...]
    signature: tuple[str, ...] | None  # after self; None = no function
    why: str
    guard: str


class Module(NamedTuple):
    """A module that the package it belongs to does not re-export whole."""

    names: tuple[str, ...]
    files: tuple[str, ...]
    why: str
    guard: str


ATTRIBUTES = {
    '_decode_head_forward_train': Internal(
        'mmseg.models:EncoderDecoder',
        ('models/adapters/mmseg.py',),
        ('inputs', 'data_samples'),
        'the one place in which the training computes logits: computed once, they serve the '
        "host's losses and the distillation",
        'overridden; were it called no more, the distillation would find no logits (KeyError)',
    ),
    '_load_from_state_dict': Internal(
        'torch.nn:Module',
        (
            'models/adapters/mixin.py',
            'models/backbones/convnext.py',
            'models/backbones/vit.py',
            'models/heads/uper_head.py',
            'models/necks/dynamic_fpn.py',
        ),
        (
            'state_dict',
            'prefix',
            'local_metadata',
            'strict',
            'missing_keys',
            'unexpected_keys',
            'error_msgs',
        ),
        "torch's place for loading older names, the only one that sees a whole model's loading "
        '(load_from) too',
        'documented in torch for subclasses; arguments are passed on as they come',
    ),
    '_transform_inputs': Internal(
        'mmseg.models.decode_heads.decode_head:BaseDecodeHead',
        ('models/heads/uper_head.py',),
        ('inputs',),
        "which of the backbone's maps the head looks at; every decode head of mmseg's calls it",
        'called by the host itself; the parity tests with UPerHead would fail',
    ),
    '_channel_conversion': Internal(
        'mmengine.model:ImgDataPreprocessor',
        ('models/teacher.py',),
        None,
        'whether a teacher sees the images with their channels in the same order',
        'read with a default, under the public name too; without both the order is not compared',
    ),
    '_publish_model': Internal(
        'mmengine.hooks:CheckpointHook',
        ('engine/hooks/checkpoint.py',),
        ('runner', 'ckpt_path'),
        'writes the checkpoint for publishing in its place; ours beside, then renamed',
        "overridden; were it called no more, mmengine's own publishing would go on",
    ),
    '_save_checkpoint_with_step': Internal(
        'mmengine.hooks:CheckpointHook',
        ('engine/hooks/checkpoint.py',),
        ('runner', 'step', 'meta'),
        'the one place where a checkpoint is written, named as the last one, and an old one '
        'removed: here in an order that a kill can break off anywhere',
        'overridden; were it called no more, the tests that kill a training would find half a '
        'checkpoint',
    ),
    '_validate_cfg': Internal(
        'mmengine.optim:DefaultOptimWrapperConstructor',
        ('engine/optimizer.py',),
        (),
        "checks part_lr_mult beside the host's own checks",
        'overridden, calls the original; were it called no more, a wrong part would be ignored',
    ),
    '_get_cfg_path': Internal(
        'mmengine.config:Config',
        ('config_lookup.py',),
        ('cfg_path', 'filename'),
        "_base_ = 'mmdyn::...' in flat folders, on both lines",
        'existence and signature are checked when mmdyn is imported (ImportError with a remedy)',
    ),
    '_Unpickler': Internal(
        'pickle:',
        ('converters/reading.py',),
        None,
        'the unpickler in Python, with torch before 2.6: that in C lets a file set attributes of '
        'whole classes',
        'missing, it stops the import (AttributeError); kept since Python 3.0',
    ),
    '_C': Internal(
        'torch:',
        ('converters/reading.py',),
        None,
        "torch's own reader of zip files (PyTorchFileReader), for an early look at one that is "
        'trusted, and, with torch before 2.6, for whether torch would take it for a program',
        'missing, it stops these (AttributeError)',
    ),
    '_get_allowed_globals': Internal(
        'torch:_weights_only_unpickler',
        ('converters/reading.py',),
        (),
        'the names that torch allows by default, with torch before 2.6, which does not read safely',
        'missing, it stops reading there (AttributeError)',
    ),
    '_weights_only_unpickler': Internal(
        'torch:',
        ('converters/reading.py',),
        None,
        'where these are',
        'missing, it stops reading with torch before 2.6 (AttributeError)',
    ),
    '_coco_api': Internal(
        'mmdet.evaluation:CocoMetric',
        ('engine/loaders.py',),
        None,
        'masks that the metric would fail on after the last image',
        'read with a default; without it such masks are found later',
    ),
    '_load_metainfo': Internal(
        'mmengine.dataset:BaseDataset',
        ('engine/data_check.py',),
        ('metainfo',),
        'the classes that a data set reads from a file, without the data set itself',
        'asked for with a default; without it classes are those that the config spells out',
    ),
    '_orig_mod': Internal(
        'torch._dynamo.eval_frame:OptimizedModule',
        ('engine/wrappers.py',),
        None,
        'the model inside what torch.compile returns',
        'read with a default; without it hooks of ours find no backbone and say so',
    ),
    '_dynamo': Internal(
        'torch:',
        ('models/compiled.py', 'sparsity/compiling.py'),
        None,
        'how often a region may be compiled anew has no public setting, and torch 2.1 tells '
        'nowhere else whether it compiles',
        'the older name of the setting, and the newer public function, are tried too',
    ),
    '_getframe': Internal(
        'sys:',
        ('analysis/counting.py',),
        None,
        'tells which module an operator is executed for',
        'documented for CPython',
    ),
    '_schema': Internal(
        'torch:ops.aten.mm.default',
        ('analysis/counting.py',),
        None,
        "an operator's name and arguments",
        "what torch's own counter reads",
    ),
}

MODULES = {
    'mmdet.models.detectors.single_stage_instance_seg': Module(
        ('SingleStageInstanceSegmentor',),
        ('models/adapters/mmdet.py',),
        'base of SOLO, BoxInst and their like, which mmdet.models leaves out',
        'import of the adapter',
    ),
    'mmseg.models.decode_heads.decode_head': Module(
        ('BaseDecodeHead',),
        ('models/adapters/mmseg.py',),
        "tells heads that train on one map of logits (BaseDecodeHead's own loss) from others",
        'import of the adapter',
    ),
    'mmengine._strategy': Module(
        ('FSDPStrategy',),
        ('engine/sharding.py',),
        'its resuming needs mending; mmengine names no public place for strategies',
        'import; test_what_of_mmengines_fsdp_is_replaced_or_called',
    ),
    'mmengine.config.utils': Module(
        ('MODULE2PACKAGE',),
        ('config_lookup.py',),
        "_base_ = 'mmseg::...' on the maintained line, by module instead of distribution",
        'import of mmdyn',
    ),
    'mmengine.model.weight_init': Module(
        ('constant_init', 'initialize', 'trunc_normal_', 'trunc_normal_init'),
        ('models/backbones/convnext.py', 'models/backbones/swin.py', 'models/backbones/vit.py'),
        "the hosts' initialisation",
        'import',
    ),
    'mmcv.cnn.bricks.drop': Module(
        ('build_dropout',),
        ('models/backbones/convnext.py', 'models/backbones/swin.py'),
        "the hosts' stochastic depth",
        'import',
    ),
    'mmcv.cnn.bricks.transformer': Module(
        ('FFN', 'PatchEmbed', 'PatchMerging'),
        ('deploy/stand_ins.py', 'models/backbones/swin.py'),
        "parts of the hosts' Swin, so that their state dicts load",
        'import',
    ),
}


def is_private(name):
    return name.startswith('_') and not name.startswith('__')


def trees():
    for path in FILES:
        yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text())


def names_we_define():
    """Names of our functions and classes, and of attributes that we set or declare."""
    names = set()
    for _, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                names.add(node.attr)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names.add(node.target.id)
    return names


def private_uses(tree, ours):
    """Private attributes that are read, set, or asked for by name, ours on `self` left out."""
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


def imported_modules(tree):
    """(module, name) of everything imported from a host; name '' for `import module`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found = [(node.module, alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            found = [(alias.name, '') for alias in node.names]
        else:
            continue
        yield from (pair for pair in found if pair[0].split('.')[0] in HOSTS)


def is_deep(module):
    parts = module.split('.')
    return len(parts) > 2 or any(map(is_private, parts))


def resolve(owner):
    module, _, path = owner.partition(':')
    found = importlib.import_module(module)
    for part in filter(None, path.split('.')):
        found = getattr(found, part)
    return found


def by_file(found):
    """{name: files} of (name, file) pairs."""
    return {
        name: tuple(sorted({file for other, file in found if other == name})) for name, _ in found
    }


def test_no_other_private_attribute_is_used():
    ours = names_we_define()
    found = {(name, file) for file, tree in trees() for name in private_uses(tree, ours)}
    assert by_file(found) == {name: row.files for name, row in ATTRIBUTES.items()}


def test_no_other_module_deep_in_a_host_is_imported():
    found = [(*pair, file) for file, tree in trees() for pair in imported_modules(tree)]
    found = [row for row in found if is_deep(row[0])]
    assert by_file([(module, file) for module, _, file in found]) == {
        module: row.files for module, row in MODULES.items()
    }
    names = by_file([(module, name) for module, name, _ in found])
    assert names == {module: row.names for module, row in MODULES.items()}


def our_classes():
    for info in pkgutil.walk_packages(mmdyn.__path__, 'mmdyn.'):
        needs_onnx = info.name.startswith('mmdyn.deploy.') and find_spec('onnx') is None
        if not (info.name.endswith('__main__') or needs_onnx):
            for cls in vars(importlib.import_module(info.name)).values():
                if isinstance(cls, type) and cls.__module__.startswith('mmdyn.'):
                    yield cls


def test_nothing_else_private_is_overridden():
    """A method of ours that a class of another package has under the same private name."""
    methods = (FunctionType, property, classmethod, staticmethod)
    seen = {
        (name, base)
        for cls in our_classes()
        for part in cls.__mro__  # a mixin, too, whose host is beside it
        if part.__module__.startswith('mmdyn.')
        for name, value in vars(part).items()
        if is_private(name) and isinstance(value, methods)
        for base in cls.__mro__[1:]
        if name in vars(base) and not base.__module__.startswith('mmdyn.')
    }
    assert {name for name, _ in seen} == {
        '_decode_head_forward_train',
        '_load_from_state_dict',
        '_publish_model',
        '_save_checkpoint_with_step',
        '_validate_cfg',
    }
    assert all(issubclass(base, resolve(ATTRIBUTES[name].owner)) for name, base in seen)


@pytest.mark.parametrize('name', ATTRIBUTES)
def test_each_is_there_and_takes_what_we_pass(name):
    row = ATTRIBUTES[name]
    assert row.why and row.guard
    if name == '_channel_conversion':
        assert resolve(row.owner)(bgr_to_rgb=True)._channel_conversion is True
        return
    if name == '_orig_mod':
        inner = torch.nn.Identity()
        assert torch.compile(inner)._orig_mod is inner
        return
    if name == '_coco_api':  # of its objects, made by the constructor
        assert f'self.{name} = ' in inspect.getsource(resolve(row.owner))
        return
    found = getattr(resolve(row.owner), name)
    if row.signature is not None:
        assert tuple(p for p in inspect.signature(found).parameters if p != 'self') == row.signature


@pytest.mark.parametrize('name', MODULES)
def test_each_module_has_what_we_import(name):
    row = MODULES[name]
    assert row.why and row.guard
    for attribute in row.names:
        assert hasattr(importlib.import_module(name), attribute)


def test_what_of_mmengines_fsdp_is_replaced_or_called():
    from mmengine._strategy import FSDPStrategy

    methods = {'optim_state_dict': [], 'load_optim_state_dict': ['state_dict']}
    methods['build_model'] = ['model']
    for name, arguments in methods.items():
        assert list(inspect.signature(getattr(FSDPStrategy, name)).parameters)[1:] == arguments
    assert 'state_dict_cfg' in inspect.signature(FSDPStrategy).parameters


def test_the_iterator_that_resuming_stands_in_for_is_the_loops():
    from mmengine.runner import IterBasedTrainLoop

    # mmdyn.RngStateHook restores before the first batch through it.
    assert 'next(self.dataloader_iterator)' in inspect.getsource(IterBasedTrainLoop.run)


def test_no_distribution_is_named_but_in_the_remedies():
    naming = [p.relative_to(ROOT).as_posix() for p in FILES if re.search('onedl', p.read_text())]
    assert naming == ['compat.py']
