"""What every sparse backbone shares: predictors, decisions, freezing, loading."""

from __future__ import annotations

import itertools
import numbers
import warnings
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmdyn.checks import check_positive
from mmdyn.guard import checkpoints_as_data
from mmdyn.models.backbones.pretrained import load_pretrained
from mmdyn.models.deciding import check_scores, how_to_run
from mmdyn.models.policies import build_policy
from mmdyn.sparsity import (
    Decision,
    FixedPolicy,
    GumbelPolicy,
    Policy,
    ScorePredictor,
    SparseOutput,
    TopKPolicy,
)
from mmdyn.sparsity.blocks import decide_in_blocks
from mmdyn.sparsity.decision import Shapes, check_valid_shapes, valid_mask_of
from mmdyn.sparsity.policy import Site


def check_keep_ratios(keep_ratios: Sequence[float], predictors: int) -> tuple[float, ...]:
    """Return the ratios as floats, or say what is wrong with them.

    Args:
        keep_ratios: one per predictor, in (0, 1], never rising.
        predictors: how many predictors there are.

    Raises:
        TypeError: if they are not a sequence of numbers.
        ValueError: if their number, range or order is wrong.
    """
    ratios = tuple(map(float, _numbers('keep_ratios', keep_ratios, numbers.Real)))
    if len(ratios) != predictors:
        raise ValueError(
            f'keep_ratios {ratios} has {len(ratios)} entries for {predictors} predictors; give '
            'one per entry of sparse_blocks'
        )
    if not all(0 < ratio <= 1 for ratio in ratios):
        raise ValueError(f'keep_ratios must lie in (0, 1], got {ratios}')
    if any(later > earlier for earlier, later in itertools.pairwise(ratios)):
        raise ValueError(
            f'keep_ratios must not rise from one predictor to the next, got {ratios}; '
            'order them from the highest to the lowest'
        )
    return ratios


def check_sparse_blocks(sparse_blocks: Sequence[int], depth: int) -> tuple[int, ...]:
    """Return the predictors' block positions, or say what is wrong with them.

    Args:
        sparse_blocks: strictly rising positions in the sparse stage, from 0.
        depth: blocks of that stage.

    Raises:
        TypeError: if they are not a sequence of integers.
        ValueError: if there are none, or one is outside the stage or out of order.
    """
    positions = tuple(map(int, _numbers('sparse_blocks', sparse_blocks, numbers.Integral)))
    if not positions:
        raise ValueError('sparse_blocks is empty; give at least one block position')
    if not all(0 <= position < depth for position in positions):
        raise ValueError(
            f'sparse_blocks {positions} must lie in the sparse stage of {depth} blocks, '
            f'that is in 0..{depth - 1}; pass sparse_blocks, or choose another sparse_stage'
        )
    if any(later <= earlier for earlier, later in itertools.pairwise(positions)):
        raise ValueError(f'sparse_blocks must rise strictly, got {positions}')
    return positions


def _numbers(name: str, values: Any, kind: type) -> list[Any]:
    """The entries of a sequence, an array or a tensor, if they are numbers of a kind.

    Raises:
        TypeError: if ``values`` can't be iterated over, or holds something else.
    """
    what = 'integers' if kind is numbers.Integral else 'numbers'
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise TypeError(f'{name} must be a sequence of {what}, got {values!r}')
    entries = values.tolist() if hasattr(values, 'tolist') else list(values)
    if not all(isinstance(entry, kind) and not isinstance(entry, bool) for entry in entries):
        raise TypeError(f'{name} must hold {what}, got {values!r}')
    return entries


def check_sizes(name: str, values: Sequence[int]) -> tuple[int, ...]:
    """Return whole numbers above 0, or say what is wrong with them.

    Raises:
        TypeError: if they are not a sequence of integers.
        ValueError: if one is below 1.
    """
    return tuple(check_positive(name, value) for value in _numbers(name, values, numbers.Integral))


def rising_drop_path(highest: float, blocks: int) -> Tensor:
    """(blocks,): the rate of stochastic depth of each block, from 0 to the last one's.

    Raises:
        TypeError: if ``highest`` is no number.
        ValueError: if it is outside [0, 1).
    """
    (rate,) = _numbers('drop_path_rate', [highest], numbers.Real)
    if not 0 <= rate < 1:
        raise ValueError(f'drop_path_rate must lie in [0, 1), got {rate}')
    return torch.linspace(0, rate, blocks)


