"""tools/convert_checkpoint.py from one file to the other."""

import os

import pytest
import torch
from mmengine.logging import HistoryBuffer

from mmdyn.converters.formats import FAMILIES
from mmdyn.models import DynamicSwin
from mmdyn.version import __version__
from tests.reference import dynamic_swin, dynamic_vit
from tests.test_reliability.forging import Calls
from tests.test_tools.segmentation import load_tool

DEPTHS, HEADS = (1, 1, 4, 1), (1, 1, 2, 2)


def original():
    """A state dict of an original DynamicSwin."""
    return dynamic_swin.random_state(
        embed_dims=8, depths=DEPTHS, heads=HEADS, window=4, predictors=3
    )


@pytest.fixture
def source(tmp_path):
    torch.save({'model': original()}, tmp_path / 'dynamic_swin.pth')
    return tmp_path / 'dynamic_swin.pth'


def run(*argv) -> int:
    """Runs the tool in this process; returns its exit code."""
    try:
        return load_tool('convert_checkpoint').main([str(arg) for arg in argv])
    except SystemExit as end:
        return end.code


def test_its_families_are_the_converters():
    assert load_tool('convert_checkpoint').TARGETS == tuple(FAMILIES)


def test_a_file_is_converted_and_reported(source, tmp_path, capsys):
    target = tmp_path / 'new' / 'ours.pth'
    assert run(source, target, '--to', 'dynamic-swin') == 0
    said = ' '.join(capsys.readouterr().out.split())
    for part in (
        'format DynamicSwin, original',
        'embed_dims 8, depths (1, 1, 4, 1), num_heads (1, 1, 2, 2), window_size 4',
        'converted 148 tensors',
        'left out 2 tensors: classifier',
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
    assert len(content['state_dict']) == 148
    model = DynamicSwin(
        embed_dims=8,
        depths=DEPTHS,
        num_heads=HEADS,
        window_size=4,
        init_cfg=dict(type='Pretrained', checkpoint=str(target)),
    )
    model.init_weights()
    loaded = model.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in content['state_dict'].items())
    assert os.listdir(target.parent) == ['ours.pth']


def test_a_trainings_checkpoint_keeps_its_other_parts(tmp_path, capsys):
    state = {f'backbone.{key}': value for key, value in original().items()}
    state |= {f'{part}.conv.weight': torch.ones(1) for part in ('decode_head', 'auxiliary_head')}
    content = dict(state_dict=state, message_hub=dict(loss=HistoryBuffer()), meta=dict(iter=3))
    torch.save(content, tmp_path / 'iter_3.pth')
    assert run(tmp_path / 'iter_3.pth', tmp_path / 'ours.pth', '--to', 'dynamic-swin') == 0
    said = capsys.readouterr().out
    assert '1 tensors of decode_head' in said and 'message_hub, meta' in said
    written = torch.load(tmp_path / 'ours.pth', weights_only=True)['state_dict']
    assert torch.equal(written['decode_head.conv.weight'], torch.ones(1))
    assert 'backbone.predictors.0.norm.weight' in written


def test_what_is_only_assumed_is_said(tmp_path, capsys):
    state = dynamic_vit.random_state(embed_dims=16, depth=12, predictors=0, patch=8, image=32)
    torch.save(state, tmp_path / 'vit.pth')
    assert run(tmp_path / 'vit.pth', tmp_path / 'ours.pth', '--to', 'dynamic-vit') == 0
    said = capsys.readouterr().out
    assert 'num_heads leaves no trace' in said and 'num_heads 1' not in said
    assert 'none found' in said


@pytest.mark.parametrize(
    ('argv', 'said'),
    [
        (['gone.pth', 'new.pth', '--to', 'dynamic-swin'], 'gone.pth'),
        (['notes.txt', 'new.pth', '--to', 'dynamic-swin'], 'notes.txt is damaged'),
        (['https://host/a.pth', 'new.pth', '--to', 'dynamic-swin'], 'https://host/a.pth'),
        (['dynamic_swin.pth', 'new.pth', '--to', 'dynamic-convnext'], 'dynamic-swin and not'),
        (['dynamic_swin.pth', 'new.pth', '--to', 'swin'], "'swin'"),
        (['resnet.pth', 'new.pth', '--to', 'dynamic-swin'], 'resnet.pth: no known layout'),
        (['dynamic_swin.pth', 'dynamic_swin.pth', '--to', 'dynamic-swin', '--force'], 'to convert'),
        (['dynamic_swin.pth', 'notes.txt', '--to', 'dynamic-swin'], 'notes.txt exists'),
        (['dynamic_swin.pth', '.', '--to', 'dynamic-swin', '--force'], 'is a folder'),
    ],
)
def test_bad_input_is_one_message_and_2(source, tmp_path, monkeypatch, capsys, argv, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'notes.txt').write_text('hello')
    torch.save({'layer1.0.conv1.weight': torch.zeros(1)}, 'resnet.pth')
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir()}
    assert run(*argv) == 2
    error = capsys.readouterr().err
    assert said in error and 'Traceback' not in error
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir()} == before


def test_a_file_is_overwritten_if_asked_and_whole_or_not_at_all(
    source, tmp_path, monkeypatch, capsys
):
    target = tmp_path / 'ours.pth'
    target.write_text('old')
    argv = (source, target, '--to', 'dynamic-swin', '--force')

    def disk_full(content, file):
        file.write(b'half')
        raise OSError('no space left')

    with monkeypatch.context() as patch:
        patch.setattr(torch, 'save', disk_full)
        assert run(*argv) == 2
    assert 'no space left' in capsys.readouterr().err
    assert target.read_text() == 'old'
    assert sorted(os.listdir(tmp_path)) == ['dynamic_swin.pth', 'ours.pth']
    assert run(*argv) == 0
    assert 'state_dict' in torch.load(target, weights_only=True)


@pytest.mark.parametrize('option', ['--trust', '--trust-checkpoint'])
def test_a_strangers_code_runs_only_if_trusted(tmp_path, capsys, option):
    content = dict(model=original(), args=Calls(os.mkdir, str(tmp_path / 'ran')))
    torch.save(content, tmp_path / 'stranger.pth')
    argv = (tmp_path / 'stranger.pth', tmp_path / 'ours.pth', '--to', 'dynamic-swin')
    assert run(*argv) == 2
    assert '--trust-checkpoint' in capsys.readouterr().err
    assert not (tmp_path / 'ran').exists() and not (tmp_path / 'ours.pth').exists()
    assert run(*argv, option) == 0
    assert (tmp_path / 'ran').is_dir()
    torch.load(tmp_path / 'ours.pth', weights_only=True)


@pytest.mark.parametrize('place', ['beside', 'inside'])
def test_names_of_a_file_do_nothing_to_a_terminal(source, tmp_path, capsys, place):
    evil = 'evil\x1b[31m\x07'
    content = torch.load(source, weights_only=True)
    if place == 'beside':
        content[evil] = 1
    else:
        content['model'][f'layers.2.blocks.0.{evil}'] = torch.zeros(1)
    torch.save(content, source)
    assert run(source, tmp_path / 'ours.pth', '--to', 'dynamic-swin') == (place == 'inside') * 2
    said = ''.join(capsys.readouterr())
    assert 'evil' in said and '\x1b' not in said and '\x07' not in said
