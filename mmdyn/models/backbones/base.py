"""Base classes of the sparse backbones; the forward pass from images to maps and decisions.

:meth:`StagedBackbone.forward_maps` is the main loop: enter a stage, let predictor k decide, run the
blocks with that decision, keep the map. :meth:`DynamicBackbone.decide` calls the policy
(``mmdyn/sparsity/policy.py``); :meth:`StageBlock.forward` sends locations down their paths with
:func:`mmdyn.sparsity.route`.
"""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmdyn.converters.additions import is_classifier
from mmdyn.guard import checkpoints_as_data
from mmdyn.models.backbones.arguments import (
    check_keep_ratios,
    check_out_indices,
    check_sparse_blocks,
    check_stage,
)
from mmdyn.models.backbones.maps import Padding, hide, to_map
from mmdyn.models.deciding import Deciding, check_scores
from mmdyn.models.weights import load_pretrained
from mmdyn.sparsity import Decision, Policy, ScorePredictor, SparseOutput, route
from mmdyn.sparsity.compiling import fixed, hw_of
from mmdyn.sparsity.decision import Shapes, check_valid_shapes, valid_mask_of
from mmdyn.sparsity.policy import Site
from mmdyn.sparsity.routing import Execution


def freeze(modules: Iterable[nn.Module | nn.Parameter]) -> None:
    """Disable gradients and dropout of the given modules and parameters."""
    for module in modules:
        module.requires_grad_(False)
        if isinstance(module, nn.Module):
            module.eval()


def maybe_checkpoint(enabled: bool, block: nn.Module, x: Tensor, *args: Any) -> Tensor:
    """Run ``block(x, *args)``, recomputing it in the backward pass if ``enabled``."""
    if enabled and x.requires_grad:
        return checkpoint(block, x, *args, use_reentrant=False)
    return block(x, *args)


class FastPath(nn.Module):
    """The cheap update of a location: a norm and one Linear layer.

    Args:
        channels: C.
        norm: over C.
        gamma: (C,) layer scale; None = no scaling.
    """

    compiled_regions = ('forward',)

    def __init__(self, channels: int, norm: nn.Module, gamma: nn.Parameter | None = None) -> None:
        super().__init__()
        self.norm, self.proj, self.gamma = norm, nn.Linear(channels, channels), gamma

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return scaled(self.proj(self.norm(x)), self.gamma)


def scaled(x: Tensor, gamma: Tensor | None) -> Tensor:
    """Multiply (..., C) by a (C,) layer scale, if there is one."""
    return x if gamma is None else x * gamma


@dataclass(frozen=True, eq=False)
class Batch:
    """Input of a forward pass.

    Attributes:
        images: (B, C, h, w).
        hw: (h, w), plain integers.
        shapes: real (h, w) of each image in pixels; None = no padding.
        real: (B, h·w) bool, the same as a mask.
    """

    images: Tensor
    hw: tuple[int, int]
    shapes: Shapes | None = None
    real: Tensor | None = None


