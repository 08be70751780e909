"""Make a trained model fast on a CPU: the same function, for inference only.

:func:`prepare_for_inference` is the whole of it: norms are folded, parts of the hosts for which
there is an exact faster form give way to it, and layers get what can be made ready once.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmcv.cnn.bricks.transformer import FFN
from mmengine.logging import print_log
from mmengine.model import revert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mmdyn.compat import has_host
from mmdyn.convolutions.kernels import Choices, FastConv2d, can_be_fast
from mmdyn.convolutions.precision import Precision, choose_precision
from mmdyn.convolutions.products import (
    PackedLinear,
    PointwiseConv2d,
    can_pack,
    is_plain,
    is_plain_inference,
    is_pointwise,
)
from mmdyn.memory import keep_freed_memory
from mmdyn.models.backbones.window_attention import ShiftWindowMSA
from mmdyn.sparsity.compiling import fixed
from mmdyn.sparsity.routing import in_pieces

HOSTS_OF_SWIN = ('mmseg.models.backbones.swin', 'mmdet.models.backbones.swin')
"""Modules of the hosts whose ``ShiftWindowMSA`` computes what ours does; mmpretrain's does not."""

LINEAR_AND_GELU = ('pointwise_conv1', 'act')
"""A layer of ConvNeXt's blocks, and what is applied to its result."""


def prepare_for_inference(model: nn.Module, precision: str = 'float32') -> nn.Module:
    """Make a model of mmseg or mmdet, stock or ours, fast on a CPU, in place.

    In float32 it stays the same function, to about 1e-5 of the largest logit; nothing is trained or
    approximated:

    - BatchNorm is folded into the convolution before it;
    - a stock ``UPerHead`` computes upsampled maps' part of its fusion at their own size, and
      ``ShiftWindowMSA`` its windows without copies (as our own do);
    - 3x3 convolutions run by Winograd's algorithm where that is faster here: it is measured
      when a size is first met, and that call takes a few times as long;
    - weights of products are laid out once, a product applies the GELU that follows it, and MLPs
      run in pieces that stay in cache;
    - freed memory stays with the process, see :func:`mmdyn.memory.keep_freed_memory`.

    What was replaced is logged. Transformed kernels take four times the memory of those they stand
    for. On another device than a CPU, in another dtype than float32, traced or with a gradient
    asked for, products and 3x3 convolutions run as before; folded norms, the exact head and window
    attention stay. A norm is folded if it is registered right after its convolution, as in all of
    the hosts' models: leave a module alone that registers them so and applies them otherwise.

    Args:
        model: changed in place, set to evaluation; its weights must not change any more.
        precision: what values are rounded to before they are multiplied. ``'bfloat16'`` is for
            linear layers, 1x1 and 3x3 convolutions. ``'int8'`` rounds those of linear layers
            and 1x1 convolutions to int8, by the largest of each call, so that an image's result
            depends a little on the others in its batch; 3x3 convolutions use bfloat16 where the CPU
            has it. Predictors, norms, attention and everything between layers stay float32.

    Returns:
        ``model``. Setting it to training, or loading other weights, raises a ValueError.

    Raises:
        ValueError: if there is no such precision, the CPU or torch can't compute in it, or the
            model is prepared in another one.
    """
    chosen = choose_precision(precision)
    before = getattr(model, 'prepared_precision', None)
    if before == precision:
        return model
    if before is not None:
        raise ValueError(
            f'this {type(model).__name__} is prepared in {before} and can not be prepared in '
            f'{precision}: build it anew, load its checkpoint, then prepare it'
        )
    model.eval()  # which the hosts' SwinTransformer answers with None
    model.requires_grad_(False)
    # It would leave out the activation in timm's norm.
    if not any(type(module).__name__ == 'SyncBatchNormAct' for module in model.modules()):
        revert_sync_batchnorm(model)
    done: Counter[str] = Counter()
    fold_norms(model, done)
    choices = Choices(chosen.kernels)
    for module in list(model.modules()):
        use_exact_form(module, choices, chosen, done)
    use_fast_layers(model, choices, chosen, done)
    for module in model.modules():
        fuse_gelu(module, LINEAR_AND_GELU, done)
        # Not in every sequence: a predictor applies its layers one by one, by their weights.
        if type(module) is FFN:
            for layers in module.layers.modules():
                fuse_gelu(layers, [name for name, _ in layers.named_children()], done)
    keep_freed_memory()
    # On the instance: a stock model has no class of ours.
    model.train = functools.partial(_train, model)  # type: ignore[method-assign]
    for module in model.modules():
        module._register_load_state_dict_pre_hook(_refuse_weights)
    model.prepared_precision = precision  # type: ignore[assignment]
    listed = ', '.join(f'{count} {what}' for what, count in done.items()) or 'nothing to replace'
    print_log(f'{type(model).__name__} prepared for inference: {listed}', logger='current')
    return model


def _train(model: nn.Module, mode: bool = True) -> nn.Module:
    """Set a prepared model's mode, which can only be evaluation."""
    if mode:
        raise ValueError(
            f'{type(model).__name__} was prepared for inference and can not be trained: build it '
            'anew and load its checkpoint'
        )
    return type(model).train(model, False)


def _refuse_weights(*_: object) -> None:
    """Stop whoever loads weights into a prepared model, which would go on with the old ones."""
    raise ValueError(
        'this model was prepared for inference and can not load other weights: build it anew, load '
        'its checkpoint, then prepare it'
    )