def check_stage(name: str, stage: int, lowest: int, highest: int) -> int:
    """Return a stage number, or say that it is none.

    Raises:
        TypeError: if it is not an integer.
        ValueError: if it is outside ``lowest..highest``.
    """
    if not isinstance(stage, numbers.Integral) or isinstance(stage, bool):
        raise TypeError(f'{name} must be an integer, got {stage!r}')
    if not lowest <= stage <= highest:
        raise ValueError(f'{name}={stage} is outside {lowest}..{highest} of this backbone')
    return int(stage)


def check_out_indices(out_indices: int | Sequence[int], levels: int) -> tuple[int, ...]:
    """Return which of ``levels`` maps are returned, or say what is wrong with them.

    Args:
        out_indices: one or several, negative from the last.
        levels: stages, or blocks, of the backbone.

    Raises:
        TypeError: if one is not an integer.
        ValueError: if one is outside the backbone or named twice.
    """
    given = (out_indices,) if isinstance(out_indices, int) else tuple(out_indices)
    indices = tuple(check_stage('out_indices', i, -levels, levels - 1) % levels for i in given)
    if len(set(indices)) < len(indices):
        raise ValueError(f'out_indices names a map twice: {given} of {levels}')
    return indices


def freeze(modules: Iterable[nn.Module | nn.Parameter]) -> None:
    """Stop gradients and dropout of the given modules and parameters."""
    for module in modules:
        module.requires_grad_(False)
        if isinstance(module, nn.Module):
            module.eval()


def maybe_checkpoint(enabled: bool, block: nn.Module, x: Tensor, *args: Any) -> Tensor:
    """Run ``block(x, *args)``, recomputing it in the backward pass if ``enabled``."""
    if enabled and x.requires_grad:
        return checkpoint(block, x, *args, use_reentrant=False)
    return block(x, *args)


class FastPath(nn.Sequential):
    """The cheap update of a location: normalise, then one Linear layer.

    Args:
        channels: C.
        norm: normalises (..., C).
    """

    compiled_regions = ('forward',)

    def __init__(self, channels: int, norm: nn.Module) -> None:
        super().__init__(OrderedDict(norm=norm, proj=nn.Linear(channels, channels)))


@dataclass(frozen=True, eq=False)
class Padding:
    """What of a batch's maps lies outside the images.

    Attributes:
        shapes: (h, w) of each image's own map, at the top left of the batch's.
        mask: (B, N) bool, True outside.
    """

    shapes: tuple[tuple[int, int], ...]
    mask: Tensor


def hide(x: Tensor, padding: Padding | None) -> Tensor:
    """(B, N, C) with zeros in the padding, if any: what lies beyond the border of an image."""
    return x if padding is None else x.masked_fill(padding.mask.unsqueeze(-1), 0.0)


