"""Key maps of Swin checkpoints: pure functions on state dicts."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def merge_order(weight: Tensor) -> Tensor:
    """Reorder the channels that patch merging concatenates, from Microsoft's to OpenMMLab's.

    Microsoft stacks the four patches of a merge as whole channel groups, by
    columns first; OpenMMLab unfolds them, channel by channel, by rows first.

    Args:
        weight: (..., 4C), a merge's norm or reduction weight.
    """
    groups = weight.unflatten(-1, (4, weight.shape[-1] // 4))
    return groups[..., [0, 2, 1, 3], :].transpose(-1, -2).flatten(-2)


def microsoft_to_openmmlab(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a Microsoft Swin state dict to mmseg's and mmdet's names.

    The classifier and its norm are left out, and so are the buffers that follow
    from the window's size.

    Args:
        state: keys such as ``layers.0.blocks.1.mlp.fc1.weight``.

    Returns:
        Keys such as ``stages.0.blocks.1.ffn.layers.0.0.weight``.
    """
    renames = (
        ('layers.', 'stages.'),
        ('.attn.', '.attn.w_msa.'),
        ('.mlp.fc1.', '.ffn.layers.0.0.'),
        ('.mlp.fc2.', '.ffn.layers.1.'),
        ('patch_embed.proj.', 'patch_embed.projection.'),
    )
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        if key.startswith(('head.', 'norm.')) or key.endswith(
            ('.attn_mask', '.relative_position_index')
        ):
            continue
        if '.downsample.' in key:
            value = merge_order(value)
        for old, new in renames:
            key = key.replace(old, new, 1)
        out[key] = value
    return out
