"""Layers of the original models on a state dict, and random state dicts."""

import torch
import torch.nn.functional as F


def linear(state, name, x):
    """A Linear on the last axis, possibly stored as a 1x1 convolution."""
    return F.linear(x, state[f'{name}.weight'].flatten(1), state.get(f'{name}.bias'))


def layer_norm(state, name, x, eps):
    weight, bias = state[f'{name}.weight'], state[f'{name}.bias']
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def mlp(state, name, x):
    return linear(state, f'{name}.fc2', F.gelu(linear(state, f'{name}.fc1', x)))


def scores(state, name, x, eps):
    """(B, N, C) -> (B, N) log-probability of keep."""
    x = F.gelu(linear(state, f'{name}.in_conv.1', layer_norm(state, f'{name}.in_conv.0', x, eps)))
    local, rest = x.chunk(2, dim=-1)
    x = torch.cat([local, rest.mean(1, keepdim=True).expand_as(rest)], dim=-1)
    x = F.gelu(linear(state, f'{name}.out_conv.0', x))
    x = F.gelu(linear(state, f'{name}.out_conv.2', x))
    return linear(state, f'{name}.out_conv.4', x).log_softmax(-1)[..., 0]


def best(score, count):
    """(B, count): locations with the highest scores, in descending order."""
    return score.argsort(1, descending=True)[:, :count]


class RandomState(dict):
    """A state dict to which layers with random weights are added."""

    def __init__(self, seed):
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape):
        return torch.randn(*shape, generator=self.generator)

    def add_linear(self, name, inputs, outputs, bias=True, kernel=()):
        """``kernel``: (1, 1) for a convolution."""
        self[f'{name}.weight'] = self.normal(outputs, inputs, *kernel) * inputs**-0.5
        if bias:
            self[f'{name}.bias'] = self.normal(outputs) * 0.1

    def add_conv(self, name, inputs, outputs, side):
        """``inputs``: channels per group."""
        scale = (inputs * side**2) ** -0.5
        self[f'{name}.weight'] = self.normal(outputs, inputs, side, side) * scale
        self[f'{name}.bias'] = self.normal(outputs) * 0.1

    def add_norm(self, name, channels):
        self[f'{name}.weight'] = 1 + 0.1 * self.normal(channels)
        self[f'{name}.bias'] = 0.1 * self.normal(channels)

    def add_predictor(self, name, channels, kernel=()):
        self.add_norm(f'{name}.in_conv.0', channels)
        self.add_linear(f'{name}.in_conv.1', channels, channels, kernel=kernel)
        self.add_linear(f'{name}.out_conv.0', channels, channels // 2, kernel=kernel)
        self.add_linear(f'{name}.out_conv.2', channels // 2, channels // 4, kernel=kernel)
        self.add_linear(f'{name}.out_conv.4', channels // 4, 2, kernel=kernel)
