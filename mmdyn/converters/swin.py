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


_BLOCK_NAMES = (
    ('layers.', 'stages.'),
    ('.attn.', '.attn.w_msa.'),
    ('.mlp.fc1.', '.ffn.layers.0.0.'),
    ('.mlp.fc2.', '.ffn.layers.1.'),
    # The original DynamicSwin's additions.
    ('.fastmlp.fc1.0.', '.fast_path.norm.'),
    ('.fastmlp.fc1.1.', '.fast_path.proj.'),
    ('patch_embed.proj.', 'patch_embed.projection.'),
)
_PREDICTOR_NAMES = (
    ('in_conv.0.', 'norm.'),
    ('in_conv.1.', 'in_proj.0.'),
    ('out_conv.', 'out_proj.'),
)


def microsoft_to_openmmlab(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a Microsoft Swin's or an original DynamicSwin's state dict to our names.

    The dense part gets mmseg's and mmdet's names. The classifier is left out, and so
    are the buffers that follow from the window's size; the norm before the
    classifier becomes the last stage's output norm.

    Args:
        state: keys such as ``layers.0.blocks.1.mlp.fc1.weight``.

    Returns:
        Keys such as ``stages.0.blocks.1.ffn.layers.0.0.weight``.
    """
    stages = [int(key.split('.')[1]) for key in state if key.startswith('layers.')]
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        if key.startswith('head.') or key.endswith(('.attn_mask', '.relative_position_index')):
            continue
        if '.downsample.' in key:
            value = merge_order(value)
        out[_our_name(key, max(stages, default=0))] = value
    return out


def _our_name(key: str, last_stage: int) -> str:
    if key.startswith('norm.'):
        return key.replace('norm.', f'norm{last_stage}.', 1)
    before, found, predictor = key.partition('.score_predictor.')
    key, renames = (
        (f'predictors.{predictor}', _PREDICTOR_NAMES) if found else (before, _BLOCK_NAMES)
    )
    for old, new in renames:
        key = key.replace(old, new, 1)
    return key
