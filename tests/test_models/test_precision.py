"""Prepared models in bfloat16 and int8 against float32."""

import copy

import pytest
import torch
from torch import nn

pytest.importorskip('mmseg')

from mmengine.config import Config
from mmengine.registry import init_default_scope

import mmdyn
from mmdyn.convolutions import precision as precisions
from mmdyn.convolutions.precision import PRECISIONS, Precision, choose_precision, cpu_flags
from mmdyn.convolutions.products import packed_product
from mmdyn.convolutions.winograd import winograd_conv2d, winograd_products
from mmdyn.models import DynamicSwin, prepared
from mmdyn.registry import MODELS
from mmdyn.sparsity import FixedPolicy

ERRORS = {'bfloat16': 0.03, 'int8': 0.06}
"""Largest allowed error, relative to the largest value."""


def supported(name):
    try:
        choose_precision(name)
    except ValueError:
        return False
    return True


@pytest.fixture(params=['bfloat16', 'int8'])
def precision(request):
    if not supported(request.param):
        pytest.skip(f'this CPU or torch does not compute in {request.param}')
    return request.param


@pytest.fixture(autouse=True)
def inference():
    init_default_scope('mmseg')
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def check_close(got, expected, precision):
    assert got.dtype == expected.dtype == torch.float32
    error = (got - expected).abs().max() / expected.abs().max()
    assert 0 < error < ERRORS[precision]


def liven(model):
    for value in model.parameters():
        if value.dim() > 1:
            nn.init.normal_(value, std=value[0].numel() ** -0.5)
    return model.eval()


@pytest.mark.parametrize('keep_ratios', [(1.0, 1.0, 1.0), (0.7, 0.5, 0.3)])
@pytest.mark.parametrize(('batch', 'size'), [(1, (64, 64)), (2, (64, 96)), (3, (75, 90))])
def test_backbone_is_close(precision, keep_ratios, batch, size):
    model = liven(DynamicSwin(embed_dims=32, num_heads=(1, 2, 4, 8), keep_ratios=keep_ratios))
    fast = mmdyn.prepare_for_inference(copy.deepcopy(model), precision)
    x = torch.randn(batch, 3, *size)
    out = model.forward_sparse(x)
    got = fast.forward_sparse(x, policy=FixedPolicy(out.decisions))
    for a, b in zip(got.feats, out.feats, strict=True):
        check_close(a, b, precision)


def force(monkeypatch, winograd):
    class Forced(prepared.Choices):
        def __contains__(self, key):
            return True

        def __getitem__(self, key):
            return winograd

    monkeypatch.setattr(prepared, 'Choices', Forced)


HEADS = dict(
    stock=dict(type='UPerHead'),
    tiles=dict(type='mmdyn.DynamicUPerHead', coarse_stride=16, tile_ratio=0.25, tile_size=8),
    static=dict(type='mmdyn.DynamicUPerHead', coarse_stride=8, tile_ratio=0.0),
)


@pytest.mark.parametrize('head', HEADS)
@pytest.mark.parametrize('winograd', [True, False])
def test_head_is_close(precision, head, winograd, monkeypatch):
    cfg = dict(
        in_channels=[32, 48, 64, 80],
        in_index=[0, 1, 2, 3],
        channels=32,
        num_classes=4,
        norm_cfg=dict(type='BN'),
        align_corners=False,
    )
    force(monkeypatch, winograd)
    model = liven(MODELS.build(cfg | HEADS[head]))
    fast = mmdyn.prepare_for_inference(copy.deepcopy(model), precision)
    sides = [32, 16, 8, 4]
    maps = [torch.randn(2, c, s, s) for c, s in zip(cfg['in_channels'], sides, strict=True)]
    got, expected = fast(maps), model(maps)
    if head == 'tiles':
        # The selection of tiles may differ for close scores.
        same = (got - expected).abs().amax(dim=1) < ERRORS[precision] * expected.abs().max()
        assert got.dtype == torch.float32 and same.float().mean() > 0.9
    else:
        check_close(got, expected, precision)


def test_head_of_one_level_is_left_alone():
    cfg = Config.fromfile('configs/upernet_swin_mini.py').model.decode_head
    cfg.norm_cfg = dict(type='BN')
    model = liven(MODELS.build(cfg))
    x = [torch.randn(1, 128, 16, 16)]
    fast = mmdyn.prepare_for_inference(copy.deepcopy(model))
    torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-4)


