"""The original DynamicViT on LV-ViT at inference, on a state dict of its layout.

Top-k decisions for images of the position embedding's size; dropped tokens leave for good.
"""

import torch
import torch.nn.functional as F

from tests.reference.dynamic_vit import attention, gather
from tests.reference.layers import RandomState, best, layer_norm, linear, mlp, scores

EPS = 1e-5


def patches(state, images):
    """(B, 3, h, w) -> (B, N, C)."""
    x = images
    for number in (1, 2, 3):
        name = f'patch_embed.bn{number}'
        stride, padding = (2, 3) if number == 1 else (1, 1)
        x = F.conv2d(x, state[f'patch_embed.conv{number}.weight'], None, stride, padding)
        mean, variance = state[f'{name}.running_mean'], state[f'{name}.running_var']
        x = F.batch_norm(x, mean, variance, state[f'{name}.weight'], state[f'{name}.bias'])
        x = x.relu()
    kernel, bias = state['patch_embed.proj.weight'], state['patch_embed.proj.bias']
    return F.conv2d(x, kernel, bias, stride=kernel.shape[-1]).flatten(2).transpose(1, 2)


def logits(state, images, *, depth, heads, sparse_blocks, keep_ratios):
    """(B, K): of the class token, plus half of the highest of the kept patches."""
    x = patches(state, images)
    count = x.shape[1]
    x = torch.cat([state['cls_token'].expand(len(x), -1, -1), x], 1) + state['pos_embed']
    for number in range(depth):
        name = f'blocks.{number}'
        if number in sparse_blocks:
            index = sparse_blocks.index(number)
            score = scores(state, f'score_predictor.{index}', x[:, 1:], eps=EPS)
            keep = best(score, int(count * keep_ratios[index]))
            x = torch.cat([x[:, :1], gather(x[:, 1:], keep)], 1)
        attended = attention(
            state, f'{name}.attn', layer_norm(state, f'{name}.norm1', x, EPS), heads
        )
        x = x + attended / 2
        x = x + mlp(state, f'{name}.mlp', layer_norm(state, f'{name}.norm2', x, EPS)) / 2
    x = layer_norm(state, 'norm', x, EPS)
    return linear(state, 'head', x[:, 0]) + 0.5 * linear(state, 'aux_head', x[:, 1:]).amax(1)


def random_state(*, embed_dims, depth, predictors, image=224, classes=10, seed=0):
    """A state dict of the original's layout with random weights."""
    state, width = RandomState(seed), 64
    for number, (inputs, side) in enumerate(((3, 7), (width, 3), (width, 3)), start=1):
        state.add_conv(f'patch_embed.conv{number}', inputs, width, side)
        del state[f'patch_embed.conv{number}.bias']
        state.add_norm(f'patch_embed.bn{number}', width)
        state[f'patch_embed.bn{number}.running_mean'] = 0.1 * state.normal(width)
        state[f'patch_embed.bn{number}.running_var'] = 1 + 0.1 * state.normal(width).abs()
        state[f'patch_embed.bn{number}.num_batches_tracked'] = torch.tensor(7)
    state.add_conv('patch_embed.proj', width, embed_dims, 8)
    state['cls_token'] = state.normal(1, 1, embed_dims)
    state['pos_embed'] = state.normal(1, (image // 16) ** 2 + 1, embed_dims) * 0.5
    for number in range(depth):
        name = f'blocks.{number}'
        state.add_norm(f'{name}.norm1', embed_dims)
        state.add_linear(f'{name}.attn.qkv', embed_dims, 3 * embed_dims, bias=False)
        state.add_linear(f'{name}.attn.proj', embed_dims, embed_dims)
        state.add_norm(f'{name}.norm2', embed_dims)
        state.add_linear(f'{name}.mlp.fc1', embed_dims, 3 * embed_dims)
        state.add_linear(f'{name}.mlp.fc2', 3 * embed_dims, embed_dims)
    for number in range(predictors):
        state.add_predictor(f'score_predictor.{number}', embed_dims)
    state.add_norm('norm', embed_dims)
    state.add_linear('head', embed_dims, classes)
    state.add_linear('aux_head', embed_dims, classes)
    return dict(state)
