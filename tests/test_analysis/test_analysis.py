import io
import sys

import torch
from torch import nn

from mmdyn.analysis import count_macs
from mmdyn.analysis.progress import Meter
from mmdyn.models import DynamicSwin

TINY = dict(embed_dims=16, depths=(1, 1, 5, 1), num_heads=(1, 2, 4, 8))


def test_counts_linear_convolution_and_attention():
    linear, conv = nn.Linear(8, 32), nn.Conv2d(3, 4, 3, padding=1)
    assert count_macs(lambda: linear(torch.zeros(5, 8))) == 5 * 8 * 32
    assert count_macs(lambda: conv(torch.zeros(1, 3, 6, 7))) == 6 * 7 * 3 * 4 * 9
    query = torch.zeros(2, 3, 10, 16)
    attend = nn.functional.scaled_dot_product_attention
    mask = torch.zeros(1, 3, 10, 10)
    expected = 2 * 3 * 10 * 10 * 16 * 2
    assert count_macs(lambda: attend(query, query, query)) == expected
    assert count_macs(lambda: attend(query, query, query, attn_mask=mask)) == expected


def test_counts_what_the_sparse_path_saves():
    model, x = DynamicSwin(**TINY).eval(), torch.randn(1, 3, 128, 128)
    model.set_keep_ratios((1.0, 1.0, 1.0))
    dense = count_macs(lambda: model(x))
    model.set_keep_ratios((0.75, 0.5, 0.25))
    channels, locations = 64, 64
    # Blocks 1, 2 and 3, 4 follow the predictors; a location saves 8C² and pays C².
    dropped = locations * (0.25 + 0.5 + 0.75 * 2)
    assert dense - count_macs(lambda: model(x)) == dropped * (8 - 1) * channels**2


def test_meter_prints_share_and_time_left_where_there_is_no_terminal(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(sys, 'stdout', out)
    monkeypatch.setattr('mmdyn.analysis.progress.LINE_INTERVAL', 0)
    with Meter({'one': 1, 'two': 3}) as meter:
        with meter.stage('one', 2) as advance:
            advance()
            advance()
        with meter.stage('two', 3) as advance:
            advance()
    lines = out.getvalue().splitlines()
    assert any('12%' in line and 'one 1/2' in line and 'left' in line for line in lines)
    assert any('50%' in line and 'two 1/3' in line for line in lines)
    assert '100%' in lines[-1]
