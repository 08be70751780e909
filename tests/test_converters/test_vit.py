"""ViT and DeiT checkpoints of other code bases under our names, which are timm's."""

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer as TimmViT

from mmdyn.converters.formats import convert
from mmdyn.models import DynamicViT
from tests.reference import dynamic_vit as reference
from tests.test_converters.random_weights import initialised, randomise

TINY = dict(embed_dims=32, depth=12, patch=8, image=64)


def timm_model(depth=12, **kwargs):
    model = TimmViT(
        img_size=64, patch_size=8, embed_dim=32, depth=depth, num_heads=2, num_classes=0, **kwargs
    )
    return randomise(model).eval()


@pytest.mark.parametrize('batch', [1, 4])
def test_an_original_dynamic_vit_keeps_its_function(tmp_path, batch):
    sparse = dict(sparse_blocks=(3, 6, 9), keep_ratios=(0.7, 0.49, 0.343))
    state = reference.random_state(embed_dims=64, depth=12, predictors=3)
    model = DynamicViT(embed_dims=64, num_heads=2, out_indices=11, final_norm=True, **sparse)
    initialised(model, {'model': state}, tmp_path)
    images = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        out = model.forward_sparse(images)
        _, kept, theirs = reference.tokens(state, images, depth=12, heads=2, **sparse)
    ours = out.feats[0].flatten(2).transpose(1, 2)
    for image in range(batch):
        found = out.decisions[-1].keep_mask[image].nonzero().squeeze(1)
        assert torch.equal(found, kept[image])
        difference = ours[image, found] - theirs[image]
        assert difference.abs().max() <= 1e-5 * theirs.abs().max()


def test_an_original_dynamic_vit_gets_our_names():
    state = reference.random_state(predictors=3, **TINY)
    done = convert(state, 'dynamic-vit')
    assert done.format == 'DynamicViT, original' and done.predictors == 3
    assert not done.dropped and set(done.parts) == {'head.weight', 'head.bias'}
    model = DynamicViT(
        embed_dims=32, num_heads=1, patch_size=8, img_size=64, out_indices=11, final_norm=True
    )
    assert set(done.state_dict) - set(done.parts) == {name for name, _ in model.named_parameters()}
    old = state['score_predictor.2.out_conv.4.bias']
    assert torch.equal(done.state_dict['predictors.2.out_proj.4.bias'], old)
    again = convert(done.state_dict, 'dynamic-vit')
    assert again.format == 'DynamicViT, mmdyn' and set(again.state_dict) == set(done.state_dict)


def test_arguments_are_read_from_the_shapes():
    done = convert(reference.random_state(predictors=0, **TINY), 'dynamic-vit')
    assert done.format == 'ViT, timm'
    assert done.arguments == dict(
        embed_dims=32, num_layers=12, num_heads=1, patch_size=8, img_size=64
    )
    deit = timm.create_model('deit_tiny_patch16_224').state_dict()
    wanted = dict(embed_dims=192, num_layers=12, num_heads=3)
    assert convert(deit, 'dynamic-vit').arguments == wanted


@pytest.mark.parametrize('patch_bias', [False, True])
def test_mmsegs_vit_keeps_its_function_under_timms_names(patch_bias):
    mmseg_vit = pytest.importorskip('mmseg.models.backbones.vit')
    dense = mmseg_vit.VisionTransformer(
        img_size=64,
        patch_size=8,
        embed_dims=32,
        num_layers=4,
        num_heads=2,
        patch_bias=patch_bias,
        final_norm=True,
        norm_cfg=dict(type='LN', eps=1e-6),
    )
    randomise(dense).eval()
    done = convert(dense.state_dict(), 'dynamic-vit')
    assert done.format == 'ViT, mmseg'
    assert done.arguments.get('patch_bias', True) == patch_bias
    model = timm_model(depth=4)
    model.load_state_dict({'patch_embed.proj.bias': torch.zeros(32), **done.state_dict})
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        ours = model.forward_features(images)[:, 1:]
        theirs = dense(images)[0].flatten(2).transpose(1, 2)
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_mmpretrains_vit_gets_timms_names():
    state = reference.random_state(predictors=0, **TINY)
    renames = {
        '.norm': '.ln',
        '.mlp.fc1.': '.ffn.layers.0.0.',
        '.mlp.fc2.': '.ffn.layers.1.',
        'blocks.': 'layers.',
        'patch_embed.proj.': 'patch_embed.projection.',
    }
    theirs = {}
    for key, value in state.items():
        for old, new in renames.items():
            key = key.replace(old, new)
        key = key.replace('norm.', 'ln1.') if key.startswith('norm.') else key
        theirs[f'backbone.{key}'] = value
    done = convert(theirs, 'dynamic-vit')
    assert done.format == 'ViT, mmpretrain'
    assert set(done.state_dict) == {f'backbone.{k}' for k in state if not k.startswith('head.')}
    assert all(torch.equal(v, state[k[len('backbone.') :]]) for k, v in done.state_dict.items())


