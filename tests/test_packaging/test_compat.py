import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from mmdyn import compat
from tests.test_tools.segmentation import write_config, write_data

ROOT = Path(__file__).parents[2]
PARTS = (
    'mmcv._ext',
    'mmcv.ops',
    'mmseg.datasets',
    'mmseg.models',
    'mmdet.datasets',
    'mmdet.models',
)
# mmcv without its compiled operators, and with some that another torch was there for.
NO_OPS = "sys.modules['mmcv._ext'] = None"
WRONG_OPS = """
class Loader:
    create_module = staticmethod(lambda spec: None)
    def exec_module(self, module):
        raise ImportError('undefined symbol')

class Finder:
    find_spec = staticmethod(
        lambda name, *_: ModuleSpec(name, Loader()) if name == 'mmcv._ext' else None)

from importlib.machinery import ModuleSpec
sys.meta_path.insert(0, Finder)
"""


def fake(monkeypatch, name, version):
    """Replace a module by an empty one with that version."""
    module = ModuleType(name)
    module.__version__ = version
    module.__path__ = []
    module.__file__ = f'/somewhere/{name}/__init__.py'
    monkeypatch.setitem(sys.modules, name, module)
    return module


def run(source, *, path, cwd=ROOT):
    """Runs source text in a new interpreter that looks for modules in `path` first."""
    return subprocess.run(
        [sys.executable, '-c', source],
        cwd=cwd,
        env={'PYTHONPATH': f'{path}:{ROOT}', 'PATH': '/usr/bin:/bin', 'HOME': str(path)},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize('line', ['maintained', 'original'])
def test_both_lines_pass(monkeypatch, line):
    for name, supported in compat.SUPPORTED.items():
        fake(monkeypatch, name, getattr(supported, line).partition('==')[2])
    for name in PARTS:
        fake(monkeypatch, name, None)
    compat.check_versions()
    for host in compat.HOSTS:
        assert compat.require_host(host) is sys.modules[host]


@pytest.mark.parametrize(
    ('name', 'version'),
    [('mmengine', '0.10.3'), ('mmengine', '1.0.0'), ('mmcv', '1.7.2'), ('mmcv', '2.0.0')],
)
def test_versions_out_of_range_are_refused(monkeypatch, name, version):
    fake(monkeypatch, 'mmengine', '0.10.7')
    fake(monkeypatch, 'mmcv', '2.1.0')
    fake(monkeypatch, name, version)
    supported = compat.SUPPORTED[name]
    with pytest.raises(ImportError, match=f'found {name} {version} at /somewhere/{name}') as error:
        compat.check_versions()
    for text in (supported.wanted, supported.maintained, supported.original):
        assert text in str(error.value)


@pytest.mark.parametrize(
    ('name', 'version', 'said'),
    [
        ('mmseg', '0.30.0', 'found mmseg 0.30.0'),
        ('mmdet', '2.28.0', 'found mmdet 2.28.0'),
        ('mmseg', None, r'not installed.*onedl-mmsegmentation==.*`pip install mmsegmentation=='),
        ('mmdet', None, r'not installed.*onedl-mmdetection==.*`pip install mmdet=='),
    ],
)
def test_a_host_of_another_version_or_none_is_absent(monkeypatch, name, version, said):
    if version:
        fake(monkeypatch, name, version)
    else:
        monkeypatch.setitem(sys.modules, name, None)
    assert not compat.has_host(name)
    with pytest.raises(ImportError, match=said):
        compat.require_host(name)


@pytest.mark.parametrize(
    ('source', 'reason'),
    [
        ("assert False, 'MMCV==2.2.0 is used but incompatible'", 'MMCV==2.2.0 is used'),
        ('import a_module_that_is_missing', 'a_module_that_is_missing'),
    ],
)
def test_a_broken_host_says_why(monkeypatch, tmp_path, source, reason):
    (tmp_path / 'mmdet').mkdir()
    (tmp_path / 'mmdet' / '__init__.py').write_text(source)
    monkeypatch.delitem(sys.modules, 'mmdet', raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not compat.has_host('mmdet')
    with pytest.raises(ImportError, match=f'does not import.*{reason}'):
        compat.require_host('mmdet')


@pytest.mark.parametrize(
    ('version', 'package'), [('2.3.6', 'onedl-mmcv==2.3.6'), ('2.1.0', ' mmcv==2.1.0')]
)
def test_mmcv_without_ops_comes_with_the_build_command(monkeypatch, version, package):
    fake(monkeypatch, 'mmcv', version)
    monkeypatch.setitem(sys.modules, 'mmcv.ops', None)
    with pytest.raises(ImportError, match=f'--no-build-isolation.*{package}'):
        compat.require_mmcv_ops()


def test_import_stays_light(tmp_path):
    done = run('import sys, mmdyn; print(sorted(sys.modules))', path=tmp_path)
    assert done.returncode == 0, done.stderr
    for module in ('torch', 'mmcv', 'mmseg', 'mmdet', 'timm', 'mmdyn.models'):
        assert f"'{module}'" not in done.stdout


@pytest.mark.parametrize(
    'source',
    [
        'import mmdyn.registry',
        'import mmengine, mmdyn',
        "import mmdyn; from mmengine.config import Config; Config.fromfile('mine.py')",
    ],
    ids=['registry', 'custom_imports', 'base'],
)
def test_use_with_openmmlab_refuses_an_old_mmcv_without_importing_it(tmp_path, source):
    (tmp_path / 'mmcv').mkdir()
    (tmp_path / 'mmcv' / '__init__.py').write_text("raise RuntimeError('was imported')")
    (tmp_path / 'mmcv' / 'version.py').write_text("__version__ = '1.7.2'")
    config = tmp_path / 'mine.py'
    config.write_text("_base_ = 'mmdyn::upernet_dynswin_mini.py'")
    done = run(source.replace('mine.py', str(config)), path=tmp_path)
    assert done.returncode == 1
    assert 'mmdyn needs mmcv >=2.0.1,<3.0, but found mmcv 1.7.2' in done.stderr
    assert 'was imported' not in done.stderr


def test_the_mechanism_needs_torch_only(tmp_path):
    source = """
import sys
for name in ('mmengine', 'mmcv', 'mmseg', 'mmdet', 'timm'):
    sys.modules[name] = None
import torch, mmdyn
from mmdyn.sparsity import ScorePredictor, TopKPolicy, keep_ratio_loss, route
from mmdyn.sparsity.policy import Site

x = torch.randn(2, 12, 8)
site = Site(index=0, keep_ratio=0.5, hw=(3, 4))
decision = TopKPolicy()(ScorePredictor(8)(x), site)
for execution in ('masked', 'gathered'):
    y = route(x, decision, lambda z: 2 * z, lambda z: 3 * z, execution)
    assert torch.equal(y, torch.where(decision.keep_mask[..., None] > 0, 2 * x, 3 * x))
keep_ratio_loss([decision]).backward()
print(decision.keep_mask.sum(dim=1).tolist())
"""
    done = run(source, path=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == '[6.0, 6.0]\n'


@pytest.mark.parametrize(
    'block',
    [pytest.param(NO_OPS, id='none'), pytest.param(WRONG_OPS, id='wrong', marks=pytest.mark.slow)],
)
def test_segmentors_train_and_predict_without_operators(block, tmp_path):
    config = write_config(tmp_path, write_data(tmp_path / 'data'))
    head = tmp_path / 'head.py'
    text = config.read_text()
    head.write_text(text.replace("type='FCNHead'", "type='PSAHead', mask_size=(3, 3)"))
    source = f"""
import sys
{block}
import numpy as np
from yapf.yapflib import yapf_api
from mmdyn.__main__ import main
from mmdyn.apis import DynamicInferencer

yapf_api.FormatCode = lambda text, **_: (text, True)
assert main(['train', 'tiny.py', '--work-dir', 'run']) == 0
(result,) = DynamicInferencer('tiny.py', 'run/iter_2.pth')(np.zeros((64, 96, 3), 'uint8'))
print(result.labels.shape, 'mmdet.models' in sys.modules)
for config in ('mmdyn::mask_rcnn_dynswin_mini.py', 'head.py'):
    try:
        main(['flops', config, '--shape', '64'])
    except SystemExit as end:
        print(end.code)
"""
    done = run(source, path=tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith('(64, 96) False\n2\n2\n')
    assert 'mmcv-lite' not in done.stderr
    for error in done.stderr.splitlines()[-2:]:
        assert 'make setup-det' in error and 'MMCV_WITH_OPS=1 pip install' in error