class DecisionMaker:
    """Makes and collects the decisions of one forward pass.

    Args:
        backbone: whose predictors decide, at its keep ratios.
        policy: how scores become decisions.
        images: (B, C, h, w), the backbone's input.
        valid_shapes: real (h, w) of each image in pixels, or None.
    """

    def __init__(
        self,
        backbone: DynamicBackbone,
        policy: Policy,
        images: Tensor,
        valid_shapes: Shapes | None,
    ) -> None:
        self.decisions: list[Decision] = []
        self._backbone = backbone
        self._policy = policy
        self._images = images
        self._valid_shapes = valid_shapes
        self._real = valid_mask_of(valid_shapes, tuple(images.shape[-2:]), images.device)

    def __call__(self, x: Tensor, hw: tuple[int, int]) -> Decision:
        """Let the next predictor decide.

        Args:
            x: (B, N, C) features of the sparse stage.
            hw: (H, W), ``H * W == N``.

        Raises:
            ValueError: if the predictor's scores are not numbers.
        """
        index, backbone = len(self.decisions), self._backbone
        # Stages keep their size, so the mask is the first decision's too.
        valid_mask = (
            self.decisions[0].valid_mask
            if self.decisions
            else valid_mask_of(self._shapes(None), hw, x.device)
        )
        shrinking = backbone.decisions_shrink and self.decisions
        candidates = self.decisions[-1].keep_mask if shrinking else None
        log_probs = backbone.predictors[index](x, valid_mask if candidates is None else candidates)
        check_scores(log_probs, f'predictors.{index}')
        site = Site(
            index=index,
            keep_ratio=backbone.keep_ratios[index],
            hw=hw,
            valid_mask=valid_mask,
            images=self._images,
            real=self._real,
            candidates=candidates,
        )
        if backbone.granularity == 1 or isinstance(self._policy, FixedPolicy):
            decision = self._policy(log_probs, site)
        else:
            decision = decide_in_blocks(self._policy, log_probs, site, backbone.granularity)
        # Worked out here, once: a block that is recomputed for its gradient would find it done,
        # and save other tensors than at first.
        decision.slow_mask  # noqa: B018
        self.decisions.append(decision)
        return decision

    def padding(self, stage: int | None = None) -> Padding | None:
        """What of a stage's map no location of an image may see, if anything.

        So that an image beside a larger one is what it is alone, and its decisions too. At keep
        ratios of 1 the dense model is met, in which padding reaches its neighbours.

        Args:
            stage: see :meth:`DynamicBackbone.map_hw`.
        """
        shapes = self._shapes(stage)
        if shapes is None or self._backbone.meets_dense:
            return None
        image_hw = (self._images.shape[2], self._images.shape[3])
        real = valid_mask_of(shapes, self._backbone.map_hw(image_hw, stage), self._images.device)
        return None if real is None else Padding(shapes, ~real)

    def _shapes(self, stage: int | None) -> tuple[tuple[int, int], ...] | None:
        """(h, w) of each image's own map of a stage."""
        if self._valid_shapes is None:
            return None
        return tuple(self._backbone.map_hw(shape, stage) for shape in self._valid_shapes)


def positions(
    resized: Callable[[tuple[int, int]], Tensor],
    hw: tuple[int, int],
    padding: Padding | None,
    prefix: int = 0,
) -> Tensor:
    """A batch's position embedding: of each image the one that it has alone.

    Args:
        resized: makes the (1, prefix + H·W, C) embedding of a map of (H, W).
        hw: (H, W) of the batch's map.
        padding: what of it is none of the images'; None = nothing.
        prefix: tokens before those of the map.

    Returns:
        (B, prefix + H·W, C), 0 in the padding; (1, prefix + H·W, C) without padding.
    """
    if padding is None:
        return resized(hw)
    tables = []
    for height, width in padding.shapes:
        table = resized((height, width))
        grid = table[:, prefix:].unflatten(1, (height, width))
        grid = F.pad(grid, (0, 0, 0, hw[1] - width, 0, hw[0] - height))
        tables.append(torch.cat([table[:, :prefix], grid.flatten(1, 2)], dim=1))
    return torch.cat(tables)