@pytest.mark.parametrize(
    ('key', 'shape', 'said'),
    [
        ('dist_token', (1, 1, 32), 'distilled DeiT'),
        ('head_dist.weight', (10, 32), 'distilled DeiT'),
        ('reg_token', (1, 4, 32), 'register tokens'),
        ('norm_pre.weight', (32,), 'norm before the blocks'),
        ('blocks.0.ls1.gamma', (32,), 'layer scale'),
        ('blocks.0.attn.q_norm.weight', (16,), 'query and key norms'),
    ],
)
def test_other_tokens_are_refused_by_name(key, shape, said):
    state = reference.random_state(predictors=0, **TINY) | {key: torch.zeros(shape)}
    with pytest.raises(ValueError, match=f'{key}.*{said}'):
        convert(state, 'dynamic-vit')


def test_positions_of_no_square_are_told():
    state = reference.random_state(predictors=0, **TINY)
    state['pos_embed'] = torch.zeros(1, 1 + 4 * 5, 32)
    with pytest.raises(ValueError, match=r'20 locations, which is not square.*img_size'):
        convert(state, 'dynamic-vit')


def test_a_model_may_lack_what_ours_may_lack():
    model = timm_model(class_token=False, global_pool='avg', fc_norm=False, qkv_bias=False)
    arguments = convert(model.state_dict(), 'dynamic-vit').arguments
    assert arguments['with_cls_token'] is False and arguments['qkv_bias'] is False
    assert arguments['img_size'] == 64


@pytest.mark.parametrize('predictors', [0, 3])
def test_the_reference_is_timms_model_where_everything_is_kept(predictors):
    state = reference.random_state(predictors=predictors, **TINY)
    model = timm_model()
    dense = {k: v for k, v in state.items() if not k.startswith(('head.', 'score_predictor.'))}
    model.load_state_dict(dense)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        token, kept, ours = reference.tokens(
            state,
            images,
            depth=12,
            heads=2,
            sparse_blocks=(3, 6, 9)[:predictors],
            keep_ratios=(1.0, 1.0, 1.0),
        )
        theirs = model.forward_features(images)
    assert torch.equal(kept, torch.arange(64).expand(2, -1))
    assert (token - theirs[:, 0]).abs().max() <= 1e-5 * theirs.abs().max()
    assert (ours - theirs[:, 1:]).abs().max() <= 1e-5 * theirs.abs().max()


def test_in_the_reference_dropped_tokens_leave():
    """timm's blocks on the tokens that the reference keeps give its result."""
    state = reference.random_state(predictors=3, **TINY)
    model = timm_model()
    model.load_state_dict(state, strict=False)
    images = torch.randn(2, 3, 64, 64)
    kept = []
    with torch.no_grad():
        for count in (1, 2, 3):
            token, index, features = reference.tokens(
                state,
                images,
                depth=12,
                heads=2,
                sparse_blocks=(3, 6, 9)[:count],
                keep_ratios=(0.7, 0.49, 0.343)[:count],
            )
            kept.append(index)
        x = model._pos_embed(model.patch_embed(images))
        x = model.blocks[:3](x)
        places = torch.arange(64).expand(2, -1).contiguous()
        rest = (model.blocks[3:6], model.blocks[6:9], model.blocks[9:])
        for index, blocks in zip(kept, rest, strict=True):
            among = torch.searchsorted(places, index).unsqueeze(-1).expand(-1, -1, 32)
            x, places = blocks(torch.cat([x[:, :1], x[:, 1:].gather(1, among)], 1)), index
        theirs = model.norm(x)
    assert [index.shape[1] for index in kept] == [44, 31, 21]
    assert (token - theirs[:, 0]).abs().max() <= 1e-5 * theirs.abs().max()
    assert (features - theirs[:, 1:]).abs().max() <= 1e-5 * theirs.abs().max()
