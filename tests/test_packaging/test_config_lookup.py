import importlib.util
from pathlib import Path

import pytest
from mmengine.config import Config

from mmdyn import config_lookup

MODEL = "model = dict(type='EncoderDecoder', backbone=dict(type='mmdyn.DynamicSwin', depth=2))\n"


@pytest.fixture
def configs(monkeypatch, tmp_path):
    """A configs folder instead of ours: a flat config with a nested base."""
    root = tmp_path / 'configs'
    (root / '_base_' / 'models').mkdir(parents=True)
    (root / '_base_' / 'models' / 'upernet.py').write_text(MODEL)
    (root / 'upernet_tiny_ade20k.py').write_text(
        "_base_ = './_base_/models/upernet.py'\ndefault_scope = 'mmseg'\n"
    )
    monkeypatch.setattr(config_lookup, 'config_root', lambda: root)
    return root


def write(path, text):
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ('text', 'backbone'),
    [
        ("_base_ = 'mmdyn::upernet_tiny_ade20k.py'\nmodel = dict(backbone=dict(depth=3))", 3),
        ("_base_ = ['mmdyn::_base_/models/upernet.py', 'other.py']", 2),
        # mmengine marks values from another package's base with `_scope_`; unprefixed types in our
        # configs are the host's, so ours must not be marked.
        ("_base_ = 'mmdyn::_base_/models/upernet.py'\nmodel = dict(b=_base_.model.backbone)", 2),
    ],
    ids=['flat', 'among others', 'no scope'],
)
def test_our_names_are_bases(configs, tmp_path, text, backbone):
    (tmp_path / 'other.py').write_text('other = 1\n')
    model = Config.fromfile(write(tmp_path / 'mine.py', text)).model
    assert model.backbone == dict(type='mmdyn.DynamicSwin', depth=backbone)
    assert model.get('b', model.backbone) == model.backbone
    assert model.type == 'EncoderDecoder'


def test_an_unknown_base_lists_near_names(configs, tmp_path):
    mine = write(tmp_path / 'mine.py', "_base_ = 'mmdyn::upernet_tiny_ade.py'\n")
    with pytest.raises(FileNotFoundError) as error:
        Config.fromfile(mine)
    assert "'mmdyn::upernet_tiny_ade.py'" in str(error.value)
    assert 'mmdyn::upernet_tiny_ade20k.py' in str(error.value)
    assert str(configs) in str(error.value)


@pytest.mark.parametrize(
    'name', ['mmdyn::upernet_tiny_ade20k.py', 'mmdyn::upernet_tiny_ade20k', 'upernet_tiny_ade20k']
)
def test_find_config(configs, name):
    assert config_lookup.find_config(name) == configs / 'upernet_tiny_ade20k.py'


def test_resolve_config_path(configs, monkeypatch):
    flat = configs / 'upernet_tiny_ade20k.py'
    assert config_lookup.resolve_config_path('mmdyn::upernet_tiny_ade20k.py') == str(flat)
    assert config_lookup.resolve_config_path(flat) == str(flat)
    monkeypatch.chdir(configs)
    assert config_lookup.resolve_config_path('upernet_tiny_ade20k.py') == 'upernet_tiny_ade20k.py'
    # A path in the checkout, used with an installed wheel.
    with pytest.raises(FileNotFoundError, match=r'mmdyn::upernet_tiny_ade20k\.py'):
        config_lookup.resolve_config_path('configs/upernet_tiny_ade20k.py')
    with pytest.raises(FileNotFoundError, match=r'mmdyn::_base_/models/upernet\.py'):
        config_lookup.find_config('mmdyn::upernet.py')
    with pytest.raises(ValueError, match='mmnothing'):
        config_lookup.resolve_config_path('mmnothing::a/b.py')
    with pytest.raises(ValueError, match='must include its folder'):
        config_lookup.resolve_config_path('mmseg::upernet.py')


@pytest.mark.parametrize(
    ('name', 'scope'),
    [
        (
            'mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py',
            'mmseg',
        ),
        ('mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py', 'mmdet'),
    ],
)
def test_the_hosts_configs_are_bases(tmp_path, name, scope):
    config = Config.fromfile(write(tmp_path / 'mine.py', f'_base_ = {name!r}\n'))
    assert config.model.backbone.type == 'SwinTransformer'
    assert config.default_scope == scope
    assert Path(config_lookup.resolve_config_path(name)).is_file()


def lookup_at(package):
    """Load a copy of the look-up module as if mmdyn were in `package`."""
    package.mkdir(parents=True)
    path = package / 'config_lookup.py'
    path.write_text(Path(config_lookup.__file__).read_text())
    spec = importlib.util.spec_from_file_location('config_lookup_copy', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize('kind', ['wheel', 'checkout', 'checkout without symlinks', 'none'])
def test_config_root(tmp_path, kind):
    lookup = lookup_at(tmp_path / 'mmdyn')
    beside, inside = tmp_path / 'configs', tmp_path / 'mmdyn' / '.mim' / 'configs'
    if kind == 'none':
        with pytest.raises(FileNotFoundError, match='has no configs'):
            lookup.config_root()
        return
    # Next to an installed wheel, a folder of that name is someone else's.
    beside.mkdir()
    if kind == 'wheel':
        inside.mkdir(parents=True)
    elif kind == 'checkout':
        inside.parent.mkdir()
        inside.symlink_to('../../configs')
    assert lookup.config_root() == (inside if kind == 'wheel' else beside)
