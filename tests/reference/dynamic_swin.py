"""What the original DynamicSwin computes at inference, on a state dict of its layout.

One image batch, top-k decisions, two streams that meet in every attention; written for
reading, not for speed. Sides must be multiples of 32 times the window's side over 4, so that
nothing is padded and every map is larger than a window (where it is not, the original drops
the shift and the hosts don't).
"""

import torch
import torch.nn.functional as F


def linear(state, name, x):
    return F.linear(x, state[f'{name}.weight'], state.get(f'{name}.bias'))


def layer_norm(state, name, x):
    weight, bias = state[f'{name}.weight'], state[f'{name}.bias']
    return F.layer_norm(x, weight.shape, weight, bias, eps=1e-5)


def mlp(state, name, x):
    return linear(state, f'{name}.fc2', F.gelu(linear(state, f'{name}.fc1', x)))


def scores(state, name, x):
    """(B, N) log-probability of keep."""
    x = F.gelu(linear(state, f'{name}.in_conv.1', layer_norm(state, f'{name}.in_conv.0', x)))
    local, rest = x.chunk(2, dim=-1)
    x = torch.cat([local, rest.mean(1, keepdim=True).expand_as(rest)], dim=-1)
    x = F.gelu(linear(state, f'{name}.out_conv.0', x))
    x = F.gelu(linear(state, f'{name}.out_conv.2', x))
    return linear(state, f'{name}.out_conv.4', x).log_softmax(-1)[..., 0]


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
                order = scores(state, f'layers.2.score_predictor.{number}', x).argsort(
                    1, descending=True
                )
                keep = order[:, : int(x.shape[1] * keep_ratios[number])]
            shift = window // 2 if block % 2 else 0
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


def random_state(*, embed_dims, depths, heads, window, predictors, classes=10, seed=0):
    """A state dict of the original's layout with random weights."""
    generator = torch.Generator().manual_seed(seed)
    state = {}

    def add_linear(name, inputs, outputs, bias=True):
        scale = inputs**-0.5
        state[f'{name}.weight'] = torch.randn(outputs, inputs, generator=generator) * scale
        if bias:
            state[f'{name}.bias'] = torch.randn(outputs, generator=generator) * 0.1

    def add_norm(name, channels):
        state[f'{name}.weight'] = 1 + 0.1 * torch.randn(channels, generator=generator)
        state[f'{name}.bias'] = 0.1 * torch.randn(channels, generator=generator)

    state['patch_embed.proj.weight'] = torch.randn(embed_dims, 3, 4, 4, generator=generator) / 7
    state['patch_embed.proj.bias'] = torch.randn(embed_dims, generator=generator) * 0.1
    add_norm('patch_embed.norm', embed_dims)
    for stage, depth in enumerate(depths):
        channels = embed_dims * 2**stage
        for block in range(depth):
            name = f'layers.{stage}.blocks.{block}'
            add_norm(f'{name}.norm1', channels)
            add_linear(f'{name}.attn.qkv', channels, 3 * channels)
            state[f'{name}.attn.relative_position_bias_table'] = torch.randn(
                (2 * window - 1) ** 2, heads[stage], generator=generator
            )
            state[f'{name}.attn.relative_position_index'] = relative_index(window)
            add_linear(f'{name}.attn.proj', channels, channels)
            add_norm(f'{name}.norm2', channels)
            add_linear(f'{name}.mlp.fc1', channels, 4 * channels)
            add_linear(f'{name}.mlp.fc2', 4 * channels, channels)
            if stage == 2:
                add_norm(f'{name}.fastmlp.fc1.0', channels)
                add_linear(f'{name}.fastmlp.fc1.1', channels, channels)
        if stage == 2:
            for number in range(predictors):
                name = f'layers.2.score_predictor.{number}'
                add_norm(f'{name}.in_conv.0', channels)
                add_linear(f'{name}.in_conv.1', channels, channels)
                add_linear(f'{name}.out_conv.0', channels, channels // 2)
                add_linear(f'{name}.out_conv.2', channels // 2, channels // 4)
                add_linear(f'{name}.out_conv.4', channels // 4, 2)
        if stage + 1 < len(depths):
            add_norm(f'layers.{stage}.downsample.norm', 4 * channels)
            add_linear(f'layers.{stage}.downsample.reduction', 4 * channels, 2 * channels, False)
    last = embed_dims * 2 ** (len(depths) - 1)
    add_norm('norm', last)
    add_linear('head', last, classes)
    return state