class DynamicBackbone(BaseModule):
    """Base of the sparse backbones.

    A subclass builds its layers, calls :meth:`build_sparsity` with what its
    sparse stage looks like, sets ``out_indices`` (the stages whose maps are returned),
    and implements :meth:`map_hw`, :meth:`forward_maps` and :meth:`frozen_modules`.
    """

    out_indices: Sequence[int]

    # Whether a dropped location stays dropped, each decision being multiplied by the one before.
    decisions_shrink = False
    # Side of the blocks of locations that are decided about as one.
    granularity = 1

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
        """Add the predictors and remember how decisions are made.

        Args:
            channels: C of the sparse stage.
            depth: blocks of the sparse stage.
            stride: pixels per location of the sparse stage.
            keep_ratios: one per predictor, in (0, 1], never rising.
            sparse_blocks: block position of each predictor in the sparse stage.
            policy: evaluation policy, an instance or a config; None = top-k.
            norm_eps: of the predictors' LayerNorm.

        Raises:
            TypeError, ValueError: if an argument can't be used; see
                :func:`check_keep_ratios` and :func:`check_sparse_blocks`.
        """
        self.sparse_blocks = check_sparse_blocks(sparse_blocks, depth)
        self.keep_ratios = check_keep_ratios(keep_ratios, len(self.sparse_blocks))
        self.policy = TopKPolicy() if policy is None else build_policy(policy)
        self.training_policy: Policy = GumbelPolicy()
        self.predictors = nn.ModuleList(
            ScorePredictor(channels, norm_eps) for _ in self.sparse_blocks
        )
        self.sparse_stride = stride
        self._warned = False

    def set_keep_ratios(self, ratios: Sequence[float]) -> None:
        """Change the keep ratios, from the next forward on.

        Args:
            ratios: one per predictor, in (0, 1], never rising.

        Raises:
            TypeError, ValueError: see :func:`check_keep_ratios`.
        """
        self.keep_ratios = check_keep_ratios(ratios, len(self.predictors))

    @property
    def meets_dense(self) -> bool:
        """Whether everything is to be kept; padding, too, is then what it is to a dense model."""
        return min(self.keep_ratios) == 1

    @abstractmethod
    def map_hw(self, image_hw: tuple[int, int], stage: int | None = None) -> tuple[int, int]:
        """(H, W) of the map that an image has when it is alone.

        In a padded batch too these rows and columns hold its content, and no others.

        Args:
            image_hw: (h, w) of the image in pixels.
            stage: whose map; None = that which decisions are about.

        Raises:
            ValueError: if the image is too small for this backbone.
        """

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the feature maps, as the dense backbone does.

        Args:
            x: (B, C, h, w) images.

        Returns:
            One (B, C_i, H_i, W_i) map per output index, contiguous.
        """
        if self.training and not self._warned:
            self._warned = True
            warnings.warn(
                f'{type(self).__name__}.forward is called in training, where no keep-ratio loss '
                "is applied: predictors won't learn the asked ratios. Train it through "
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
        """Return the feature maps together with the decisions behind them.

        Args:
            x: (B, C, h, w) images.
            policy: how scores become decisions; None = ``training_policy``
                (Gumbel samples) while training, ``policy`` otherwise.
            execution: ``'masked'`` (dense, differentiable), ``'gathered'``
                (sparse) or ``'auto'``: masked while training, else gathered.
            valid_shapes: real (h, w) of each image of a padded batch, in
                pixels; None = no padding. What is real of a map is what the image has
                alone, see :meth:`map_hw`. Unless everything is to be kept, no padding
                reaches a real location, and the maps are 0 in the padding.
            memory_format: of the maps. ``torch.channels_last`` spares a copy, and
                convolutions like it; but mmcv's own ops (RoIAlign, deformable
                convolution …) take any memory for a contiguous one, and would
                read wrong numbers without an error.

        Raises:
            ValueError: on an unknown execution, an empty batch, an image too small for
                the backbone, or ``valid_shapes`` that don't fit the batch.
        """
        if x.dim() != 4 or 0 in x.shape:
            raise ValueError(f'expected images of shape (B, C, h, w), none 0, got {tuple(x.shape)}')
        policy, execution = how_to_run(self, policy, execution)
        image_hw = (x.shape[2], x.shape[3])
        check_valid_shapes(valid_shapes, x.shape[0], image_hw)
        shapes = None
        if valid_shapes is not None:
            shapes = tuple(
                tuple(self.map_hw(shape, stage) for shape in valid_shapes)
                for stage in sorted(self.out_indices)  # the order of the maps
            )
        real = None if self.meets_dense else valid_mask_of(valid_shapes, image_hw, x.device)
        if real is not None:
            x = x.masked_fill(~real.view(-1, 1, *image_hw), 0.0)
        decide = DecisionMaker(self, policy, x, valid_shapes)
        maps = self.forward_maps(x, decide, execution)
        feats = tuple(one.contiguous(memory_format=memory_format) for one in maps)
        return SparseOutput(feats, tuple(decide.decisions), shapes)

    @abstractmethod
    def forward_maps(self, x: Tensor, decide: DecisionMaker, execution: str) -> list[Tensor]:
        """Compute the output maps; call ``decide`` at each of ``sparse_blocks``."""

    @abstractmethod
    def frozen_modules(self) -> Iterable[nn.Module | nn.Parameter]:
        """What ``frozen_stages`` freezes."""

    def train(self, mode: bool = True) -> DynamicBackbone:
        """Set the mode; frozen parts stay in evaluation mode. Returns itself."""
        super().train(mode)
        freeze(self.frozen_modules())
        return self

    @checkpoints_as_data()
    def init_weights(self) -> None:
        """Initialise from scratch, or from the dense checkpoint that ``init_cfg`` names."""
        self.reset_parameters()
        if self.init_cfg:
            load_pretrained(self, self.init_cfg)

    @abstractmethod
    def reset_parameters(self) -> None:
        """Initialise every parameter as the dense backbone does from scratch."""
