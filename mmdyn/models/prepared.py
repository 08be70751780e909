"""Make a trained model faster on a CPU, with the same outputs, for inference only.

:func:`prepare_for_inference` folds norms, replaces host modules that have an exact faster form, and
precomputes what layers need.
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
"""Host modules whose ``ShiftWindowMSA`` computes the same as mmdyn's; mmpretrain's does not."""

LINEAR_AND_GELU = ('pointwise_conv1', 'act')
"""Names of a Linear layer and the activation after it in ConvNeXt's blocks."""


def prepare_for_inference(model: nn.Module, precision: str = 'float32') -> nn.Module:
    """Make a model of mmseg or mmdet, stock or mmdyn's, faster on a CPU, in place.

    In float32 outputs agree to about 1e-5 of the largest logit; nothing is trained or approximated:

    - BatchNorm is folded into the convolution before it;
    - a stock ``UPerHead`` computes the fusion of upsampled maps at their own size, and
      ``ShiftWindowMSA`` its windows without copies (as our modules do);
    - 3x3 convolutions use Winograd's algorithm where it is faster on this machine: measured on the
      first call at each size, which takes a few times as long;
    - weights of matrix products are packed once, GELU is fused into the product before it, and MLPs
      run in chunks that fit the cache;
    - freed memory stays with the process, see :func:`mmdyn.memory.keep_freed_memory`.

    Replacements are logged. Transformed 3x3 kernels take four times the memory of the originals. On
    other devices and dtypes, when traced or when gradients are needed, products and 3x3
    convolutions run as before; folded norms, the exact head and window attention stay. A norm is
    folded if it is registered right after its convolution, as in all models of the hosts: don't
    prepare a module that registers them so but applies them in another order.

    Args:
        model: changed in place and set to evaluation; its weights must not change afterwards.
        precision: of matrix products. ``'bfloat16'`` applies to linear layers, 1x1 and 3x3
            convolutions. ``'int8'`` quantises linear layers and 1x1 convolutions dynamically, by
            the largest value in each call, so an image's result depends slightly on the others in
            its batch; 3x3 convolutions use bfloat16 where the CPU supports it. Predictors, norms,
            attention and everything between layers stay float32.

    Returns:
        ``model``. Setting it to training, or loading other weights, raises a ValueError.

    Raises:
        ValueError: if the precision is unknown or not supported by the CPU or torch, or if the
            model is already prepared in another one.
    """
    chosen = choose_precision(precision)
    before = getattr(model, 'prepared_precision', None)
    if before == precision:
        return model
    if before is not None:
        raise ValueError(
            f'this {type(model).__name__} is prepared in {before} and can not be prepared in '
            f'{precision}: build a new one, load its checkpoint, then prepare it'
        )
    model.eval()  # not chained: SwinTransformer.eval() of the hosts returns None
    model.requires_grad_(False)
    # revert_sync_batchnorm would drop the activation in timm's SyncBatchNormAct.
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
        # Not in every Sequential: a predictor applies its layers by their weights.
        if type(module) is FFN:
            for layers in module.layers.modules():
                fuse_gelu(layers, [name for name, _ in layers.named_children()], done)
    keep_freed_memory()
    # On the instance, since a stock model has no mmdyn class.
    model.train = functools.partial(_train, model)  # type: ignore[method-assign]
    for module in model.modules():
        module._register_load_state_dict_pre_hook(_refuse_weights)
    model.prepared_precision = precision  # type: ignore[assignment]
    listed = ', '.join(f'{count} {what}' for what, count in done.items()) or 'nothing to replace'
    print_log(f'{type(model).__name__} prepared for inference: {listed}', logger='current')
    return model


def _train(model: nn.Module, mode: bool = True) -> nn.Module:
    """``train`` of a prepared model, which allows evaluation only."""
    if mode:
        raise ValueError(
            f'{type(model).__name__} was prepared for inference and can not be trained: build a '
            'new one and load its checkpoint'
        )
    return type(model).train(model, False)


def _refuse_weights(*_: object) -> None:
    """Refuse to load weights, which the packed copies would not follow."""
    raise ValueError(
        'this model was prepared for inference and can not load other weights: build a new one, '
        'load its checkpoint, then prepare it'
    )


def fold_norms(module: nn.Module, done: Counter[str]) -> None:
    """Fold each BatchNorm into the convolution registered right before it."""
    last: tuple[str, nn.Module] | None = None
    # A convolution shared by several norms, as in mmdet's SepBN heads, is copied for each.
    for name, child in list(module.named_children()):
        if isinstance(child, _BatchNorm) and last is not None and _folds(module, last[1], child):
            setattr(module, last[0], fuse_conv_bn_eval(last[1], child))  # type: ignore[arg-type]
            setattr(module, name, nn.Identity())
            done['norms folded'] += 1
        fold_norms(child, done)
        last = (name, child)


def _folds(module: nn.Module, conv: nn.Module, norm: _BatchNorm) -> bool:
    """Whether two children of a module are a plain convolution and the norm applied to it."""
    if not isinstance(conv, nn.Conv2d) or not is_plain(conv, nn.Conv2d):
        return False
    # Some norms, such as timm's, include an activation.
    if type(norm).forward is not _BatchNorm.forward:
        return False
    # No running statistics, or not the norm of this convolution.
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
    """Replace children of a module by exact faster forms."""
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
    """Replace convolutions and linear layers by packed ones."""
    for name, child in list(module.named_children()):
        # Predictors stay float32: rounding would change the selection, and they cost little.
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
    """Fuse GELU into the packed linear layer before it, among the named children."""
    for first, second in itertools.pairwise(names):
        linear, gelu = getattr(module, first, None), getattr(module, second, None)
        if isinstance(linear, PackedLinear) and type(gelu) is nn.GELU:
            if gelu.approximate == 'none':
                linear.gelu = True
                setattr(module, second, nn.Identity())
                done['GELUs fused'] += 1


class Pieces(nn.Sequential):
    """Pointwise layers that run in chunks on CPU.

    Args:
        dtype: of the products. With bfloat16 also of the values between layers, if plain linear
            layers are the only ones with parameters.
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
    """Replaces the hosts' ``ShiftWindowMSA``, sharing its parameters.

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
