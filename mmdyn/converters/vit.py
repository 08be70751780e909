"""Key maps of plain ViT checkpoints: pure functions on state dicts."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

_BLOCK_NAMES = (
    ('layers.', 'blocks.'),
    ('.ln1.', '.norm1.'),
    ('.ln2.', '.norm2.'),
    # torch's attention module, and mmcv's wrapper around it.
    ('.attn.attn.in_proj_', '.attn.qkv.'),
    ('.attn.attn.out_proj.', '.attn.proj.'),
    ('.ffn.layers.0.0.', '.mlp.fc1.'),
    ('.ffn.layers.1.', '.mlp.fc2.'),
)
_OTHER_NAMES = (('ln1.', 'norm.'), ('patch_embed.projection.', 'patch_embed.proj.'))


def openmmlab_to_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the state dict of mmseg's ``VisionTransformer`` to timm's names, which are ours.

    Args:
        state: keys such as ``layers.0.attn.attn.in_proj_weight``; timm's names stay.

    Returns:
        Keys such as ``blocks.0.attn.qkv.weight``.
    """
    return {_timm_name(key): value for key, value in state.items()}


def _timm_name(key: str) -> str:
    for old, new in _BLOCK_NAMES if key.startswith('layers.') else _OTHER_NAMES:
        key = key.replace(old, new, 1)
    return key
