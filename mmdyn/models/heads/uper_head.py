"""UPerHead that is exact on chosen tiles and coarse elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdyn.converters.additions import is_new
from mmdyn.models.deciding import Deciding, check_scores, check_tile_ratio
from mmdyn.models.heads.arguments import check_classes, check_convolution, check_strides
from mmdyn.models.heads.coarse_pass import CoarsePass
from mmdyn.models.heads.exact_pass import ExactUPerHead
from mmdyn.models.heads.tile_predictor import TilePredictor, uncertainty
from mmdyn.models.init_order import init_then_load
from mmdyn.models.losses import known_pixels
from mmdyn.models.shapes import coarser, real_shapes, shapes_on
from mmdyn.registry import MODELS
from mmdyn.sparsity import Decision, Policy, SparseOutput
from mmdyn.sparsity.compiling import hw_of
from mmdyn.sparsity.decision import Shapes, valid_mask_of
from mmdyn.sparsity.policy import Site
from mmdyn.sparsity.routing import Execution
from mmdyn.sparsity.tiles import TileGrid


@MODELS.register_module()
class DynamicUPerHead(Deciding, ExactUPerHead):
    """UPerHead that is coarse everywhere and exact on the tiles that a predictor picks.

    Takes the arguments and loads the state dict of mmseg's ``UPerHead``. A coarse pass, with layers
    of its own initialised from the dense ones, predicts at ``coarse_stride`` from all levels
    averaged to it; a small predictor picks tiles from its features; on those the dense head runs.
    The results merge into one map of logits at the finest level's resolution.

    Dense head and backbone train with the host's losses on the dense result, as without the coarse
    pass. Coarse pass and predictor learn from the losses on the merged result; the coarse pass also
    from its own result everywhere and by distillation from the dense head. These losses pass no
    gradient to shared parts: with every tile the model equals its dense twin, and a coarse pass can
    be added to a trained dense model. All losses come from the head, so it also trains in mmseg's
    own ``EncoderDecoder``.

    Args:
        args, kwargs: the host's.
        finest_stride: stride in pixels of the head's first map.
        fine_stride: stride in pixels of the dense head: the finest, or a multiple, to which finer
            maps are averaged; None = the finest. With a multiple it differs from the host's head,
            and its weights need training.
        coarse_stride: stride in pixels of the coarse pass: 2, 4 or 8 times the fine one.
        tile_size: side of a tile in locations of the fine stride, a multiple of
            ``coarse_stride / fine_stride``.
        tile_ratio: fraction of tiles with the dense head; 0 = none (a static coarse head), 1 = all
            (the dense head).
        policy: evaluation policy, an instance or a config; None = top-k.
        keep_ratio_loss: config of the loss on the decision.
        distill_loss: config of the distillation loss from dense to coarse logits, or None.
        freeze_dense: whether to train only coarse pass and predictor, keeping the loaded dense
            head. With a trained dense backbone, freeze it too (``frozen_stages``) and remove
            auxiliary heads, which would not be trained. With a sparse backbone keep this False: its
            predictors need the host's losses.

    Raises:
        TypeError, ValueError: on an invalid argument; the message names value and remedy.
    """

    # The method that mmdyn.compile_model compiles.
    compiled_whole = 'branches'

    def __init__(
        self,
        *args: Any,
        finest_stride: int = 4,
        fine_stride: int | None = None,
        coarse_stride: int = 16,
        tile_size: int = 16,
        tile_ratio: float = 0.125,
        policy: Policy | dict[str, Any] | None = None,
        keep_ratio_loss: dict = dict(type='mmdyn.KeepRatioLoss'),  # noqa: B006, only read
        distill_loss: dict | None = dict(type='mmdyn.LogitDistillLoss', loss_weight=1.0),  # noqa: B006
        freeze_dense: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if len(self.in_channels) < 2:
            raise ValueError(
                'DynamicUPerHead needs at least two levels, one of them finer than the coarse '
                f'pass, got in_channels={self.in_channels}: use UPerHead'
            )
        self.finest_stride = finest_stride
        self.fine_stride, self.coarse_step = check_strides(
            finest_stride, fine_stride, coarse_stride, tile_size
        )
        self.tile_size = tile_size
        self.tile_ratio = check_tile_ratio(tile_ratio)
        # Levels finer than the coarse pass; the stride doubles from one to the next.
        self.fine_levels = min(int(math.log2(coarse_stride // finest_stride)), len(self.fpn_convs))
        for name in ('lateral_convs', 'fpn_convs'):
            for i, layer in enumerate(getattr(self, name)[: self.fine_levels]):
                check_convolution(f'{name}.{i}', layer)
        check_convolution('fpn_bottleneck', self.fpn_bottleneck)
        self.set_policies(policy)
        self.keep_ratio_loss = MODELS.build(keep_ratio_loss)
        if distill_loss is not None:
            check_classes(self)
        self.distill_loss = distill_loss and MODELS.build(distill_loss)
        # Omitted where unused (dense head: both; static head: predictor), as they would not learn.
        self.fast_path = CoarsePass(self, self.coarse_step) if self.tile_ratio < 1 else None
        if self.tile_ratio == 0:
            for name in ('conv_seg', 'fpn_bottleneck'):
                getattr(self, name).requires_grad_(False)
            for layers in (self.lateral_convs, self.fpn_convs):
                layers[: self.fine_levels].requires_grad_(False)
        choosing = 0 < self.tile_ratio < 1
        self.predictors = nn.ModuleList([TilePredictor(self.channels)] if choosing else [])
        self.freeze_dense = freeze_dense
        self.has_loaded_dense = False
        if freeze_dense:
            if not choosing:
                raise ValueError(
                    f'freeze_dense=True with tile_ratio={self.tile_ratio} leaves little or nothing '
                    'to train: give a tile_ratio between 0 and 1'
                )
            for layers in self.dense_layers():
                layers.requires_grad_(False)

    def dense_layers(self) -> Iterator[nn.Module]:
        """The layers of the host's head."""
        ours = ('fast_path', 'predictors')
        return (layers for name, layers in self.named_children() if name not in ours)

    def train(self, mode: bool = True) -> DynamicUPerHead:
        """Set the mode, keeping frozen layers in evaluation mode; returns self."""
        super().train(mode)
        if self.freeze_dense:
            for layers in self.dense_layers():
                layers.eval()
        return self

    def init_weights(self) -> None:
        """Initialise like the host, and the coarse layers from the dense ones."""
        init_then_load(self, super().init_weights, self.copy_dense)

    def copy_dense(self) -> None:
        """Copy the weights of the dense layers to the coarse ones, if any."""
        if self.fast_path is not None:
            dense = self.state_dict()
            self.fast_path.load_state_dict(
                {name: dense[name] for name in self.fast_path.state_dict()}
            )

    @property
    def lowest_ratio(self) -> float:
        return self.tile_ratio

    @property
    def highest_ratio(self) -> float:
        """1, or 0 for a static coarse head, whose dense layers are untrained."""
        return 0.0 if self.fast_path is not None and not self.predictors else 1.0

    def keep_everything(self) -> None:
        """See the base class."""
        self.set_tile_ratio(self.highest_ratio)

    def set_tile_ratio(self, ratio: float) -> None:
        """Change the fraction of tiles, in [0, 1], for later forward passes.

        Raises:
            TypeError, ValueError: if it is invalid, or needs parts that this head lacks.
        """
        ratio = check_tile_ratio(ratio)
        lacking = (
            (ratio < 1 and self.fast_path is None)
            or (0 < ratio < 1 and not self.predictors)
            or ratio > self.highest_ratio
        )
        if lacking:
            raise ValueError(
                f'this head was built with tile_ratio={self.tile_ratio}, without the parts that '
                f'tile_ratio={ratio} needs; build and train it with a ratio between 0 and 1, '
                'then any ratio can be set'
            )
        self.tile_ratio = ratio

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return the logits like the host: (B, classes, H, W) at the finest map's size."""
        return self.forward_sparse(inputs).feats[0]

    def forward_sparse(
        self,
        inputs: Sequence[Tensor],
        *,
        policy: Policy | dict[str, Any] | None = None,
        execution: str = 'auto',
        valid_shapes: Shapes | None = None,
    ) -> SparseOutput:
        """Return the logits and the decision.

        Args:
            inputs: the backbone's maps; the ``source`` of a
                :class:`mmdyn.sparsity.tile_routing.Pyramid` says which part of them is padding.
            policy, execution: as for a backbone's ``forward_sparse``.
            valid_shapes: without a ``source``, real (h, w) of each image of a padded batch, in
                pixels. Tiles of padding are never chosen.

        Returns:
            The logits as the only map; one decision on tiles, none if ``tile_ratio`` is 0 or 1.
        """
        policy, execution = self.how_to_run(policy, execution)
        shapes = self.fine_shapes(inputs, valid_shapes)
        return self.branches(tuple(inputs), policy, execution, shapes)[0]

    def branches(
        self,
        inputs: Sequence[Tensor],
        policy: Policy,
        execution: Execution,
        shapes: Shapes | None,
    ) -> tuple[SparseOutput, Tensor | None, Tensor | None]:
        """Return the output of :meth:`forward_sparse`, and the coarse and dense logits.

        The logits are (B, classes, H, W), or None if not computed everywhere. ``shapes``: unpadded
        (h, w) of each image in locations of the fine stride; None = no padding.
        """
        maps = self.maps_of(inputs)
        shared = self.shared_levels(maps, self.fine_levels)
        if self.tile_ratio == 1:
            return SparseOutput((self.dense(maps, shared),), ()), None, None
        size = hw_of(maps[0])
        # Without a dense head (static) the coarse pass may train the shared parts.
        feats = self.fast_path(maps, shared, detached=self.tile_ratio > 0)
        cells = self.fast_path.classify(feats)
        coarse = F.interpolate(cells, size, mode='bilinear', align_corners=False)
        if self.tile_ratio == 0:
            return SparseOutput((coarse,), ()), None, None
        grid = TileGrid(size, self.tile_size)
        # In training the logits went through dropout; recompute them.
        logits = None if self.training else cells
        decision = self.decide(feats, grid, policy, shapes, maps[0], logits)
        if execution == 'gathered':
            logits = self.refine(coarse, maps, shared, grid, decision.keep_idx)
            return SparseOutput((logits,), (decision,)), None, None
        keep = grid.spread(decision.keep_mask).unsqueeze(1).to(coarse.dtype)
        fine = self.dense(maps, shared)
        logits = keep * fine.detach() + (1 - keep) * coarse
        return SparseOutput((logits,), (decision,)), coarse, fine

    def maps_of(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The head's input maps, averaged to the fine stride where finer."""
        maps = list(self._transform_inputs(inputs))
        step, i = self.fine_stride // self.finest_stride, 0
        while step > 1 and i < len(maps):
            maps[i] = F.avg_pool2d(maps[i], step, ceil_mode=True, count_include_pad=False)
            step, i = step // 2, i + 1
        return maps

    def fine_shapes(self, inputs: Sequence[Tensor], valid_shapes: Shapes | None) -> Shapes | None:
        """Unpadded (h, w) of each image in locations of the fine stride; None = no padding."""
        finest = self._transform_inputs(inputs)[0]
        shapes = shapes_on(finest, inputs, valid_shapes, self.finest_stride)
        if shapes is None or all(tuple(shape) == hw_of(finest) for shape in shapes):
            return None
        return coarser(shapes, self.fine_stride // self.finest_stride)

    def decide(
        self,
        feats: Tensor,
        grid: TileGrid,
        policy: Policy,
        shapes: Shapes | None,
        images: Tensor,
        logits: Tensor | None = None,
    ) -> Decision:
        """Let the predictor choose tiles from the coarse features, without gradient to them.

        Args:
            feats: (B, C, h, w) coarse features.
            grid, policy: the tiles; how scores become a decision.
            shapes: unpadded (h, w) of each image in locations of the fine stride; None = no
                padding.
            images: identifies images for a random policy.
            logits: (B, classes, h, w) of the features, if known.
        """
        cells = TileGrid(hw_of(feats), grid.tile // self.coarse_step)
        real = valid_mask_of(coarser(shapes, self.coarse_step), cells.hw, feats.device)
        valid_mask = None if real is None else cells.counts(real) > 0
        with torch.no_grad():
            tokens = cells.means(feats, real)
            logits = self.fast_path.conv_seg(feats) if logits is None else logits
            unsure = uncertainty(logits).unsqueeze(1)
            doubt = cells.means(unsure, real).squeeze(-1)
        log_probs = self.predictors[0](tokens, doubt, valid_mask)
        check_scores(log_probs, 'decode_head.predictors.0')
        real = valid_mask_of(shapes, grid.hw, feats.device)
        return policy(log_probs, Site(0, self.tile_ratio, grid.shape, valid_mask, images, real))

    def loss(
        self, inputs: Sequence[Tensor], batch_data_samples: list, train_cfg: Any
    ) -> dict[str, Tensor]:
        """The host's losses and those of the decision."""
        return self.logits_and_losses(inputs, batch_data_samples)[1]

    def logits_and_losses(
        self, inputs: Sequence[Tensor], data_samples: Sequence[Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the dense logits, for distillation from a teacher, and the losses."""
        metainfos = [sample.metainfo for sample in data_samples]
        finest = self._transform_inputs(inputs)[0]
        valid_shapes = self.shapes_of(metainfos, finest)
        if self.freeze_dense and not self.has_loaded_dense:
            raise ValueError(
                'freeze_dense=True, but no weights of a dense UPerHead with the same shapes were '
                'loaded, so the frozen head would keep its initial weights: set load_from to a '
                'trained model with the same number of classes'
            )
        shapes = self.fine_shapes(inputs, valid_shapes)
        out, coarse, fine = self.branches(tuple(inputs), self.training_policy, 'masked', shapes)
        (merged,) = out.feats
        logits, losses = merged if fine is None else fine, {}
        if not self.freeze_dense:
            losses = self.loss_by_feat(logits, data_samples)
        if fine is not None:
            for name, part in (('coarse', coarse), ('merged', merged)):
                own = self.loss_by_feat(part, data_samples)
                losses |= {f'{name}.{key}': value for key, value in own.items()}
            if self.distill_loss is not None:
                known = known_pixels(data_samples, merged.shape[-2:], self.ignore_index, shapes)
                losses['loss_coarse_distill'] = self.distill_loss(coarse, fine.detach(), known)
        if out.decisions:
            losses['loss_keep_ratio'] = self.keep_ratio_loss(out.decisions)
            losses['tile_ratio'] = out.decisions[0].kept_fraction().detach().mean()
        return logits, losses

    def predict(
        self, inputs: Sequence[Tensor], batch_img_metas: list[dict], test_cfg: Any
    ) -> Tensor:
        """Predict like the host, and record the fraction of tiles kept in each image's meta.

        It is appended to the list ``kept_tiles``, once per window in sliding inference.
        """
        # In sliding inference only the first image's meta is updated to the window.
        metas = [] if test_cfg.get('mode') == 'slide' else batch_img_metas
        shapes = self.shapes_of(metas, self._transform_inputs(inputs)[0])
        out = self.forward_sparse(inputs, valid_shapes=shapes)
        for decision in out.decisions:
            for meta, kept in zip(batch_img_metas, decision.kept_fraction(), strict=False):
                meta.setdefault('kept_tiles', []).append(kept)
        return self.predict_by_feat(out.feats[0], batch_img_metas)

    def shapes_of(self, metainfos: Sequence[Mapping[str, Any]], finest: Tensor) -> Shapes | None:
        """Real (h, w) of each image in pixels, if given by the metas."""
        # The batch may end within a location, or be cut there by the backbone.
        height, width = (self.finest_stride * (side + 1) - 1 for side in hw_of(finest))
        return real_shapes(metainfos, finest.shape[0], (height, width))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        own = {name: value.shape for name, value in self.named_parameters() if not is_new(name)}
        self.has_loaded_dense |= all(
            f'{prefix}{name}' in state_dict and state_dict[f'{prefix}{name}'].shape == shape
            for name, shape in own.items()
        )
        # The coarse layers of a dense checkpoint start from its dense ones.
        for name in () if self.fast_path is None else self.fast_path.state_dict():
            dense, own = prefix + name, f'{prefix}fast_path.{name}'
            if own not in state_dict and dense in state_dict:
                state_dict[own] = state_dict[dense].clone()
        super()._load_from_state_dict(state_dict, prefix, *args)
