"""benchmarks/tile_pictures.py: drawings of an image."""

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

pytest.importorskip('mmseg')

from mmseg.registry import MODELS

from tests.test_benchmarks import load_benchmark
from tests.test_models.test_mmseg_adapter import batch, segmentor_cfg

bench = load_benchmark('tile_pictures')


def test_a_row_shows_the_tiles_and_what_they_change():
    init_default_scope('mmseg')
    torch.manual_seed(0)
    cfg = segmentor_cfg()
    cfg['decode_head'] |= dict(type='mmdyn.DynamicUPerHead', tile_size=4, tile_ratio=0.5)
    model = MODELS.build(Config(dict(model=cfg)).model).eval()
    data = model.data_preprocessor(batch([(64, 64)]), training=False)
    picture = np.full((64, 64, 3), 200, np.uint8)
    palette = np.arange(30).reshape(10, 3) * 8
    row = bench.row_of(model, data['inputs'], data['data_samples'][0], picture, palette)
    titles = [title for title, _ in row]
    assert titles[0] == 'image' and '50% of the tiles' in titles and len(row) == 5
    assert model.decode_head.tile_ratio == 0.5
    coarse, tiles, merged, dense = (shown for _, shown in row[1:])
    clear = tiles[..., 0] == 200
    assert clear.mean() == 0.5
    # Logits are interpolated to pixels, which mixes neighbours at the seams.
    inside = np.kron(clear[::16, ::16], np.pad(np.ones((8, 8), bool), 4))
    assert (merged[inside] == dense[inside]).all()
    assert merged.shape == coarse.shape == (64, 64, 3)
    assert len(bench.draw_rows([row, row]).axes) == 10
