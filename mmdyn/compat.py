"""What differs between the versions that mmdyn runs with, and what to do about others.

Two lines of these packages exist: the original one (``mmengine``, ``mmcv``, ``mmdet``,
``mmsegmentation``) and the maintained one (``onedl-mmengine``, ``onedl-mmcv``, ...). They share
their import names, so everything here looks at modules and never at distribution names.
"""

import contextlib
import importlib
import importlib.abc
import importlib.util
import io
import runpy
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from packaging.version import Version


class _Supported(NamedTuple):
    """A module's versions that mmdyn runs with, and the release of each line it is tested with."""

    minimum: str
    below: str
    maintained: str
    original: str

    @property
    def wanted(self) -> str:
        return f'>={self.minimum},<{self.below}'


SUPPORTED = {
    'mmengine': _Supported('0.10.4', '1.0', 'onedl-mmengine==0.10.12', 'mmengine==0.10.7'),
    'mmcv': _Supported('2.0.1', '3.0', 'onedl-mmcv==2.3.6', 'mmcv==2.1.0'),
    'mmseg': _Supported('1.2.0', '2.0', 'onedl-mmsegmentation==1.4.2', 'mmsegmentation==1.2.2'),
    'mmdet': _Supported('3.2.0', '4.0', 'onedl-mmdetection==3.5.1', 'mmdet==3.3.0'),
}
HOSTS = ('mmseg', 'mmdet')
SCOPES = (*HOSTS, 'mmdyn')
"""Values of ``default_scope`` in configs of models; classifiers have our own."""


def _remedy(name: str) -> str:
    """How to install a supported version of the module `name`, on either line."""
    supported = SUPPORTED[name]
    # The original line's mmcv does not build apart from the environment's setuptools.
    options = '--no-build-isolation ' if name == 'mmcv' else ''
    return (
        f'Install it with `pip install {supported.maintained}` (maintained OpenMMLab line) or, if '
        'your other OpenMMLab packages are of the original line, with '
        f'`pip install {options}{supported.original}`.'
    )


def _import_supported(name: str) -> ModuleType:
    """Import the module `name` if its version is one that mmdyn runs with."""
    try:
        module = _import(name)
    except ModuleNotFoundError as error:
        raise ImportError(
            f'mmdyn needs {name} {SUPPORTED[name].wanted}, which is not installed. {_remedy(name)}'
        ) from error
    _check_range(name, module.__version__, module.__file__)
    return module


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            raise
        # Versions checked with `assert`, an attribute that another numpy lacks: whatever it is,
        # this package can't be used, and that must not stand in the way of the other host.
        package = name.partition('.')[0]
        raise ImportError(f'{package} is installed, but does not import: {error!r}') from error


def _check_range(name: str, found: str, where: str | None) -> None:
    supported = SUPPORTED[name]
    if not Version(supported.minimum) <= Version(found) < Version(supported.below):
        raise ImportError(
            f'mmdyn needs {name} {supported.wanted}, but found {name} {found} at {where}. '
            f'{_remedy(name)}'
        )


def check_versions() -> None:
    """Check the packages that all of mmdyn but :mod:`mmdyn.sparsity` needs.

    Called where they are used: by the import of :mod:`mmdyn.registry`, when a config names one
    of ours as its base, and by ``import mmdyn`` in a program that has mmengine loaded.

    Raises:
        ImportError: mmengine or mmcv is missing or of a version mmdyn does not run with.
    """
    _import_supported('mmengine')
    # What needs it says so by itself, and names another remedy.
    warnings.filterwarnings('ignore', 'Fail to import ``MultiScaleDeformableAttention')
    # mmcv imports torch, some seconds that `--help` or a mistyped option should not take. Its
    # version module alone tells what is asked here.
    spec = None if 'mmcv' in sys.modules else importlib.util.find_spec('mmcv')
    version_file = Path(spec.origin).with_name('version.py') if spec and spec.origin else None
    if version_file is None or not version_file.is_file():
        _import_supported('mmcv')
        return
    _check_range('mmcv', runpy.run_path(str(version_file))['__version__'], str(version_file))


def require_host(name: str) -> ModuleType:
    """Return the host package `name` ('mmseg' or 'mmdet').

    mmdet's models don't import without mmcv's compiled operators; mmseg's do.

    Raises:
        ImportError: It cannot be used; the message says why and how to install it.
    """
    host = _import_supported(name)
    try:
        require_mmcv_ops()
    except ImportError as error:
        if name == 'mmdet':
            raise
        _do_without_ops(str(error))
    with contextlib.redirect_stdout(io.StringIO()):  # they print which optional package they miss
        _import(f'{name}.datasets')
        _import(f'{name}.models')
    return host


def has_host(name: str) -> bool:
    """Whether the host package `name` ('mmseg' or 'mmdet') can be used.

    A host that is installed but broken or of another version counts as absent, so that it does
    not stand in the way of the other one; `require_host` says what is wrong with it.
    """
    try:
        require_host(name)
    except ImportError:
        return False
    return True


def require_mmcv_ops() -> ModuleType:
    """Return ``mmcv.ops``, mmcv's compiled operators (NMS, RoIAlign, deformable attention).

    Raises:
        ImportError: mmcv was built without them, or against another torch.
    """
    if reason := missing_ops():
        raise ImportError(reason)
    mmcv = _import_supported('mmcv')
    try:
        importlib.import_module('mmcv._ext')  # first: mmcv.ops would be imported in part
        return importlib.import_module('mmcv.ops')
    except ImportError as error:
        # The original line ended with 2.2; the maintained one began with 2.3.
        line = 'onedl-mmcv' if Version(mmcv.__version__) >= Version('2.3') else 'mmcv'
        raise ImportError(
            f'mmcv {mmcv.__version__} has no working compiled operators ({error}), which mmdet and '
            'some heads of mmseg need. In a checkout, run `make setup-det`. In an environment of '
            'your own, build mmcv against your torch (2.10 at most), with setuptools 80 and ninja '
            'installed, about 17 minutes on 2 cores: '
            'MMCV_WITH_OPS=1 pip install --no-build-isolation --no-cache-dir --no-deps '
            f'--force-reinstall {line}=={mmcv.__version__}'
        ) from error


class _WithoutOps(importlib.abc.MetaPathFinder):
    """Ends the import of what needs mmcv's compiled operators at once, with the reason.

    mmseg does without mmdet's models, and without operators, on a ModuleNotFoundError. Operators
    that are there but don't load would be another error, and half of mmdet's models would come
    into its registry.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def find_spec(self, name: str, *_: object) -> None:
        if name in ('mmcv.ops', 'mmdet.models'):
            raise ModuleNotFoundError(self.reason, name=name)


def _do_without_ops(reason: str) -> None:
    if missing_ops() is None:
        sys.meta_path.insert(0, _WithoutOps(reason))
        # mmengine looks whether it is there, not whether it loads.
        sys.modules['mmcv._ext'] = None  # type: ignore[assignment]


def missing_ops() -> str | None:
    """Why mmseg runs without mmcv's compiled operators, and the remedy; None if it does not."""
    finders = (finder for finder in sys.meta_path if isinstance(finder, _WithoutOps))
    return next((finder.reason for finder in finders), None)
