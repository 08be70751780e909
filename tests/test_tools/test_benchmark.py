"""tools/benchmark.py with both hosts, and its functions."""

import json

import pytest
import torch
from PIL import Image

from mmdyn.analysis.images import NOISE, default_shape, find_pictures, make_batches
from mmdyn.analysis.lines import STOCK, lines_of
from mmdyn.analysis.stock import build_stock_model
from mmdyn.engine.loading import RANDOM_WEIGHTS, load_model
from mmdyn.engine.picture_reader import reader_of
from mmdyn.models.compiled import compile_regions
from tests.test_reliability.tiny import DETECTOR, call

FAST = ('--rounds', 2, '--num-images', 2, '--threads', 1, '--device', 'cpu')
ROW = {
    'part', 'shape', 'batch_size', 'name', 'model', 'kind', 'keep_ratios', 'tile_ratio', 'policy',
    'ms', 'first_ms', 'rounds', 'gmacs', 'peak_mib', 'speedup', 'realised',
}  # fmt: skip


def measured(tmp_path, *argv):
    """File, stdout and stderr of the tool."""
    code, out, error = call('benchmark', *argv, *FAST, '--out', tmp_path / 'new' / 'out.json')
    assert code == 0, error
    return json.loads((tmp_path / 'new' / 'out.json').read_text()), out, error


def test_a_segmentors_parts_ratios_and_batches(segmentor, tmp_path):
    argv = ('--keep-ratio', 0.7, '--keep-ratios', 0.5, 0.5, 0.5, '--batch-size', 1, 2, '--stock')
    plot = ('--plot', tmp_path / 'chart.png')
    results, shown, error = measured(tmp_path, segmentor.config, *argv, *plot)
    rows = results['rows']
    assert all(set(row) == ROW for row in rows)
    names = ['dense', 'stock', 'learned 0.7, 0.5, 0.3', 'random 0.7, 0.5, 0.3']
    names += ['learned 0.5, 0.5, 0.5', 'random 0.5, 0.5, 0.5']
    cases = [(part, size) for part in ('backbone', 'end-to-end') for size in (1, 2)]
    assert [(row['part'], row['batch_size'], row['name']) for row in rows] == [
        (*case, name) for case in cases for name in names
    ]
    assert all(row['shape'] == [64, 64] and row['rounds'] == 2 for row in rows)
    by_name = {row['name']: row for row in rows[:6]}
    assert by_name['dense']['speedup'] == dict(median=1, lower=1, upper=1)
    assert by_name['learned 0.7, 0.5, 0.3']['gmacs'] < by_name['dense']['gmacs']
    assert by_name['random 0.7, 0.5, 0.3']['gmacs'] == by_name['learned 0.7, 0.5, 0.3']['gmacs']
    assert rows[13]['gmacs'] > rows[1]['gmacs']  # end-to-end against the backbone
    assert all(row['peak_mib'] > 0 for row in rows)
    assert results['settings']['images'] == "2 pictures of the config's validation set"
    assert Image.open(tmp_path / 'chart.png').size[0] > 500
    assert 'learned 0.5, 0.5, 0.5' in shown and RANDOM_WEIGHTS in shown
    assert 'DynamicEncoderDecoder' in error
    # The description of the machine contains no paths.
    assert '"/' not in json.dumps(results)


def test_a_detector_on_noise_at_any_shape(tmp_path):
    pytest.importorskip('mmdet')
    (tmp_path / 'detector.py').write_text(DETECTOR)
    argv = ('--shape', 64, 96, '--shape', 96, 64, '--no-random', '--stock')
    results, _, _ = measured(tmp_path, tmp_path / 'detector.py', *argv)
    assert [(row['part'], *row['shape'], row['name']) for row in results['rows']] == [
        (part, *shape, name)
        for part in ('backbone', 'end-to-end')
        for shape in ((64, 96), (96, 64))
        for name in ('dense', 'stock', 'learned 0.7, 0.5, 0.3')
    ]
    assert NOISE in results['settings']['images']
    assert results['settings']['weights'] == RANDOM_WEIGHTS


def test_half_precision_and_another_policy(segmentor, tmp_path):
    argv = ('--part', 'backbone', '--dtype', 'bf16', '--policy', 'ThresholdPolicy', 'threshold=0.4')
    results, _, _ = measured(tmp_path, segmentor.config, *argv)
    assert [row['policy'] for row in results['rows']] == [
        'TopKPolicy',
        'ThresholdPolicy',
        'RandomPolicy',
    ]


def test_compiles_all_but_the_stock_model(segmentor, tmp_path, monkeypatch):
    got = []

    def compile_quickly(model):
        got.append(type(model).__name__)
        return compile_regions(model, backend='eager')

    monkeypatch.setattr('mmdyn.analysis.lines.compile_regions', compile_quickly)
    options = ('--part', 'backbone', '--compile', '--stock')
    results, _, _ = measured(tmp_path, segmentor.config, *options)
    assert got == ['DynamicEncoderDecoder']
    assert results['settings']['compiled'] is True


