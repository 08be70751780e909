import importlib.util
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE

from mmdyn import config_lookup

MODEL = "model = dict(type='EncoderDecoder', backbone=dict(type='mmdyn.DynamicSwin', depth=2))\n"


@pytest.fixture
def configs(monkeypatch, tmp_path):
    """A configs folder in place of ours: a flat config on a nested base."""
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


def test_a_flat_name_is_a_base(configs, tmp_path):
    mine = write(
        tmp_path / 'mine.py',
        "_base_ = 'mmdyn::upernet_tiny_ade20k.py'\nmodel = dict(backbone=dict(depth=3))\n",
    )
    config = Config.fromfile(mine)
    assert config.model.backbone == dict(type='mmdyn.DynamicSwin', depth=3)
    assert config.default_scope == 'mmseg'


def test_a_nested_name_is_a_base_among_others(configs, tmp_path):
    write(tmp_path / 'other.py', 'other = 1\n')
    mine = write(tmp_path / 'mine.py', "_base_ = ['mmdyn::_base_/models/upernet.py', 'other.py']\n")
    config = Config.fromfile(mine)
    assert config.model.type == 'EncoderDecoder'
    assert config.other == 1


def test_our_bases_bring_no_scope(configs, tmp_path):
    # mmengine marks what another package's base defines with `_scope_`; unprefixed types in our
    # configs are the host's, so ours must not be marked.
    mine = write(
        tmp_path / 'mine.py',
        "_base_ = 'mmdyn::_base_/models/upernet.py'\nbackbone = _base_.model.backbone\n",
    )
    config = Config.fromfile(mine)
    assert config.backbone == dict(type='mmdyn.DynamicSwin', depth=2)


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


def test_find_config_looks_for_the_file_name_in_other_folders(configs):
    with pytest.raises(FileNotFoundError, match=r'mmdyn::_base_/models/upernet\.py'):
        config_lookup.find_config('mmdyn::upernet.py')


def test_resolve_config_path(configs, monkeypatch):
    flat = configs / 'upernet_tiny_ade20k.py'
    assert config_lookup.resolve_config_path('mmdyn::upernet_tiny_ade20k.py') == str(flat)
    assert config_lookup.resolve_config_path(flat) == str(flat)
    monkeypatch.chdir(configs)
    assert config_lookup.resolve_config_path('upernet_tiny_ade20k.py') == 'upernet_tiny_ade20k.py'
    # A path from the checkout, typed where only the wheel is.
    with pytest.raises(FileNotFoundError, match=r'mmdyn::upernet_tiny_ade20k\.py'):
        config_lookup.resolve_config_path('configs/upernet_tiny_ade20k.py')
    with pytest.raises(ValueError, match='mmnothing'):
        config_lookup.resolve_config_path('mmnothing::a/b.py')
    with pytest.raises(ValueError, match='needs its folder'):
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


@pytest.mark.parametrize(
    ('installed', 'entry'), [(True, 'mmsegmentation'), (False, 'mmseg')], ids=['original', 'other']
)
def test_hosts_are_looked_up_by_module_only_without_their_distribution(
    monkeypatch, installed, entry
):
    monkeypatch.setattr(config_lookup, '_is_distribution', lambda name: installed)
    monkeypatch.setitem(MODULE2PACKAGE, 'mmseg', 'mmsegmentation')
    config_lookup._name_hosts_by_module()
    assert MODULE2PACKAGE['mmseg'] == entry


def test_installing_twice_is_harmless():
    before = Config._get_cfg_path
    config_lookup.install()
    assert Config._get_cfg_path is before


@pytest.mark.parametrize('function', [None, lambda path: path], ids=['gone', 'changed'])
def test_a_changed_mmengine_is_refused(monkeypatch, function):
    monkeypatch.setattr(Config, '_get_cfg_path', function and staticmethod(function))
    with pytest.raises(ImportError, match=r'_get_cfg_path.*mmengine .* changed'):
        config_lookup.install()


def lookup_at(package):
    """Loads a copy of the look-up module as if mmdyn lay at `package`."""
    package.mkdir(parents=True)
    path = package / 'config_lookup.py'
    path.write_text(Path(config_lookup.__file__).read_text())
    spec = importlib.util.spec_from_file_location('config_lookup_copy', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_config_root_of_a_wheel(tmp_path):
    lookup = lookup_at(tmp_path / 'site-packages' / 'mmdyn')
    # Somebody else's folder of that name beside the package is not ours.
    (tmp_path / 'site-packages' / 'configs').mkdir()
    (tmp_path / 'site-packages' / 'mmdyn' / '.mim' / 'configs').mkdir(parents=True)
    assert lookup.config_root() == tmp_path / 'site-packages' / 'mmdyn' / '.mim' / 'configs'


@pytest.mark.parametrize('with_symlinks', [True, False])
def test_config_root_of_a_checkout(tmp_path, with_symlinks):
    lookup = lookup_at(tmp_path / 'mmdyn')
    (tmp_path / 'configs').mkdir()
    (tmp_path / 'mmdyn' / '.mim').mkdir()
    if with_symlinks:
        (tmp_path / 'mmdyn' / '.mim' / 'configs').symlink_to('../../configs')
    assert lookup.config_root() == tmp_path / 'configs'


def test_config_root_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match='has no configs'):
        lookup_at(tmp_path / 'mmdyn').config_root()
