"""What sparse backbones in stages share: blocks in two parts, one sparse stage, a map of each."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

from mmengine.model import BaseModule
from torch import Tensor

from mmdyn.models.backbones.base import (
    DecisionMaker,
    DynamicBackbone,
    Padding,
    check_out_indices,
    check_stage,
    hide,
    maybe_checkpoint,
)
from mmdyn.sparsity import Decision, Policy, route
from mmdyn.sparsity.routing import Execution


# Both go by (B, H, W, C): any other way a batch of one image gets a stride from which
# convolutions don't recognise channels-last memory, and they copy.
def to_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H·W, C), without a copy of a channels-last map."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def to_map(x: Tensor, hw: tuple[int, int]) -> Tensor:
    """(B, H·W, C) -> (B, C, H, W) in channels-last memory, without a copy."""
    return x.unflatten(1, hw).permute(0, 3, 1, 2)


class StageBlock(BaseModule):
    """Base of the blocks: spatial mixing, which stays dense, then a location-wise MLP.

    A subclass implements :meth:`mix` and :meth:`slow_path`, and sets ``drop_path``
    (stochastic depth) and ``fast_path`` (a module, or None before the first predictor).
    """

    def forward(
        self,
        x: Tensor,
        hw: tuple[int, int],
        decision: Decision | None,
        execution: Execution,
        padding: Padding | None = None,
    ) -> Tensor:
        """Update a map.

        Args:
            x: (B, N, C).
            hw: (H, W), ``H * W == N``.
            decision: which locations take the MLP; None = all.
            execution: ``'masked'`` or ``'gathered'``.
            padding: what no location of an image may see; None = nothing.

        Returns:
            (B, N, C).
        """
        x, mixed = self.mix(x, hw, padding, decision, execution)
        update = route(mixed, decision, self.slow_path, self.fast_path, execution)
        return x + self.drop_path(update)

    @abstractmethod
    def mix(
        self,
        x: Tensor,
        hw: tuple[int, int],
        padding: Padding | None = None,
        decision: Decision | None = None,
        execution: Execution = 'masked',
    ) -> tuple[Tensor, Tensor]:
        """Mix the locations of (B, N, C); return what the MLP's update is added to, and its input.

        Both are (B, N, C). An image's locations mix as they would without the padding. Most
        blocks mix everywhere, whatever was decided.
        """

    @abstractmethod
    def slow_path(self, x: Tensor) -> Tensor:
        """The pretrained MLP's update of (..., C) locations."""


class StagedBackbone(DynamicBackbone):
    """Base of the sparse backbones that are made of stages.

    A subclass calls :meth:`set_stages` and :meth:`set_sparsity`, builds its layers,
    with an output norm ``norm{i}`` for each stage in ``out_indices``, and implements
    ``map_hw``, :meth:`enter_stage` and :meth:`blocks_of`.
    """

    def set_stages(
        self,
        depths: Sequence[int],
        channels: Sequence[int],
        strides: Sequence[int],
        out_indices: int | Sequence[int],
        frozen_stages: int,
        with_cp: bool,
    ) -> None:
        """Check and keep what the stages look like.

        Args:
            depths: blocks of each stage.
            channels: C of each stage.
            strides: stride of the embedding and of each downsampling.
            out_indices: stages whose maps are returned; negative from the last.
            frozen_stages: -1 to the number of stages.
            with_cp: recompute blocks in the backward pass to save memory.

        Raises:
            TypeError, ValueError: if a stage is none.
        """
        stages = len(depths)
        self.out_indices = check_out_indices(out_indices, stages)
        self.frozen_stages = check_stage('frozen_stages', frozen_stages, -1, stages)
        self.depths = tuple(depths)
        self.num_features = list(channels)
        self.strides = tuple(strides)
        self.with_cp = with_cp

    def set_sparsity(
        self,
        keep_ratios: Sequence[float],
        sparse_stage: int,
        sparse_blocks: Sequence[int] | None,
        policy: Policy | dict[str, Any] | None,
        *,
        deep_blocks: Sequence[int],
        norm_eps: float = 1e-5,
    ) -> None:
        """Add the predictors to one of the stages that were set.

        Args:
            keep_ratios: one per predictor, in (0, 1], never rising.
            sparse_stage: which stage is sparse, from 0.
            sparse_blocks: block position of each predictor in that stage; None =
                the paper's: (1, 2, 3) for at most 9 blocks, else ``deep_blocks``.
            policy: evaluation policy, an instance or a config; None = top-k.
            deep_blocks: see ``sparse_blocks``.
            norm_eps: of the predictors' LayerNorm.

        Raises:
            TypeError, ValueError: if an argument can't be used.
        """
        stage = check_stage('sparse_stage', sparse_stage, 0, len(self.depths) - 1)
        if sparse_blocks is None:
            sparse_blocks = (1, 2, 3) if self.depths[stage] <= 9 else deep_blocks
        self.sparse_stage = stage
        self.build_sparsity(
            channels=self.num_features[stage],
            depth=self.depths[stage],
            stride=self.stride_of(stage),
            keep_ratios=keep_ratios,
            sparse_blocks=sparse_blocks,
            policy=policy,
            norm_eps=norm_eps,
        )

    def stride_of(self, stage: int | None) -> int:
        """Pixels per location of a stage; None = the sparse one."""
        return math.prod(self.strides[: (self.sparse_stage if stage is None else stage) + 1])

    def has_fast_path(self, stage: int, block: int) -> bool:
        """Whether a block follows a predictor."""
        return stage == self.sparse_stage and block >= self.sparse_blocks[0]

    @abstractmethod
    def enter_stage(
        self, index: int, x: Tensor, hw: tuple[int, int], padding: Padding | None
    ) -> tuple[Tensor, tuple[int, int]]:
        """Embed the images, or downsample to the next stage.

        Args:
            index: of the stage to enter, from 0.
            x: (B, C, h, w) images for the first stage, else (B, N, C) features
                of the stage before.
            hw: (height, width) of ``x``.
            padding: what of the stage to enter is none of the images'; None = nothing.

        Returns:
            (B, N, C) features and their (H, W).
        """

    @abstractmethod
    def blocks_of(self, index: int) -> Iterable[StageBlock]:
        """A stage's blocks."""

    def forward_maps(self, x: Tensor, decide: DecisionMaker, execution: str) -> list[Tensor]:
        """See the base class."""
        hw = (x.shape[2], x.shape[3])
        maps, padding = [], None
        for i in range(len(self.num_features)):
            x, padding = hide(x, padding), decide.padding(i)
            x, hw = self.enter_stage(i, x, hw, padding)
            decision = None
            for j, block in enumerate(self.blocks_of(i)):
                if i == self.sparse_stage and j in self.sparse_blocks:
                    decision = decide(x, hw)
                x = maybe_checkpoint(self.with_cp, block, x, hw, decision, execution, padding)
            if i in self.out_indices:
                maps.append(to_map(hide(getattr(self, f'norm{i}')(x), padding), hw))
        return maps
