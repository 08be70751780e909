"""FPN whose finest level is computed in full on chosen tiles only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmcv.cnn import ConvModule
from mmdet.models import FPN
from torch import Tensor, nn

from mmdyn.checks import check_integer
from mmdyn.convolutions.fast import add_fast_path, check_plain, start_from
from mmdyn.convolutions.kernels import convolve_valid
from mmdyn.models.deciding import Deciding, check_scores, check_tile_ratio
from mmdyn.models.init_order import init_then_load
from mmdyn.models.shapes import shapes_on
from mmdyn.registry import MODELS
from mmdyn.sparsity import Decision, Policy, ScorePredictor
from mmdyn.sparsity.compiling import hw_of
from mmdyn.sparsity.decision import Shapes, valid_mask_of
from mmdyn.sparsity.policy import Site
from mmdyn.sparsity.tile_routing import Pyramid, Tiles, route_tiles
from mmdyn.sparsity.tiles import TileGrid


class DeferredConv(ConvModule):
    """A layer that returns its input unchanged; its owner applies ``conv`` itself."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # mmcv's fuse_conv_bn would fuse the norm into a convolution before it, but this norm also
        # serves the owner's fast path. So the convolution is registered last.
        conv = self.conv
        del self.conv
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W) unchanged."""
        return x

    def finish(self, x: Tensor) -> Tensor:
        """Apply norm and activation, if any, to the convolution's output."""
        if self.with_norm:
            x = self.norm(x)
        return self.activate(x) if self.with_activation else x


