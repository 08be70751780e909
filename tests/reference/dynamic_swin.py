"""The original DynamicSwin at inference, on a state dict of its layout.

One batch of images, top-k decisions, two streams that meet in every attention. Written for clarity,
not speed. Sides must be multiples of 32 times the window's side over 4, so that nothing is padded
and every map is larger than a window (else the original drops the shift, unlike the hosts).
"""

import functools

import torch
import torch.nn.functional as F

from tests.reference import layers
from tests.reference.layers import RandomState, best, linear, mlp

layer_norm = functools.partial(layers.layer_norm, eps=1e-5)
scores = functools.partial(layers.scores, eps=1e-5)


def relative_index(window):
    """(window², window²) rows of the bias table."""
    axis = torch.arange(window)
    rows, columns = (grid.flatten() for grid in torch.meshgrid(axis, axis, indexing='ij'))
    down = rows[:, None] - rows[None, :] + window - 1
    across = columns[:, None] - columns[None, :] + window - 1
    return down * (2 * window - 1) + across


def windows_of(x, window):
    """(B, H, W, C) -> (B · windows, window², C)."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // window, window, width // window, window, channels)
    return x.transpose(2, 3).reshape(-1, window * window, channels)


def map_of(x, window, height, width):
    """The inverse of :func:`windows_of`."""
    x = x.view(-1, height // window, width // window, window, window, x.shape[-1])
    return x.transpose(2, 3).reshape(-1, height, width, x.shape[-1])


def attention(state, name, x, hw, heads, window, shift):
    """(B, N, C) -> (B, N, C), within windows shifted by ``shift``."""
    batch, _, channels = x.shape
    height, width = hw
    x = x.view(batch, height, width, channels).roll((-shift, -shift), (1, 2))
    regions = torch.zeros(1, height, width, 1)
    cuts = (slice(0, -window), slice(-window, -shift), slice(-shift, None)) if shift else ()
    for number, (rows, columns) in enumerate((r, c) for r in cuts for c in cuts):
        regions[:, rows, columns] = number
    regions = windows_of(regions, window).squeeze(-1)
    apart = regions[:, None, :] != regions[:, :, None]
    mask = torch.zeros(apart.shape).masked_fill(apart, -100.0).repeat(batch, 1, 1)

    tokens = windows_of(x, window)
    qkv = linear(state, f'{name}.qkv', tokens).view(*tokens.shape[:2], 3, heads, -1)
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    table = state[f'{name}.relative_position_bias_table']
    bias = table[relative_index(window)].permute(2, 0, 1)
    logits = query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1) + bias + mask[:, None]
    out = (logits.softmax(-1) @ value).transpose(1, 2).flatten(2)
    out = map_of(linear(state, f'{name}.proj', out), window, height, width)
    return out.roll((shift, shift), (1, 2)).flatten(1, 2)


def downsample(state, name, x, hw):
    x = x.unflatten(1, hw)
    corners = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
    x = layer_norm(state, f'{name}.norm', torch.cat(corners, -1).flatten(1, 2))
    return linear(state, f'{name}.reduction', x), (hw[0] // 2, hw[1] // 2)


def last_map(state, images, *, depths, heads, window, sparse_blocks, keep_ratios):
    """(B, N, C) of the last stage after the final norm."""
    kernel, bias = state['patch_embed.proj.weight'], state['patch_embed.proj.bias']
    x = F.conv2d(images, kernel, bias, stride=kernel.shape[-1])
    hw = tuple(x.shape[-2:])
    x = layer_norm(state, 'patch_embed.norm', x.flatten(2).transpose(1, 2))
    for stage, depth in enumerate(depths):
        keep = None
        for block in range(depth):
            name = f'layers.{stage}.blocks.{block}'
            if stage == 2 and block in sparse_blocks:
                number = sparse_blocks.index(block)
                score = scores(state, f'layers.2.score_predictor.{number}', x)
                keep = best(score, int(x.shape[1] * keep_ratios[number]))
            shift = window // 2 if block % 2 and min(hw) > window else 0
            attended = attention(
                state, f'{name}.attn', layer_norm(state, f'{name}.norm1', x), hw,
                heads[stage], window, shift,
            )  # fmt: skip
            x = x + attended
            slow = x + mlp(state, f'{name}.mlp', layer_norm(state, f'{name}.norm2', x))
            if keep is None:
                x = slow
            else:
                fast = x + linear(
                    state, f'{name}.fastmlp.fc1.1', layer_norm(state, f'{name}.fastmlp.fc1.0', x)
                )
                kept = torch.zeros(x.shape[:2], dtype=torch.bool).scatter(1, keep, True)
                x = torch.where(kept.unsqueeze(-1), slow, fast)
        if stage + 1 < len(depths):
            x, hw = downsample(state, f'layers.{stage}.downsample', x, hw)
    return layer_norm(state, 'norm', x)


def logits(state, images, **kwargs):
    """(B, K), of the mean of the last map."""
    return linear(state, 'head', last_map(state, images, **kwargs).mean(1))


def random_state(*, embed_dims, depths, heads, window, predictors, classes=10, seed=0):
    """A state dict of the original's layout with random weights.

    With ``predictors=0`` it is Microsoft's Swin.
    """
    state = RandomState(seed)
    state.add_conv('patch_embed.proj', 3, embed_dims, 4)
    state.add_norm('patch_embed.norm', embed_dims)
    for stage, depth in enumerate(depths):
        channels = embed_dims * 2**stage
        for block in range(depth):
            name = f'layers.{stage}.blocks.{block}'
            state.add_norm(f'{name}.norm1', channels)
            state.add_linear(f'{name}.attn.qkv', channels, 3 * channels)
            state[f'{name}.attn.relative_position_bias_table'] = state.normal(
                (2 * window - 1) ** 2, heads[stage]
            )
            state[f'{name}.attn.relative_position_index'] = relative_index(window)
            state.add_linear(f'{name}.attn.proj', channels, channels)
            state.add_norm(f'{name}.norm2', channels)
            state.add_linear(f'{name}.mlp.fc1', channels, 4 * channels)
            state.add_linear(f'{name}.mlp.fc2', 4 * channels, channels)
            if stage == 2 and predictors:
                state.add_norm(f'{name}.fastmlp.fc1.0', channels)
                state.add_linear(f'{name}.fastmlp.fc1.1', channels, channels)
        if stage == 2:
            for number in range(predictors):
                state.add_predictor(f'layers.2.score_predictor.{number}', channels)
        if stage + 1 < len(depths):
            name = f'layers.{stage}.downsample'
            state.add_norm(f'{name}.norm', 4 * channels)
            state.add_linear(f'{name}.reduction', 4 * channels, 2 * channels, bias=False)
    last = embed_dims * 2 ** (len(depths) - 1)
    state.add_norm('norm', last)
    state.add_linear('head', last, classes)
    return dict(state)
