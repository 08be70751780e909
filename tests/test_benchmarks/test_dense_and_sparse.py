"""benchmarks/dense_and_sparse.py: one picture through two tiny models."""

import pytest
import torch

pytest.importorskip('mmseg')

import cv2
import numpy as np

from mmdyn.engine.config import load_config
from mmdyn.engine.loading import build_model
from tests.test_benchmarks import load_benchmark

SPARSE = """
_base_ = 'mmdyn::upernet_dynhead_dynswin-t_nuclei_ft.py'
model = dict(
    backbone=dict(embed_dims=8, num_heads=(1, 1, 1, 1), depths=(1, 1, 4, 1)),
    decode_head=dict(in_channels=[8, 16, 32, 64], channels=8),
)
"""
DENSE = SPARSE.replace('dynhead_dynswin-t_nuclei_ft', 'swin-t_nuclei').replace(
    'model = dict(', 'model = dict(auxiliary_head=None,'
)


@pytest.mark.parametrize('prepared', [[], ['--prepare-dense']])
def test_both_models_are_timed_and_drawn(tmp_path, monkeypatch, capsys, prepared):
    monkeypatch.syspath_prepend('benchmarks')
    bench = load_benchmark('dense_and_sparse')
    argv = []
    for option, name, text in (([], 'sparse', SPARSE), (['--dense'], 'dense', DENSE)):
        (tmp_path / f'{name}.py').write_text(text)
        model = build_model(load_config(str(tmp_path / f'{name}.py')))
        torch.save(dict(state_dict=model.state_dict(), meta={}), tmp_path / f'{name}.pth')
        argv += [*option, str(tmp_path / f'{name}.py'), str(tmp_path / f'{name}.pth')]
    picture = np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / 'a.png'), picture)
    argv += ['--picture', str(tmp_path / 'a.png'), '--out', str(tmp_path / 'out' / 'b.png')]
    assert bench.main([*argv, '--seconds', '0', *prepared]) == 0
    assert cv2.imread(str(tmp_path / 'out' / 'b.png')) is not None
    shown = capsys.readouterr().out
    assert 'dense: ' in shown and 'learned: ' in shown and 'speed-up ' in shown


def test_a_model_without_tiles_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend('benchmarks')
    bench = load_benchmark('dense_and_sparse')
    models = {}
    for name in ('upernet_dynswin_mini', 'upernet_swin_mini'):
        models[name] = tmp_path / f'{name}.pth'
        weights = build_model(load_config(f'mmdyn::{name}.py')).state_dict()
        torch.save(dict(state_dict=weights, meta={}), models[name])
    (sparse, weights), (dense, others) = (
        (f'mmdyn::{name}.py', str(path)) for name, path in models.items()
    )
    with pytest.raises(SystemExit, match='2'):
        bench.main(
            [sparse, weights, '--dense', dense, others, '--picture', 'a.png', '--out', 'b.png']
        )
    assert 'tiles' in capsys.readouterr().err
