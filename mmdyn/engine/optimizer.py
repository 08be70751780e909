"""Learning rates per part: lower for pretrained parameters, higher for new ones."""

from __future__ import annotations

from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from torch import nn

from mmdyn.converters.additions import is_new
from mmdyn.registry import OPTIM_WRAPPER_CONSTRUCTORS

PARTS = ('pretrained', 'predictors', 'fast_path')


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class FinetuneOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's constructor with a learning-rate factor for each part of a sparse model.

    ``paramwise_cfg`` takes ``part_lr_mult``, a dict of factors for ``pretrained`` (everything a
    dense model has), ``predictors`` and ``fast_path``; the default is 1. They multiply with the
    usual keys, so rules such as "no weight decay on norms" still apply to every part. As a custom
    key (``'backbone'``) a factor would override those rules, since the longest match wins.

    Example:
        ``dict(norm_decay_mult=0.0, part_lr_mult=dict(pretrained=0.1))``

    Raises:
        ValueError: if a factor is negative or for an unknown part.
    """

    def _validate_cfg(self) -> None:
        super()._validate_cfg()
        for part, factor in self.paramwise_cfg.get('part_lr_mult', {}).items():
            if part not in PARTS or not factor >= 0:
                raise ValueError(
                    f'part_lr_mult takes non-negative factors for {PARTS}, got {part}={factor}'
                )

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build the optimizer and its wrapper for a model, wrapped or not."""
        wrapper = super().__call__(model)
        factors = self.paramwise_cfg.get('part_lr_mult', {})
        names = {id(p): name for name, p in model.named_parameters()}
        for group in wrapper.optimizer.param_groups:
            name = names[id(group['params'][0])]
            new = 'predictors' if 'predictors.' in name else 'fast_path'
            group['lr'] *= factors.get(new if is_new(name) else 'pretrained', 1.0)
        return wrapper