def fold_norms(module: nn.Module, done: Counter[str]) -> None:
    """Fold each BatchNorm into the convolution that is registered right before it."""
    last: tuple[str, nn.Module] | None = None
    # A convolution that several norms share, as mmdet's SepBN heads have, is copied for each.
    for name, child in list(module.named_children()):
        if isinstance(child, _BatchNorm) and last is not None and _folds(module, last[1], child):
            setattr(module, last[0], fuse_conv_bn_eval(last[1], child))  # type: ignore[arg-type]
            setattr(module, name, nn.Identity())
            done['norms folded'] += 1
        fold_norms(child, done)
        last = (name, child)


def _folds(module: nn.Module, conv: nn.Module, norm: _BatchNorm) -> bool:
    """Whether two children of a module are a plain convolution and the norm applied after it."""
    if not isinstance(conv, nn.Conv2d) or not is_plain(conv, nn.Conv2d):
        return False
    # Some norms, as timm's, hold an activation too.
    if type(norm).forward is not _BatchNorm.forward:
        return False
    # One that normalises by each batch; one that only happens to be registered next.
    if norm.running_mean is None or norm.num_features != conv.out_channels:
        return False
    if not isinstance(module, ConvModule):
        return True
    order = [part for part in module.order if part != 'act' or module.with_activation]
    follows = order.index('norm') == order.index('conv') + 1
    return follows and not module.__dict__.get('efficient_conv_bn_eval_forward')


def use_exact_form(
    module: nn.Module, choices: Choices, precision: Precision, done: Counter[str]
) -> None:
    """Give a part of the hosts, or of ours, the form that computes the same for less."""
    if type(module) is FFN and not isinstance(module.layers, Pieces):
        module.layers = Pieces(precision.products, *module.layers)
        done['MLPs in pieces'] += 1
    for name, child in module.named_children():
        if type(child).__module__ in HOSTS_OF_SWIN and type(child).__name__ == 'ShiftWindowMSA':
            setattr(module, name, HostShiftWindowMSA(child))
            done['window attentions'] += 1
    if has_host('mmseg'):
        from mmdyn.models.heads.prepared import prepare_head

        if prepare_head(module, choices):
            done['fusions of maps split'] += 1


def use_fast_layers(
    module: nn.Module, choices: Choices, precision: Precision, done: Counter[str]
) -> None:
    """Replace convolutions and linear layers by those that are made ready once."""
    for name, child in list(module.named_children()):
        # Few products, and what they are rounded to would change which locations are kept.
        chosen = Precision() if name == 'predictors' else precision
        made: nn.Module | None = None
        if can_be_fast(child):
            made = FastConv2d(child, choices)  # type: ignore[arg-type]
        elif can_pack() and is_pointwise(child):
            made = PointwiseConv2d(child, chosen.products)  # type: ignore[arg-type]
        elif can_pack() and is_plain(child, nn.Linear):
            made = PackedLinear(child, chosen.products)
        if made is None:
            use_fast_layers(child, choices, chosen, done)
        else:
            setattr(module, name, made)
            done[f'{type(made).__name__}'] += 1


def fuse_gelu(module: nn.Module, names: Sequence[str], done: Counter[str]) -> None:
    """Let a packed linear layer apply the GELU that follows it among the named children."""
    for first, second in itertools.pairwise(names):
        linear, gelu = getattr(module, first, None), getattr(module, second, None)
        if isinstance(linear, PackedLinear) and type(gelu) is nn.GELU:
            if gelu.approximate == 'none':
                linear.gelu = True
                setattr(module, second, nn.Identity())
                done['GELUs fused'] += 1


class Pieces(nn.Sequential):
    """Location-wise layers, run on a part of the locations after the other.

    Args:
        dtype: what the layers multiply in: with bfloat16 they pass that on, too, if none but plain
            linear layers have parameters.
        layers: the layers.
    """

    def __init__(self, dtype: torch.dtype, *layers: nn.Module) -> None:
        super().__init__(*layers)
        learned = [module for module in self.modules() if list(module.parameters(recurse=False))]
        self.dtype = (
            dtype if all(is_plain(module, nn.Linear) for module in learned) else torch.float32
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.dtype == torch.bfloat16 and is_plain_inference(x, x):
            return in_pieces(lambda part: super(Pieces, self).forward(part.bfloat16()).float(), x)
        return in_pieces(super().forward, x)


class HostShiftWindowMSA(ShiftWindowMSA):
    """Stands in for the hosts' ``ShiftWindowMSA``, with its parameters.

    Args:
        attention: the host's.
    """

    def __init__(self, attention: Any) -> None:
        host = attention.w_msa
        super().__init__(
            host.embed_dims, host.num_heads, attention.window_size, attention.shift_size
        )
        own = self.w_msa
        own.qkv, own.proj, own.scale = host.qkv, host.proj, host.scale
        own.relative_position_bias_table = host.relative_position_bias_table
        own.relative_position_index = host.relative_position_index
        self.train(attention.training)

    def forward(self, query: Tensor, hw_shape: tuple[int, int]) -> Tensor:  # type: ignore[override]
        layout, masks = self.layout(query, fixed(*hw_shape), None)  # type: ignore[arg-type]
        return super().forward(query, layout, masks)
