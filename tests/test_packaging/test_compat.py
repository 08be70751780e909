import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from mmdyn import compat

ROOT = Path(__file__).parents[2]


def fake(monkeypatch, name, version):
    """Replace a module by an empty one with that version."""
    module = ModuleType(name)
    module.__version__ = version
    module.__path__ = []
    module.__file__ = f'/somewhere/{name}/__init__.py'
    monkeypatch.setitem(sys.modules, name, module)
    return module


def run(source, *, path):
    """Run source text in a new interpreter that searches modules in `path` first."""
    return subprocess.run(
        [sys.executable, '-c', source],
        cwd=ROOT,
        env={'PYTHONPATH': f'{path}:{ROOT}', 'PATH': '/usr/bin:/bin', 'HOME': str(path)},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize('line', ['maintained', 'original'])
def test_both_lines_pass(monkeypatch, line):
    for name, supported in compat.SUPPORTED.items():
        fake(monkeypatch, name, getattr(supported, line).partition('==')[2])
    fake(monkeypatch, 'mmcv.ops', None)
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


def test_segmentation_and_mmdyn_do_without_compiled_ops(tmp_path):
    source = """
import sys
sys.modules['mmcv.ops'] = None
import mmdyn.models
from mmdyn.registry import MODELS
print(MODELS.get('DynamicEncoderDecoder'), MODELS.get('DynamicMaskRCNN'))
"""
    done = run(source, path=tmp_path)
    assert done.returncode == 0, done.stderr
    assert 'DynamicEncoderDecoder' in done.stdout and done.stdout.strip().endswith('None')