class DynamicBackbone(Deciding, BaseModule):
    """Base of the sparse backbones.

    A subclass builds its layers, calls :meth:`build_sparsity`, sets ``out_indices`` (the stages
    whose maps are returned), and implements :meth:`map_hw`, :meth:`forward_maps` and
    :meth:`frozen_modules`.
    """

    out_indices: Sequence[int]

    # The method that mmdyn.compile_model compiles.
    compiled_whole = 'forward_maps'

    # Whether the maps end with a (B, C, 1, 1) one of the whole image, for a classifier.
    with_image_map = False

    # Whether a dropped location stays dropped (each decision is multiplied by the previous one).
    decisions_shrink = False

    def build_sparsity(
        self,
        *,
        channels: int,
        depth: int,
        stride: int,
        keep_ratios: Sequence[float],
        sparse_blocks: Sequence[int],
        policy: Policy | dict | None,
        norm_eps: float = 1e-5,
    ) -> None:
        """Add the predictors and set how decisions are made.

        Args:
            channels, depth, stride: of the sparse stage; stride in pixels per location.
            keep_ratios: one per predictor, in (0, 1], never rising.
            sparse_blocks: block position of each predictor in the sparse stage.
            policy: evaluation policy, an instance or a config; None = top-k.
            norm_eps: of the predictors' LayerNorm.

        Raises:
            TypeError, ValueError: on an invalid argument.
        """
        self.sparse_blocks = check_sparse_blocks(sparse_blocks, depth)
        self.keep_ratios = check_keep_ratios(keep_ratios, len(self.sparse_blocks))
        self.set_policies(policy)
        self.predictors = nn.ModuleList(
            ScorePredictor(channels, norm_eps) for _ in self.sparse_blocks
        )
        self.sparse_stride = stride
        self._warned = False

    def set_keep_ratios(self, ratios: Sequence[float]) -> None:
        """Change the keep ratios, one per predictor, for later forward passes."""
        self.keep_ratios = check_keep_ratios(ratios, len(self.predictors))

    @property
    def lowest_ratio(self) -> float:
        return min(self.keep_ratios)

    def keep_everything(self) -> None:
        """See the base class."""
        self.set_keep_ratios((1.0,) * len(self.predictors))

    @property
    def meets_dense(self) -> bool:
        """Whether everything is kept; padding is then treated as in a dense model."""
        return self.lowest_ratio == 1

    @abstractmethod
    def map_hw(self, image_hw: tuple[int, int], stage: int | None = None) -> tuple[int, int]:
        """(H, W) of the map of an unpadded image of (h, w) pixels.

        In a padded batch this part of the map holds the image. ``stage``: of the map; None = the
        sparse stage.
        """

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, C, h, w) images -> one (B, C_i, H_i, W_i) map per output index, contiguous."""
        if self.training and not self._warned:
            self._warned = True
            warnings.warn(
                f'{type(self).__name__}.forward is called in training without a keep-ratio loss: '
                "predictors won't learn the target ratios. Train it through "
                "model.type='mmdyn.DynamicEncoderDecoder' (mmseg), or 'mmdyn.Dynamic' and the "
                "detector's name (mmdet); elsewhere call forward_sparse and add "
                'mmdyn.sparsity.keep_ratio_loss to the loss.',
                stacklevel=2,
            )
        return self.forward_sparse(x).feats

    def forward_sparse(
        self,
        x: Tensor,
        *,
        policy: Policy | dict | None = None,
        execution: str = 'auto',
        valid_shapes: Shapes | None = None,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> SparseOutput:
        """Return the feature maps and the decisions.

        Args:
            x: (B, C, h, w) images.
            policy: turns scores into decisions; None = ``training_policy`` (Gumbel samples) in
                training, ``policy`` otherwise.
            execution: ``'masked'`` (dense, differentiable), ``'gathered'`` (sparse) or ``'auto'``:
                masked in training, else gathered.
            valid_shapes: real (h, w) of each image of a padded batch, in pixels; None = no padding.
                The real part of a map is given by :meth:`map_hw`. Unless everything is kept,
                padding does not affect real locations, and maps are 0 in the padding.
            memory_format: of the maps. ``torch.channels_last`` saves a copy and suits
                convolutions, but mmcv's ops (RoIAlign, deformable convolution …) assume contiguous
                memory and would silently compute wrong results.

        Raises:
            ValueError: on an unknown execution, an empty batch, an image too small for the
                backbone, or ``valid_shapes`` that don't fit the batch.
        """
        if x.dim() != 4 or 0 in fixed(*x.shape):
            raise ValueError(f'expected non-empty images (B, C, h, w), got shape {tuple(x.shape)}')
        policy, execution = self.how_to_run(policy, execution)
        image_hw = hw_of(x)
        check_valid_shapes(valid_shapes, x.shape[0], image_hw)
        if valid_shapes is not None and all(tuple(shape) == image_hw for shape in valid_shapes):
            valid_shapes = None
        real = valid_mask_of(valid_shapes, image_hw, x.device)
        if real is not None and not self.meets_dense:
            x = x.masked_fill(~real.view(-1, 1, *image_hw), 0.0)
        batch = Batch(x, image_hw, valid_shapes, real)
        maps, decisions = self.forward_maps(batch, policy, execution)
        feats = tuple(one.contiguous(memory_format=memory_format) for one in maps)
        shapes = None
        if valid_shapes is not None:  # in the order of the maps
            shapes = tuple(self.map_shapes(batch, stage) for stage in sorted(self.out_indices))
        return SparseOutput(feats, tuple(decisions), shapes)

    @abstractmethod
    def forward_maps(
        self, batch: Batch, policy: Policy, execution: Execution
    ) -> tuple[list[Tensor], list[Decision]]:
        """Compute the output maps; ``decide`` at each of ``sparse_blocks``.

        Returns:
            (B, C_i, H_i, W_i) for each output index, in any memory format, and one decision
            per predictor.
        """

    def decide(
        self,
        k: int,
        x: Tensor,
        hw: tuple[int, int],
        batch: Batch,
        policy: Policy,
        before: Decision | None,
        log_probs: Tensor | None = None,
    ) -> Decision:
        """Let predictor ``k`` decide on the (B, N, C) map of a batch.

        ``before`` is the previous predictor's decision, if any; ``log_probs``, (B, N, 2), what the
        predictor said, if it was asked already. In evaluation a keep ratio of 1 skips the
        predictor, with scores of 0. Raises ValueError if scores are not finite.
        """
        # All maps of the stage have one size, so the valid mask is reused.
        if before is not None:
            valid_mask = before.valid_mask
        else:
            valid_mask = valid_mask_of(self.map_shapes(batch), hw, x.device)
        candidates = counts = None
        if self.decisions_shrink and before is not None:
            candidates, counts = before.keep_mask, before.counts if valid_mask is None else None
        ratio = self.keep_ratios[k]
        if ratio == 1 and not self.training:  # nothing to predict
            log_probs = x.new_zeros(*x.shape[:2], 2, dtype=torch.float32)
        else:
            if log_probs is None:
                log_probs = self.predictors[k](x, valid_mask if candidates is None else candidates)
            check_scores(log_probs, f'predictors.{k}')
        site = Site(k, ratio, hw, valid_mask, batch.images, batch.real, candidates, counts)
        decision = policy(log_probs, site)
        # Computed once here: a checkpointed block that found it cached in the recomputation would
        # save other tensors than in the forward pass.
        decision.slow_mask  # noqa: B018
        return decision

    def map_shapes(
        self, batch: Batch, stage: int | None = None
    ) -> tuple[tuple[int, int], ...] | None:
        """Unpadded (h, w) of each image's map, None = no padding; see :meth:`map_hw`."""
        if batch.shapes is None:
            return None
        return tuple(self.map_hw(shape, stage) for shape in batch.shapes)

    def padding(self, batch: Batch, stage: int | None = None) -> Padding | None:
        """Padding to hide from real locations of a stage's map; None = nothing to hide.

        Hiding it makes results independent of other images in the batch. At keep ratios of 1 it is
        visible, as in the dense model.
        """
        shapes = self.map_shapes(batch, stage)
        if shapes is None or self.meets_dense:
            return None
        real = valid_mask_of(shapes, self.map_hw(batch.hw, stage), batch.images.device)
        return None if real is None else Padding(shapes, ~real)

    @abstractmethod
    def frozen_modules(self) -> Iterable[nn.Module | nn.Parameter]:
        """Modules and parameters that ``frozen_stages`` freezes."""

    def train(self, mode: bool = True) -> DynamicBackbone:
        """Set the mode, keeping frozen parts in evaluation mode; returns self."""
        super().train(mode)
        freeze(self.frozen_modules())
        return self

    @checkpoints_as_data()
    def init_weights(self) -> None:
        """Initialise from scratch, or from the dense checkpoint in ``init_cfg``."""
        self.reset_parameters()
        if self.init_cfg:
            load_pretrained(self, self.init_cfg)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # A converted classifier's head is no part of its backbone.
        for key in list(state_dict):
            if key.startswith(prefix) and is_classifier(key.removeprefix(prefix)):
                del state_dict[key]
        super()._load_from_state_dict(state_dict, prefix, *args)

    @abstractmethod
    def reset_parameters(self) -> None:
        """Initialise every parameter as in the dense backbone."""


