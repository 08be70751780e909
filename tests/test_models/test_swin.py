"""DynamicSwin against the hosts' dense Swin."""

import contextlib

import pytest
import torch

from mmdyn.models import DynamicSwin
from tests.test_models.test_backbones import assert_same, assert_same_gradients, make_live

mmseg_swin = pytest.importorskip('mmseg.models.backbones.swin')

TINY = dict(embed_dims=16, depths=(1, 2, 5, 2), num_heads=(1, 2, 4, 8), drop_path_rate=0.0)
SIZES = [(224, 224), (360, 480), (97, 131), (33, 260)]


def dense_and_sparse(**kwargs):
    dense = make_live(mmseg_swin.SwinTransformer, **{**TINY, **kwargs})
    sparse = DynamicSwin(**{**TINY, **kwargs}, keep_ratios=(1.0, 1.0, 1.0))
    sparse.load_state_dict(dense.state_dict(), strict=False)
    dense.eval(), sparse.eval()  # the host's returns nothing
    return dense, sparse


@pytest.mark.parametrize('hw', SIZES, ids=str)
def test_ratio_one_equals_the_dense_backbone(hw):
    dense, sparse = dense_and_sparse()
    x = torch.randn(2, 3, *hw)
    with torch.no_grad():
        expected = dense(x)
        assert_same(sparse(x), expected)
        assert_same(sparse.forward_sparse(x, execution='masked').feats, expected)


@pytest.mark.parametrize(
    'kwargs',
    [
        dict(qkv_bias=False),
        dict(patch_norm=False),
        dict(qk_scale=0.3, mlp_ratio=2),
        dict(window_size=5),
        dict(out_indices=(1, 3)),
        dict(patch_size=2, strides=(2, 2, 2, 2)),
    ],
    ids=str,
)
def test_arguments_mean_what_they_mean_in_the_host(kwargs):
    dense, sparse = dense_and_sparse(**kwargs)
    x = torch.randn(2, 3, 75, 90)
    with torch.no_grad():
        assert_same(sparse(x), dense(x))


def test_absolute_position_embedding_at_its_own_size_and_at_others():
    dense, sparse = dense_and_sparse(use_abs_pos_embed=True, pretrain_img_size=64)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert_same(sparse(x), dense(x))
        assert sparse(torch.randn(1, 3, 97, 131))[0].shape[-2:] == (25, 33)
        # A linear ramp stays linear except at the border.
        rows, columns = torch.meshgrid(torch.arange(16.0), 3 * torch.arange(16.0), indexing='ij')
        sparse.absolute_pos_embed.copy_((rows + columns).view(1, -1, 1))
        resized = sparse.position_embedding((32, 32)).view(32, 32, -1)[4:-4, 4:-4]
        places = (torch.arange(4, 28) + 0.5) / 2 - 0.5
        expected = (places[:, None] + 3 * places)[..., None].expand_as(resized)
        torch.testing.assert_close(resized, expected, atol=0.2, rtol=0)  # approximately, as bicubic


def test_gradients_equal_the_dense_backbones():
    dense, sparse = dense_and_sparse()
    x = torch.randn(2, 3, 97, 131)
    for model in (dense, sparse):
        sum(f.square().mean() for f in model(x)).backward()
    assert_same_gradients(sparse, dense)


@pytest.mark.parametrize('host', ['mmseg.models.backbones.swin', 'mmdet.models.backbones.swin'])
def test_dense_state_dict_lacks_new_parameters_only(host):
    host = pytest.importorskip(host)
    sparse = DynamicSwin(**TINY)
    missing, unexpected = sparse.load_state_dict(
        host.SwinTransformer(**TINY).state_dict(), strict=False
    )
    assert not unexpected
    assert missing and all('predictors.' in key or 'fast_path' in key for key in missing)


def test_bias_tables_are_resized_to_the_window_as_the_host_does(tmp_path):
    _, source = dense_and_sparse()
    state = {k: v for k, v in source.state_dict().items() if 'position_index' not in k}
    torch.save(state, tmp_path / 'swin.pth')  # mmseg's own refuses the index of another window
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'swin.pth'))
    wide, host = (
        make(**TINY, window_size=9, init_cfg=init_cfg)
        for make in (DynamicSwin, mmseg_swin.SwinTransformer)
    )
    wide.init_weights(), host.init_weights()
    own, expected = wide.state_dict(), host.state_dict()
    tables = [name for name in expected if name.endswith('relative_position_bias_table')]
    assert len(tables) == sum(TINY['depths'])
    for name in tables:
        assert own[name].shape[0] == 17**2 and own[name].std() > 0.01
        torch.testing.assert_close(own[name], expected[name], msg=name)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(num_heads=(1, 2)), 'one entry per stage'),
        (dict(patch_size=2), r'strides\[0\]=4'),
        (dict(embed_dims=18, num_heads=(4, 4, 4, 4)), 'does not divide'),
        (dict(pretrained='a.pth', init_cfg=dict(type='Pretrained', checkpoint='b')), 'give either'),
    ],
)
def test_wrong_settings_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        DynamicSwin(**{**TINY, **kwargs})


def test_tracing_leaves_nothing_behind_for_others():
    model, x = DynamicSwin(**TINY).eval(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        # The cache must not keep fake tensors of an export, successful or not.
        with contextlib.suppress(Exception):
            torch.export.export(model, (x,))
        assert all(type(feat) is torch.Tensor for feat in model(x))
