"""The original DynamicConvNeXt at inference, on a state dict of its layout.

Top-k decisions for a batch of images whose sides are multiples of 32; channels-last maps. Written
for clarity, not speed.
"""

import functools

import torch
import torch.nn.functional as F

from tests.reference import layers
from tests.reference.layers import RandomState, best, linear

layer_norm = functools.partial(layers.layer_norm, eps=1e-6)
scores = functools.partial(layers.scores, eps=1e-6)


def conv(state, name, x, **kwargs):
    """(B, H, W, C) -> (B, H', W', C')."""
    weight, bias = state[f'{name}.weight'], state[f'{name}.bias']
    return F.conv2d(x.permute(0, 3, 1, 2), weight, bias, **kwargs).permute(0, 2, 3, 1)


def downsample(state, stage, x):
    """The stem is convolution, then norm; the others norm, then convolution."""
    name = f'downsample_layers.{stage}'
    if stage == 0:
        return layer_norm(state, f'{name}.1', conv(state, f'{name}.0', x, stride=4))
    return conv(state, f'{name}.1', layer_norm(state, f'{name}.0', x), stride=2)


def block(state, name, x, kept):
    """Update a map.

    ``kept`` (B, H, W) bool marks the slow path; None = all.
    """
    mixed = conv(state, f'{name}.dwconv', x, padding=3, groups=x.shape[-1])
    hidden = F.gelu(linear(state, f'{name}.pwconv1', layer_norm(state, f'{name}.norm', mixed)))
    slow = x + state[f'{name}.gamma'] * linear(state, f'{name}.pwconv2', hidden)
    if kept is None:
        return slow
    update = linear(state, f'{name}.fast_path.1', layer_norm(state, f'{name}.fast_path.0', mixed))
    return torch.where(kept.unsqueeze(-1), slow, x + state[f'{name}.fast_path_gamma'] * update)


def last_map(state, images, **kwargs):
    """(B, N, C) of the last stage after the final norm, applied to each location."""
    return layer_norm(state, 'norm', last_features(state, images, **kwargs))


def logits(state, images, **kwargs):
    """(B, K), of the map's mean after the final norm."""
    pooled = layer_norm(state, 'norm', last_features(state, images, **kwargs).mean(1))
    return linear(state, 'head', pooled)


def last_features(state, images, *, depths, sparse_blocks, keep_ratios):
    """(B, N, C) of the last stage."""
    x = images.permute(0, 2, 3, 1)
    for stage, depth in enumerate(depths):
        x = downsample(state, stage, x)
        kept = None
        for number in range(depth):
            if stage == 2 and number in sparse_blocks:
                index = sparse_blocks.index(number)
                tokens = x.flatten(1, 2)
                score = scores(state, f'score_predictor.{index}', tokens)
                keep = best(score, int(tokens.shape[1] * keep_ratios[index]))
                kept = torch.zeros_like(score).scatter(1, keep, 1.0).bool().view(x.shape[:3])
            x = block(state, f'stages.{stage}.{number}', x, kept)
    return x.flatten(1, 2)


def random_state(*, embed_dims, depths, predictors, classes=10, seed=0):
    """A state dict of the original's layout with random weights.

    With ``predictors=0`` it is FAIR's ConvNeXt.
    """
    state = RandomState(seed)
    channels = 3
    for stage, depth in enumerate(depths):
        inputs, channels = channels, embed_dims * 2**stage
        if stage == 0:
            state.add_conv('downsample_layers.0.0', inputs, channels, 4)
            state.add_norm('downsample_layers.0.1', channels)
        else:
            state.add_norm(f'downsample_layers.{stage}.0', inputs)
            state.add_conv(f'downsample_layers.{stage}.1', inputs, channels, 2)
        for number in range(depth):
            name = f'stages.{stage}.{number}'
            state.add_conv(f'{name}.dwconv', 1, channels, 7)
            state.add_norm(f'{name}.norm', channels)
            state.add_linear(f'{name}.pwconv1', channels, 4 * channels)
            state.add_linear(f'{name}.pwconv2', 4 * channels, channels)
            state[f'{name}.gamma'] = 0.5 + 0.1 * state.normal(channels)
            if stage == 2 and predictors:
                state.add_norm(f'{name}.fast_path.0', channels)
                state.add_linear(f'{name}.fast_path.1', channels, channels)
                state[f'{name}.fast_path_gamma'] = 0.5 + 0.1 * state.normal(channels)
    for number in range(predictors):
        state.add_predictor(f'score_predictor.{number}', 4 * embed_dims, kernel=(1, 1))
    state.add_norm('norm', channels)
    state.add_linear('head', channels, classes)
    return dict(state)
