"""tools/convert_checkpoint.py."""

import os

import pytest
import torch

from mmdyn.__main__ import find_tools
from mmdyn.converters.formats import FAMILIES
from mmdyn.models import DynamicSwin
from mmdyn.version import __version__
from tests.reference import dynamic_swin, dynamic_vit
from tests.test_reliability.forging import Calls
from tests.test_reliability.tiny import call
from tests.test_tools.segmentation import load_tool

SIZES = dict(depths=(1, 1, 4, 1), num_heads=(1, 1, 2, 2), window_size=4)


def original():
    """A state dict of an original DynamicSwin."""
    depths, heads, window = SIZES.values()
    return dynamic_swin.random_state(
        embed_dims=8, depths=depths, heads=heads, window=window, predictors=3
    )


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({'model': original()}, tmp_path / 'dynamic_swin.pth')
    return tmp_path / 'dynamic_swin.pth'


def run(*argv, to='dynamic-swin'):
    """Run the tool; returns its exit code, stdout and stderr."""
    return call('convert_checkpoint', *argv, '--to', to)


def test_its_families_are_the_converters():
    assert load_tool('convert_checkpoint').TARGETS == tuple(FAMILIES)
    assert 'convert' in find_tools()


def test_a_file_is_converted_and_reported(source, tmp_path):
    target = tmp_path / 'new' / 'ours.pth'
    code, out, _ = run(source, target)
    said = ' '.join(out.split())
    assert code == 0
    for part in (
        'format DynamicSwin, original',
        'embed_dims 8, depths (1, 1, 4, 1), num_heads (1, 1, 2, 2), window_size 4',
        'converted 148 tensors',
        'copied 2 tensors of head',
        'left out 7 tensors: buffer',
        'left out 4 tensors: fast path',
        'predictors 3 found',
        'missing norm0, norm1, norm2',
        f'written {target}',
    ):
        assert part in said
    content = torch.load(target, weights_only=True)
    assert content['meta'] == dict(
        format='DynamicSwin, original', source='dynamic_swin.pth', mmdyn_version=__version__
    )
    assert len(content['state_dict']) == 148 + 2
    init_cfg = dict(type='Pretrained', checkpoint=str(target))
    model = DynamicSwin(embed_dims=8, init_cfg=init_cfg, **SIZES)
    model.init_weights()
    loaded = model.state_dict()
    own = {k: v for k, v in content['state_dict'].items() if not k.startswith('head.')}
    assert all(torch.equal(loaded[key], value) for key, value in own.items())
    assert os.listdir(target.parent) == ['ours.pth']


def test_a_whole_models_other_parts_stay(source):
    state = {f'backbone.{key}': value for key, value in original().items()}
    state['decode_head.conv.weight'] = torch.ones(1)
    torch.save(dict(state_dict=state, optimizer={}, meta=dict(iter=3)), 'iter_3.pth')
    code, said, _ = run('iter_3.pth', 'ours.pth')
    assert code == 0 and '1 tensors of decode_head' in said and 'optimizer, meta' in said
    written = torch.load('ours.pth', weights_only=True)['state_dict']
    assert torch.equal(written['decode_head.conv.weight'], torch.ones(1))
    assert 'backbone.predictors.0.norm.weight' in written


def test_what_is_only_assumed_is_said(source):
    state = dynamic_vit.random_state(embed_dims=16, depth=12, predictors=0, patch=8, image=32)
    torch.save(state, 'vit.pth')
    code, said, _ = run('vit.pth', 'ours.pth', to='dynamic-vit')
    assert code == 0 and 'num_heads is not stored' in said and 'num_heads 1' not in said
    assert 'none found' in said


def test_a_file_is_overwritten_whole_or_not_at_all(source, tmp_path, monkeypatch):
    target = tmp_path / 'ours.pth'
    target.write_text('old')

    def disk_full(content, file):
        file.write(b'half')
        raise OSError('no space left')

    with monkeypatch.context() as patch:
        patch.setattr(torch, 'save', disk_full)
        code, _, error = run(source, target, '--force')
    assert code == 2 and 'no space left' in error
    assert target.read_text() == 'old'
    assert sorted(os.listdir(tmp_path)) == ['dynamic_swin.pth', 'ours.pth']
    assert run(source, target, '--force')[0] == 0
    assert 'state_dict' in torch.load(target, weights_only=True)


@pytest.mark.parametrize('option', ['--trust', '--trust-checkpoint'])
def test_code_in_a_file_runs_only_if_trusted(source, option):
    torch.save(dict(model=original(), args=Calls(os.mkdir, 'ran')), 'armed.pth')
    assert run('armed.pth', 'ours.pth')[0] == 2
    assert not os.path.exists('ran') and not os.path.exists('ours.pth')
    assert run('armed.pth', 'ours.pth', option)[0] == 0
    assert os.path.isdir('ran')
    torch.load('ours.pth', weights_only=True)


@pytest.mark.parametrize('place', ['beside', 'inside'])
def test_names_of_a_file_do_nothing_to_a_terminal(source, place):
    evil = 'evil\x1b[31m\x07'
    content = torch.load(source, weights_only=True)
    (content if place == 'beside' else content['model'])[evil] = torch.zeros(1)
    torch.save(content, source)
    code, *said = run(source, 'ours.pth')
    said = ''.join(said)
    assert code == (place == 'inside') * 2
    assert 'evil' in said and '\x1b' not in said and '\x07' not in said