def test_layers_of_an_mlp_pass_bfloat16_on():
    if not supported('bfloat16'):
        pytest.skip('this CPU or torch does not compute in bfloat16')
    model = liven(DynamicSwin(embed_dims=32, num_heads=(1, 2, 4, 8)))
    mmdyn.prepare_for_inference(model, 'bfloat16')
    seen = []
    mlp = model.stages[0].blocks[0].ffn.layers
    mlp[0][1].register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
    x = torch.randn(1, 3, 64, 64)
    model(x)
    assert seen == [torch.bfloat16]
    # With gradients it is the original model.
    with torch.enable_grad():
        model(x.requires_grad_())[-1].sum().backward()
    assert seen[1:] == [torch.float32] and x.grad.isfinite().all()


def test_predictors_stay_in_float32(precision):
    model = mmdyn.prepare_for_inference(
        DynamicSwin(embed_dims=32, num_heads=(1, 2, 4, 8)), precision
    )
    kinds = {m.dtype for m in model.predictors.modules() if hasattr(m, 'dtype')}
    others = {m.dtype for m in model.stages.modules() if hasattr(m, 'dtype')}
    assert kinds == {torch.float32} and others == {PRECISIONS[precision].products}


def test_int8_product_of_zeros_and_of_other_layouts():
    if not supported('int8'):
        pytest.skip('this CPU or torch does not compute in int8')
    weight, bias = torch.randn(8, 16), torch.randn(8)
    weight[3] = 0
    product = packed_product(weight, bias, torch.qint8)
    torch.testing.assert_close(product(torch.zeros(2, 3, 16)), bias.expand(2, 3, 8))
    x = torch.randn(16, 5).T
    check_close(product(x), torch.nn.functional.linear(x, weight, bias), 'int8')
    assert product(torch.empty(0, 16)).shape == (0, 8)


def test_winograd_is_as_exact_as_promised():
    x, weight = torch.randn(1, 128, 20, 22), torch.randn(64, 128, 3, 3)
    exact = torch.nn.functional.conv2d(x.double(), weight.double(), padding=1)
    got = winograd_conv2d(x, winograd_products(weight), 64, 1)
    assert (got - exact).norm() / exact.norm() < 2e-6
    if supported('bfloat16'):
        got = winograd_conv2d(x, winograd_products(weight, torch.bfloat16), 64, 1)
        assert 1e-3 < (got - exact).norm() / exact.norm() < 2e-2


def test_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="'fp16' is unknown: choose one of float32, bf"):
        mmdyn.prepare_for_inference(nn.Linear(2, 2), 'fp16')


@pytest.mark.parametrize(
    ('name', 'instructions'), [('bfloat16', 'avx512_bf16 or amx_bf16'), ('int8', 'avx512_vnni')]
)
def test_a_cpu_without_the_instructions_is_refused(name, instructions, monkeypatch):
    monkeypatch.setattr(precisions, 'torch_computes', lambda dtype: True)
    monkeypatch.setattr(precisions, 'cpu_flags', lambda: frozenset({'avx2', 'avx512f'}))
    model = nn.Linear(2, 2).train()
    with pytest.raises(ValueError, match=f'needs a CPU with {instructions}.*leave the precision'):
        mmdyn.prepare_for_inference(model, name)
    assert model.training and model.weight.requires_grad
    assert choose_precision('float32') == Precision()


@pytest.mark.parametrize('name', ['bfloat16', 'int8'])
def test_a_torch_without_the_operators_is_refused(name, monkeypatch):
    monkeypatch.setattr(precisions, 'can_pack', lambda: False)
    with pytest.raises(ValueError, match='needs a torch with oneDNN'):
        mmdyn.prepare_for_inference(nn.Linear(2, 2), name)


def test_int8_without_bfloat16_convolves_in_float32(monkeypatch):
    monkeypatch.setattr(precisions, 'torch_computes', lambda dtype: True)
    monkeypatch.setattr(precisions, 'cpu_flags', lambda: frozenset({'avx512_vnni'}))
    assert choose_precision('int8') == Precision(torch.qint8, torch.float32)


def test_flags_are_read_where_the_system_tells_them():
    assert all(flag == flag.strip() for flag in cpu_flags())
