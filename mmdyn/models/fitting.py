"""Fits fast paths to slow ones by least squares, before fine-tuning."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from mmengine.dist import all_reduce
from torch import Tensor, nn

from mmdyn.models.backbones.base import StagedBackbone
from mmdyn.sparsity import TopKPolicy

RIDGE = 1e-4
"""Of the regression, relative to the mean square of its inputs."""


class _Regression:
    """Normal equations of a linear layer with bias, for inputs (N, C) and targets (N, C)."""

    def __init__(self, channels: int, like: Tensor) -> None:
        settings = dict(dtype=torch.float64, device=like.device)
        self.inputs = torch.zeros(channels + 1, channels + 1, **settings)
        self.products = torch.zeros(channels + 1, channels, **settings)
        self.targets = torch.zeros((), **settings)
        self.sums = torch.zeros(channels, **settings)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add pairs of rows."""
        x, y = x.double(), y.double()
        x = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
        self.inputs += x.T @ x
        self.products += x.T @ y
        self.targets += y.square().sum()
        self.sums += y.sum(dim=0)

    def solve(self) -> tuple[Tensor, Tensor]:
        """(C + 1, C) weights with the bias last, and the share of the variance they explain.

        The inputs of all ranks count.
        """
        for one in (self.inputs, self.products, self.targets, self.sums):
            all_reduce(one)
        ridge = RIDGE * self.inputs.diagonal().mean()
        weights = torch.linalg.solve(
            self.inputs + ridge * torch.eye(len(self.inputs)).to(self.inputs), self.products
        )
        left = self.targets - 2 * (weights * self.products).sum()
        left = left + (weights * (self.inputs @ weights)).sum()
        variance = self.targets - self.sums.square().sum() / self.inputs[-1, -1]
        return weights, 1 - left / variance.clamp(min=1e-30)


@torch.no_grad()
def fit_fast_paths(backbone: StagedBackbone, batches: Iterable[Tensor]) -> list[float]:
    """Set every fast path to the linear map that is closest to its slow path.

    A fast path starts at random, which destroys what a trained backbone computes wherever it is
    taken; a fine-tuning then spends its iterations on recovery. Here each is fitted by ridge
    regression on the features of the dense backbone.

    Args:
        backbone: a DynamicSwin or DynamicConvNeXt with trained weights.
        batches: normalised images (B, 3, h, w), at least one batch; padding counts as image.

    Returns:
        For each fast path the share of the variance of the slow updates that it explains, on these
        images: too high if there are few.

    Raises:
        TypeError: if the backbone has no stages.
        ValueError: if there are no batches.
    """
    if not isinstance(backbone, StagedBackbone):
        raise TypeError(
            f'fast paths are fitted in DynamicSwin and DynamicConvNeXt, got '
            f'{type(backbone).__name__}'
        )
    blocks = [
        block for block in backbone.blocks_of(backbone.sparse_stage) if block.fast_path is not None
    ]
    regressions: dict[nn.Module, _Regression] = {}
    training, ratios = backbone.training, backbone.keep_ratios
    backbone.eval()
    backbone.keep_everything()
    try:
        with _watched(blocks, regressions):
            for images in batches:
                backbone.forward_sparse(images, policy=TopKPolicy())
    finally:
        backbone.set_keep_ratios(ratios)
        backbone.train(training)
    if not regressions:
        raise ValueError('fast paths are fitted on at least one batch of images, got none')
    explained = []
    for block in blocks:
        weights, share = regressions[block].solve()
        if block.fast_path.gamma is not None:  # a layer scale, in the weights from now on
            block.fast_path.gamma.fill_(1.0)
        block.fast_path.proj.weight.copy_(weights[:-1].T)
        block.fast_path.proj.bias.copy_(weights[-1])
        explained.append(share.item())
    return explained


@contextmanager
def _watched(blocks: Iterable[nn.Module], found: dict[nn.Module, _Regression]) -> Iterator[None]:
    """Collect inputs and updates of the slow paths of blocks."""

    def watch(block: nn.Module) -> Callable[[Tensor], Tensor]:
        slow, fast = block.slow_path, block.fast_path

        def slow_path(x: Tensor) -> Tensor:
            update = slow(x)
            rows, targets = fast.norm(x).flatten(0, -2), update.flatten(0, -2)
            if block not in found:
                found[block] = _Regression(rows.shape[1], rows)
            found[block].add(rows, targets)
            return update

        return slow_path

    before = {block: vars(block).get('slow_path') for block in blocks}
    for block in before:
        block.slow_path = watch(block)
    try:
        yield
    finally:
        for block, own in before.items():
            del block.slow_path  # the method of the class again
            if own is not None:
                block.slow_path = own