@MODELS.register_module()
class DynamicFPN(Deciding, FPN):
    """FPN that runs the finest level's 3x3 convolution on the tiles that need it.

    Takes the arguments and loads the state dict of mmdet's ``FPN``. Three quarters of the work of
    its 3x3 convolutions are in the finest level, which serves small objects only. A small predictor
    picks tiles from the input of that convolution; elsewhere a 1x1 convolution replaces it,
    initialised to act like the 3x3 one on a constant map. A norm, if any, applies to the merged
    map.

    The maps are returned as a :class:`mmdyn.sparsity.tile_routing.Pyramid`, so that
    :class:`mmdyn.models.heads.DynamicRPNHead` uses the same tiles. The predictor learns the target
    ratio from a loss of that head or, with another head, of our detectors
    (``mmdyn.DynamicRetinaNet`` ...). A stock detector with another head has no such loss.

    Args:
        args, kwargs: the host's.
        finest_stride: stride in pixels of the first level; None = from ``start_level``, for a
            backbone with strides 4, 8, 16 ....
        tile_size: side of a tile in locations of the first level.
        tile_ratio: fraction of tiles, in (0, 1).
        policy: evaluation policy, an instance or a config; None = top-k.

    Raises:
        TypeError, ValueError: on an invalid argument; the message names value and remedy.
    """

    def __init__(
        self,
        *args: Any,
        finest_stride: int | None = None,
        tile_size: int = 16,
        tile_ratio: float = 0.5,
        policy: Policy | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        dense = self.fpn_convs[0]
        if len(self.lateral_convs) < 2:
            raise ValueError(
                f'DynamicFPN needs at least two levels, got in_channels={self.in_channels} from '
                f'start_level={self.start_level}: use FPN'
            )
        check_plain('DynamicFPN', 'the convolution of a level', dense.conv)
        if finest_stride is None:
            finest_stride = 4 * 2**self.start_level
        self.finest_stride = check_integer('finest_stride', finest_stride)
        self.tile_size = check_integer('tile_size', tile_size)
        self.set_tile_ratio(tile_ratio)
        if self.tile_ratio == 1:
            raise ValueError('tile_ratio=1 is a dense neck: use FPN, or a ratio below 1')
        self.set_policies(policy)
        # The host's forward then returns the input of the finest level's convolution.
        self.fpn_convs[0] = DeferredConv(
            self.out_channels,
            self.out_channels,
            3,
            padding=1,
            norm_cfg=dense.norm_cfg,
            act_cfg=dense.act_cfg,
            inplace=False,
        )
        bias = self.finest.bias is not None
        self.fast_path = nn.Conv2d(self.out_channels, self.out_channels, 1, bias=bias)
        start_from(self.fast_path, self.finest)
        self.predictors = nn.ModuleList([ScorePredictor(self.out_channels)])

    # Every ratio up to this one can be set.
    highest_ratio = 1.0

    @property
    def lowest_ratio(self) -> float:
        return self.tile_ratio

    def keep_everything(self) -> None:
        """See the base class."""
        self.set_tile_ratio(self.highest_ratio)

    @property
    def finest(self) -> nn.Conv2d:
        """The finest level's 3x3 convolution."""
        return self.fpn_convs[0].conv

    def set_tile_ratio(self, ratio: float) -> None:
        """Change the fraction of tiles, in (0, 1], for later forward passes; 1 = dense."""
        ratio = check_tile_ratio(ratio)
        if ratio == 0:
            raise ValueError(
                'tile_ratio=0 would leave the finest level without any 3x3 convolution: give a '
                'ratio above 0'
            )
        self.tile_ratio = ratio

    def init_weights(self) -> None:
        """Initialise like the host, and the fast path from the convolution that it replaces."""
        init_then_load(self, super().init_weights, lambda: start_from(self.fast_path, self.finest))

    def forward(self, inputs: Sequence[Tensor]) -> Pyramid:
        """Return the levels, finest first, each (B, C, H_i, W_i)."""
        return self.forward_sparse(inputs)

    def forward_sparse(
        self,
        inputs: Sequence[Tensor],
        *,
        policy: Policy | dict[str, Any] | None = None,
        execution: str = 'auto',
        valid_shapes: Shapes | None = None,
    ) -> Pyramid:
        """Return the levels and the tiles chosen in the finest.

        Args:
            inputs: the backbone's maps; the ``source`` of a
                :class:`mmdyn.sparsity.tile_routing.Pyramid` says which part of them is padding.
            policy, execution: as for a backbone's ``forward_sparse``.
            valid_shapes: without a ``source``, real (h, w) of each image of a padded batch, in
                pixels. Tiles of padding are never chosen.
        """
        policy, execution = self.how_to_run(policy, execution)
        x, *coarser = super().forward(inputs)
        if self.tile_ratio == 1:
            return Pyramid([self.fpn_convs[0].finish(self.finest(x)), *coarser])
        grid = TileGrid(hw_of(x), self.tile_size)
        shapes = shapes_on(x, inputs, valid_shapes, self.finest_stride)
        tiles = Tiles(grid, self.decide(x, grid, policy, shapes), execution)
        merged = route_tiles(x, tiles, self.slow_path, self.fast_path)
        return Pyramid([self.fpn_convs[0].finish(merged), *coarser], tiles)

    def slow_path(self, x: Tensor) -> Tensor:
        """Apply the finest level's 3x3 convolution, without padding."""
        return convolve_valid(self.finest, x)

    def decide(self, x: Tensor, grid: TileGrid, policy: Policy, shapes: Shapes | None) -> Decision:
        """Let the predictor choose tiles of (B, C, H, W); ``shapes`` exclude padding."""
        real = valid_mask_of(shapes, grid.hw, x.device)
        valid_mask = None if real is None else grid.counts(real) > 0
        log_probs = self.predictors[0](grid.means(x, real), valid_mask)
        check_scores(log_probs, 'neck.predictors.0')
        site = Site(0, self.tile_ratio, grid.shape, valid_mask, images=x, real=real)
        return policy(log_probs, site)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        add_fast_path(state_dict, f'{prefix}fpn_convs.0.conv', f'{prefix}fast_path')
        super()._load_from_state_dict(state_dict, prefix, *args)