class StageBlock(BaseModule):
    """Base of the blocks: dense spatial mixing, then a pointwise MLP.

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
        """Update a (B, N, C) map of (H, W).

        Args:
            x, hw: the map.
            decision: which locations take the MLP; None = all.
            execution: ``'masked'`` or ``'gathered'``.
            padding: hidden from real locations; None = nothing.
        """
        x, mixed = self.mix(x, hw, padding)
        update = route(mixed, decision, self.slow_path, self.fast_path, execution)
        return x + self.drop_path(update)

    @abstractmethod
    def mix(
        self, x: Tensor, hw: tuple[int, int], padding: Padding | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mix the locations of (B, N, C); return the residual and the input of the MLP.

        Both are (B, N, C). ``padding`` does not affect real locations.
        """

    @abstractmethod
    def slow_path(self, x: Tensor) -> Tensor:
        """Update of (..., C) by the pretrained MLP."""


class StagedBackbone(DynamicBackbone):
    """Base of the sparse backbones with stages.

    A subclass calls :meth:`set_stages` and :meth:`set_sparsity`, builds its layers with an output
    norm ``norm{i}`` for each stage in ``out_indices``, and implements ``map_hw``,
    :meth:`enter_stage` and :meth:`blocks_of`.
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
        """Validate and store the settings of the stages.

        Args:
            depths, channels: number of blocks and C of each stage.
            strides: of the embedding and of each downsampling.
            out_indices: stages whose maps are returned; negative from the last.
            frozen_stages: -1 to the number of stages.
            with_cp: recompute blocks in the backward pass to save memory.
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
        """Add predictors to one of the stages; see ``build_sparsity``.

        ``sparse_blocks=None`` uses the paper's positions: (1, 2, 3) in a stage of at most 9 blocks,
        else ``deep_blocks``.
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
        """Whether a block comes after a predictor."""
        return stage == self.sparse_stage and block >= self.sparse_blocks[0]

    @abstractmethod
    def enter_stage(
        self, index: int, x: Tensor, hw: tuple[int, int], padding: Padding | None
    ) -> Tensor:
        """Embed the images, or downsample to the next stage.

        Args:
            index: of the stage to enter, from 0.
            x: (B, C, h, w) images for the first stage, else (B, N, C) features of the previous
                stage.
            hw: (height, width) of ``x``.
            padding: of the stage to enter; None = nothing to hide.

        Returns:
            (B, N, C) features of the stage's map.
        """

    @abstractmethod
    def blocks_of(self, index: int) -> Iterable[StageBlock]:
        """The blocks of a stage."""

    def forward_maps(
        self, batch: Batch, policy: Policy, execution: Execution
    ) -> tuple[list[Tensor], list[Decision]]:
        x, hw = batch.images, batch.hw
        maps: list[Tensor] = []
        decisions: list[Decision] = []
        padding = None
        for i in range(len(self.num_features)):
            x, padding = hide(x, padding), self.padding(batch, i)
            x = self.enter_stage(i, x, hw, padding)
            hw = self.map_hw(batch.hw, i)
            decision = None
            for j, block in enumerate(self.blocks_of(i)):
                if i == self.sparse_stage and j in self.sparse_blocks:
                    k = len(decisions)
                    decision = self.decide(k, x, hw, batch, policy, before=decision)
                    decisions.append(decision)
                x = maybe_checkpoint(self.with_cp, block, x, hw, decision, execution, padding)
            if i in self.out_indices:
                maps.append(to_map(hide(getattr(self, f'norm{i}')(x), padding), hw))
        if self.with_image_map:
            maps.append(self.image_map(x, maps[-1]))
        return maps, decisions

    def image_map(self, x: Tensor, last: Tensor) -> Tensor:
        """(B, C, 1, 1) of the image, from the last stage's (B, N, C) and its normalised map."""
        return last.mean(dim=(2, 3), keepdim=True)
