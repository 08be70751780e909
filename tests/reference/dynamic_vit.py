"""The original DynamicViT (DeiT) at inference, on a state dict of its layout.

Top-k decisions for a batch of images of the position embedding's size; dropped tokens leave for
good. Written for clarity, not speed.
"""

import functools

import torch
import torch.nn.functional as F

from tests.reference import layers
from tests.reference.layers import RandomState, best, linear, mlp, scores

layer_norm = functools.partial(layers.layer_norm, eps=1e-6)


def attention(state, name, x, heads):
    """(B, N, C) -> (B, N, C)."""
    qkv = linear(state, f'{name}.qkv', x).unflatten(-1, (3, heads, -1))
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    weights = (query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1)).softmax(-1)
    return linear(state, f'{name}.proj', (weights @ value).transpose(1, 2).flatten(2))


def gather(x, index):
    """(B, N, ...) at (B, K) -> (B, K, ...)."""
    return torch.stack([one[chosen] for one, chosen in zip(x, index, strict=True)])


def tokens(state, images, *, depth, heads, sparse_blocks, keep_ratios):
    """Tokens after the last block and the final norm.

    Ratios are fractions of all N patches, not of those kept so far.

    Returns:
        The class token (B, C); the kept patches (B, K), as increasing row-major indices; and their
        features (B, K, C).
    """
    kernel, bias = state['patch_embed.proj.weight'], state['patch_embed.proj.bias']
    patches = F.conv2d(images, kernel, bias, stride=kernel.shape[-1]).flatten(2).transpose(1, 2)
    batch, count = patches.shape[:2]
    x = torch.cat([state['cls_token'].expand(batch, -1, -1), patches], 1) + state['pos_embed']
    kept = torch.arange(count).expand(batch, -1)
    for number in range(depth):
        name = f'blocks.{number}'
        if number in sparse_blocks:
            index = sparse_blocks.index(number)
            score = scores(state, f'score_predictor.{index}', x[:, 1:], eps=1e-5)
            keep = best(score, int(count * keep_ratios[index])).sort(1).values
            kept = kept.gather(1, keep)
            x = torch.cat([x[:, :1], gather(x[:, 1:], keep)], 1)
        x = x + attention(state, f'{name}.attn', layer_norm(state, f'{name}.norm1', x), heads)
        x = x + mlp(state, f'{name}.mlp', layer_norm(state, f'{name}.norm2', x))
    x = layer_norm(state, 'norm', x)
    return x[:, 0], kept, x[:, 1:]


def random_state(*, embed_dims, depth, predictors, patch=16, image=224, classes=10, seed=0):
    """A state dict of the original's layout with random weights.

    With ``predictors=0`` it is timm's ViT.
    """
    state = RandomState(seed)
    state['cls_token'] = state.normal(1, 1, embed_dims)
    state['pos_embed'] = state.normal(1, (image // patch) ** 2 + 1, embed_dims) * 0.5
    state.add_conv('patch_embed.proj', 3, embed_dims, patch)
    for number in range(depth):
        name = f'blocks.{number}'
        state.add_norm(f'{name}.norm1', embed_dims)
        state.add_linear(f'{name}.attn.qkv', embed_dims, 3 * embed_dims)
        state.add_linear(f'{name}.attn.proj', embed_dims, embed_dims)
        state.add_norm(f'{name}.norm2', embed_dims)
        state.add_linear(f'{name}.mlp.fc1', embed_dims, 4 * embed_dims)
        state.add_linear(f'{name}.mlp.fc2', 4 * embed_dims, embed_dims)
    for number in range(predictors):
        state.add_predictor(f'score_predictor.{number}', embed_dims)
    state.add_norm('norm', embed_dims)
    state.add_linear('head', embed_dims, classes)
    return dict(state)
