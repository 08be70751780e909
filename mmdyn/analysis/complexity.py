"""Counting the multiply-adds that a model really executes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """FLOPs of softmax(QKᵀ)V on (B, heads, L, D), (B, heads, S, D) and (B, heads, S, E).

    Older versions of torch hand over tensors, newer ones their shapes.
    """
    (batch, heads, length, width), key_shape, value_shape = (
        tuple(getattr(part, 'shape', part)) for part in (query, key, value)
    )
    source, out_width = key_shape[-2], value_shape[-1]
    return 2 * batch * heads * length * source * (width + out_width)


# torch counts its attention kernels on a GPU, but gives the CPU's 0. torch 2.1 has no such kernel.
_CPU_ATTENTION = getattr(torch.ops.aten, '_scaled_dot_product_flash_attention_for_cpu', None)
_UNCOUNTED = {} if _CPU_ATTENTION is None else {_CPU_ATTENTION: _attention_flops}


def count_macs(run: Callable[[], Any]) -> int:
    """Multiply-adds of the matrix products, convolutions and attentions in ``run()``.

    Counts what is executed, so a sparse path counts for what it gathers. Half of
    what torch calls FLOPs (a multiply-add is two). Norms, activations, copies
    and additions are left out, as is usual in the field.

    Args:
        run: called once, without gradients.
    """
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=_UNCOUNTED) as counter:
        run()
    return counter.get_total_flops() // 2