def test_prepares_every_model_alike(segmentor, tmp_path, monkeypatch):
    got = []
    monkeypatch.setattr('mmdyn.models.prepared.print_log', lambda text, **_: got.append(text))
    options = ('--part', 'end-to-end', '--stock', '--no-random')
    plain, prepared = (
        measured(tmp_path, segmentor.config, *options, *more)[0] for more in ((), ('--prepare',))
    )
    assert [text.partition(' ')[0] for text in got] == ['DynamicEncoderDecoder', 'EncoderDecoder']
    assert prepared['settings']['prepared'] and not plain['settings']['prepared']
    # Multiply-adds are those before preparation.
    same = [[row['gmacs'] for row in results['rows']] for results in (plain, prepared)]
    assert same[0] == same[1]


@pytest.mark.parametrize('kind', ['segmentor', 'detector'])
def test_a_stock_model_is_the_same_function_at_ratio_1(kind, request):
    loaded = load_model(str(request.getfixturevalue(kind).config), keep_ratio=1.0)
    stock = build_stock_model(loaded)
    assert type(stock).__module__.startswith('mmseg' if kind == 'segmentor' else 'mmdet')
    assert not stock.training and not stock.backbone.training
    image = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        ours, theirs = loaded.backbone(image), stock.backbone(image)
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        loaded.backbone.set_keep_ratios((0.5, 0.5, 0.5))
        sparse = loaded.backbone(image)
    assert (sparse[-1] - ours[-1]).abs().max() > 1e-3


def test_loads_weights_and_says_what_stays_random(segmentor, tmp_path):
    loaded = load_model(str(segmentor.config), seed=1)
    assert loaded.is_sparse and loaded.weights == RANDOM_WEIGHTS
    state, new = loaded.model.state_dict(), ('predictors.', 'fast_path')
    states = dict(
        whole=state,
        dense={k: v for k, v in state.items() if not any(part in k for part in new)},
        other=dict(weight=torch.zeros(1)),
    )
    for name, content in states.items():
        torch.save(dict(state_dict=content), tmp_path / f'{name}.pth')
    whole, dense, other = (str(tmp_path / f'{name}.pth') for name in states)
    again = load_model(str(segmentor.config), whole)
    assert again.weights == 'weights of whole.pth'
    assert all(torch.equal(value, state[key]) for key, value in again.model.state_dict().items())
    assert not any('random' in note for note in again.notes)
    assert any(
        'predictors and fast paths' in n for n in load_model(str(segmentor.config), dense).notes
    )
    with pytest.raises(ValueError, match=r'other\.pth'):
        load_model(str(segmentor.config), other)


def test_no_stock_model_where_names_differ(segmentor):
    options = {
        'model.backbone': dict(_delete_=True, type='mmdyn.DynamicConvNeXt', arch='atto'),
        'model.decode_head.in_channels': 40,
    }
    loaded = load_model(str(segmentor.config), cfg_options=options)
    assert STOCK not in [line.kind for line in lines_of(loaded)]
    with pytest.raises(ValueError, match='DynamicConvNeXt'):
        lines_of(loaded, stock=True)


def test_pictures_come_from_a_folder_resized(segmentor, tmp_path):
    cfg = load_model(str(segmentor.config)).cfg
    (tmp_path / 'deep').mkdir()
    Image.new('RGB', (30, 20), (255, 0, 0)).save(tmp_path / 'deep' / 'red.PNG')
    Image.new('L', (30, 20)).save(tmp_path / 'grey.jpg')
    (tmp_path / 'notes.txt').write_text('no picture')
    files, source = find_pictures(cfg, str(tmp_path), 9)
    assert [file.name for file in files] == ['red.PNG', 'grey.jpg'] and 'folder' in source
    assert find_pictures(cfg, str(tmp_path), 1)[0] == files[:1]
    picture = reader_of(cfg).read_resized(files[0], (8, 16))
    assert picture.shape == (3, 8, 16) and picture.dtype == torch.uint8
    assert picture[:, 0, 0].tolist() == [0, 0, 255]  # blue first
    assert default_shape(cfg) == (64, 64)


def test_batches_differ_and_are_normalised(segmentor):
    loaded = load_model(str(segmentor.config))
    pictures = [torch.full((3, 64, 64), value, dtype=torch.uint8) for value in (7, 127, 247)]
    batches = make_batches(loaded, pictures, 2)
    values = [[round(v, 2) for v in batch.inputs[:, 0, 0, 0].tolist()] for batch in batches]
    assert values == [[-2, 0], [0, 2], [2, -2]]
    first, second = batches[0].samples(), batches[0].samples()
    assert len(first) == 2 and first[0] is not second[0]
    assert first[0].img_shape == (64, 64)
