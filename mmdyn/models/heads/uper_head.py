"""UPerHead that works in full resolution only where it matters."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmseg.models import UPerHead
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmdyn.models.heads.tile_predictor import TilePredictor, uncertainty
from mmdyn.models.policies import build_policy
from mmdyn.models.shapes import real_shapes
from mmdyn.registry import MODELS
from mmdyn.sparsity import Decision, GumbelPolicy, Policy, SparseOutput, TopKPolicy
from mmdyn.sparsity.decision import valid_mask_of
from mmdyn.sparsity.policy import Site
from mmdyn.sparsity.tiles import TileGrid
from mmdyn.sparsity.upsampled_conv import conv_of_upsampled, trace_tiles

FINEST_STRIDE = 4
"""Of the finest map, as in every pyramid of mmseg's; ``coarse_stride`` is counted in it."""


class CoarsePass(nn.Module):
    """Layers of the coarse pass: another set of those that it takes the place of.

    Args:
        head: whose layers they are like, and named like.
        levels: how many levels the coarse pass looks at from afar.
    """

    def __init__(self, head: UPerHead, levels: int) -> None:
        super().__init__()
        self.lateral_convs = copy.deepcopy(head.lateral_convs[:levels])
        self.fpn_convs = copy.deepcopy(head.fpn_convs[:levels])
        self.fpn_bottleneck = copy.deepcopy(head.fpn_bottleneck)
        self.conv_seg = copy.deepcopy(head.conv_seg)

    def kernel(self, level: int) -> Tensor:
        """(C, C, 3, 3): the fusion convolution's weights for a level."""
        return kernel_of(self.fpn_bottleneck, level)


class Levels(NamedTuple):
    """Levels of the pyramid, by number; 0 is the finest.

    Attributes:
        laterals: (B, C, H_i, W_i) before the level's own convolution.
        outs: the same after it, ready to be fused.
    """

    laterals: dict[int, Tensor]
    outs: dict[int, Tensor]


class Branches(NamedTuple):
    """What the head returns, and where both were computed everywhere, what it merges.

    Attributes:
        merged: logits and decision.
        coarse, fine: (B, classes, H, W) logits of the coarse pass and of the dense head.
    """

    merged: SparseOutput
    coarse: Tensor | None = None
    fine: Tensor | None = None


@MODELS.register_module()
class DynamicUPerHead(UPerHead):
    """UPerHead that is coarse everywhere, and exact on the tiles that need it.

    Takes the arguments, and loads the state dict, of mmseg's ``UPerHead``. A coarse pass
    with layers of its own, which start from the dense ones', sees all levels averaged to
    ``coarse_stride`` and predicts at that stride; a light predictor picks tiles by what
    that looks like; in those the head is the dense one, to the last location, thanks to
    halos. The results merge into one map of logits in the finest level's resolution.

    The dense head and the backbone train as they would without all this, by the host's
    losses on the dense result. Coarse pass and predictor learn beside them: the one from
    the same losses and from what the dense head says, the other from the merged result's.
    No gradient of theirs goes into what they share, so that with every tile the model is
    its dense twin, and a trained dense one can be given a coarse pass afterwards.

    Convolutions of upsampled maps, most of the head's cost, are taken before the
    upsampling (:mod:`mmdyn.sparsity.upsampled_conv`), which changes nothing but the time:
    with ``tile_ratio=1`` this head computes what mmseg's does, faster.

    All losses come from the head, so that it trains in mmseg's own ``EncoderDecoder`` too.

    Args:
        *args: the host's.
        coarse_stride: stride of the coarse pass in pixels: 8, 16 or 32.
        tile_size: side of a tile in locations of the finest level (4 pixels each), a
            multiple of ``coarse_stride / 4``.
        tile_ratio: fraction of tiles with the dense head; 0 = none (a static coarse
            head), 1 = all (the dense head).
        policy: evaluation policy, an instance or a config; None = top-k.
        keep_ratio_loss: config of the loss on the decision.
        distill_loss: config of the loss of the coarse logits towards the dense ones, or
            None.
        **kwargs: the host's.

    Raises:
        TypeError, ValueError: if an argument can't be used; the message names the value and
            what would be right.
    """

    def __init__(
        self,
        *args: Any,
        coarse_stride: int = 16,
        tile_size: int = 16,
        tile_ratio: float = 0.125,
        policy: Policy | dict[str, Any] | None = None,
        keep_ratio_loss: dict = dict(type='mmdyn.KeepRatioLoss'),  # noqa: B006, only read
        distill_loss: dict | None = dict(type='mmdyn.LogitDistillLoss', loss_weight=1.0),  # noqa: B006
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.coarse_step = check_coarse_stride(coarse_stride)
        self.tile_size = check_tile_size(tile_size, self.coarse_step)
        self.tile_ratio = check_tile_ratio(tile_ratio)
        # Levels finer than the coarse pass, which halve from one to the next.
        self.fine_levels = min(int(math.log2(self.coarse_step)), len(self.fpn_convs))
        for name in ('lateral_convs', 'fpn_convs'):
            for i, layer in enumerate(getattr(self, name)[: self.fine_levels]):
                check_convolution(f'{name}.{i}', layer)
        check_convolution('fpn_bottleneck', self.fpn_bottleneck)
        self.policy = TopKPolicy() if policy is None else build_policy(policy)
        self.training_policy: Policy = GumbelPolicy()
        self.keep_ratio_loss = MODELS.build(keep_ratio_loss)
        self.distill_loss = distill_loss and MODELS.build(distill_loss)
        # A dense head needs neither, and a static one no predictor: they would never learn.
        self.fast_path = CoarsePass(self, self.fine_levels) if self.tile_ratio < 1 else None
        choosing = 0 < self.tile_ratio < 1
        self.predictors = nn.ModuleList([TilePredictor(self.channels)] if choosing else [])

    def set_tile_ratio(self, ratio: float) -> None:
        """Change the fraction of tiles, from the next forward on.

        Args:
            ratio: in [0, 1].

        Raises:
            TypeError, ValueError: if it is not, or needs what this head was built without.
        """
        ratio = check_tile_ratio(ratio)
        if (ratio < 1 and self.fast_path is None) or (0 < ratio < 1 and not self.predictors):
            raise ValueError(
                f'this head was built with tile_ratio={self.tile_ratio}, without what '
                f'tile_ratio={ratio} needs; build it with tile_ratio={ratio}'
            )
        self.tile_ratio = ratio

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return the logits, as the host does: (B, classes, H, W) at the finest map's size."""
        return self.forward_sparse(inputs).feats[0]

    def forward_sparse(
        self,
        inputs: Sequence[Tensor],
        *,
        policy: Policy | dict[str, Any] | None = None,
        execution: str = 'auto',
        valid_shapes: Sequence[tuple[int, int]] | None = None,
    ) -> SparseOutput:
        """Return the logits together with the decision behind them.

        Args:
            inputs: the backbone's maps.
            policy: how scores become decisions; None = ``training_policy`` while
                training, ``policy`` otherwise.
            execution: ``'masked'`` (dense, differentiable), ``'gathered'`` (sparse) or
                ``'auto'``: masked while training, else gathered.
            valid_shapes: real (h, w) of each image of a padded batch, in pixels; tiles
                without any are never chosen.

        Returns:
            The logits as the only map; one decision about tiles, none if ``tile_ratio``
            is 0 or 1.

        Raises:
            ValueError: on an unknown execution.
        """
        if execution not in ('auto', 'masked', 'gathered'):
            raise ValueError(f"execution must be 'auto', 'masked' or 'gathered', got {execution!r}")
        if execution == 'auto':
            execution = 'masked' if self.training else 'gathered'
        if policy is None:
            policy = self.training_policy if self.training else self.policy
        return self.branches(inputs, build_policy(policy), execution, valid_shapes).merged

    def branches(
        self,
        inputs: Sequence[Tensor],
        policy: Policy,
        execution: str,
        valid_shapes: Sequence[tuple[int, int]] | None,
    ) -> Branches:
        """What :meth:`forward_sparse` returns, and what it is made from."""
        maps = self._transform_inputs(inputs)
        shared = self.shared_levels(maps)
        if self.tile_ratio == 1:
            fine = self.dense(maps, shared)
            return Branches(SparseOutput((fine,), ()))
        size = tuple(maps[0].shape[-2:])
        # A static head has no dense one to be kept as it is.
        feats = self.coarse_features(maps, shared, detached=self.tile_ratio > 0)
        coarse = self.upsample(self.classify(feats, self.fast_path.conv_seg), size)
        if self.tile_ratio == 0:
            return Branches(SparseOutput((coarse,), ()))
        grid = TileGrid(size, self.tile_size)
        decision = self.decide(feats, grid, policy, valid_shapes, maps[0])
        if execution == 'gathered':
            logits = self.refine(coarse, maps, shared, grid, decision.keep_idx)
            return Branches(SparseOutput((logits,), (decision,)))
        keep = grid.spread(decision.keep_mask).unsqueeze(1).to(coarse.dtype)
        fine = self.dense(maps, shared)
        logits = keep * fine.detach() + (1 - keep) * coarse
        return Branches(SparseOutput((logits,), (decision,)), coarse, fine)

    def shared_levels(self, maps: Sequence[Tensor]) -> Levels:
        """The levels that the coarse pass sees as they are."""
        laterals = {len(self.fpn_convs): self.psp_forward(maps)}
        self.descend(laterals, maps, self.fine_levels)
        outs = {i: self.fpn_convs[i](x) for i, x in laterals.items() if i < len(self.fpn_convs)}
        return Levels(laterals, laterals | outs)

    def descend(self, laterals: dict[int, Tensor], maps: Sequence[Tensor], last: int) -> None:
        """Add the finer levels' laterals, down to the ``last``, as the host makes them."""
        for i in range(min(laterals) - 1, last - 1, -1):
            above = self.upsample(laterals[i + 1], maps[i].shape[-2:])
            laterals[i] = self.lateral_convs[i](maps[i]) + above

    def dense(self, maps: Sequence[Tensor], shared: Levels) -> Tensor:
        """The dense head's logits.

        Args:
            maps: the backbone's.
            shared: the levels known already.
        """
        laterals = dict(shared.laterals)
        self.descend(laterals, maps, 0)
        size = tuple(maps[0].shape[-2:])
        fused = F.conv2d(self.fpn_convs[0](laterals[0]), self.kernel(0), padding=1)
        fused = to_pixels(fused).contiguous()
        for i in range(1, len(maps)):
            out = shared.outs[i] if i in shared.outs else self.fpn_convs[i](laterals[i])
            fused = conv_of_upsampled(out, self.kernel(i), size, self.align_corners, out=fused)
        return self.cls_seg(finish(self.fpn_bottleneck, to_maps(fused)))

    def classify(self, feats: Tensor, conv_seg: nn.Module) -> Tensor:
        """The host's ``cls_seg`` with another classifier."""
        return conv_seg(feats if self.dropout is None else self.dropout(feats))

    def coarse_features(self, maps: Sequence[Tensor], shared: Levels, *, detached: bool) -> Tensor:
        """(B, C, h, w): the dense head's features as seen from ``coarse_stride``.

        Finer levels are averaged over cells of that stride. Convolutions have the extent
        they have in the dense head: it is their results that are averaged over cells.

        Args:
            maps: the backbone's.
            shared: the coarser levels.
            detached: whether to let no gradient into either.
        """
        if detached:
            maps = [x.detach() for x in maps]
            shared = Levels(*({i: x.detach() for i, x in level.items()} for level in shared))
        coarse = self.fast_path
        size = tuple(maps[0].shape[-2:])
        cells = tuple(-(-side // self.coarse_step) for side in size)
        lateral, fused = shared.laterals[self.fine_levels], None
        for i in range(self.fine_levels - 1, -1, -1):
            x = coarse.lateral_convs[i](F.adaptive_avg_pool2d(maps[i], cells))
            lateral = x + self.upsample(lateral, cells)
            layer, hw = coarse.fpn_convs[i], tuple(maps[i].shape[-2:])
            x = conv_of_upsampled(lateral, layer.conv.weight, hw, self.align_corners, cells=cells)
            fused = self.add_level(i, finish(layer, to_maps(x)), size, cells, fused)
        for i, out in shared.outs.items():
            fused = self.add_level(i, out, size, cells, fused)
        return finish(coarse.fpn_bottleneck, to_maps(fused))

    def add_level(
        self,
        level: int,
        x: Tensor,
        size: tuple[int, int],
        cells: tuple[int, int],
        fused: Tensor | None,
    ) -> Tensor:
        """Add to a fused map, (B, *cells, C), what a level's map brings to it."""
        kernel = self.fast_path.kernel(level)
        return conv_of_upsampled(x, kernel, size, self.align_corners, cells=cells, out=fused)

    def refine(
        self,
        logits: Tensor,
        maps: Sequence[Tensor],
        shared: Levels,
        grid: TileGrid,
        chosen: Tensor,
    ) -> Tensor:
        """Put the dense head's logits into chosen tiles.

        Args:
            logits: (B, classes, H, W), the coarse ones.
            maps: the backbone's.
            shared: the levels known already.
            grid: the tiles.
            chosen: (K,) int64, tiles in the flattened (B·T) order.
        """
        laterals = dict(shared.laterals)
        self.descend(laterals, maps, 1)
        x = self.finest_in_tiles(maps[0], laterals[1], grid, chosen)
        fused = to_pixels(F.conv2d(x, self.kernel(0)))
        for i in range(1, len(maps)):
            hw = tuple(laterals[i].shape[-2:])
            origin = trace_tiles(hw, grid, chosen, self.align_corners, taps=3)
            if i in shared.outs:
                x = origin.windows().take(shared.outs[i])
            else:
                layer = self.fpn_convs[i]
                x = F.conv2d(origin.windows(halo=1).take(laterals[i]), layer.conv.weight)
                x = finish(layer, x)
            fused = fused + origin.convolve(x, self.kernel(i))
        tiles = self.cls_seg(finish(self.fpn_bottleneck, to_maps(fused)))
        merged = grid.windows(chosen).put(to_pixels(logits).contiguous(), to_pixels(tiles))
        return to_maps(merged)

    def finest_in_tiles(self, x: Tensor, above: Tensor, grid: TileGrid, chosen: Tensor) -> Tensor:
        """(K, C, t + 2, t + 2): the finest level of the pyramid in tiles, with a halo of 1.

        Args:
            x: the backbone's finest map.
            above: the lateral of the next level.
            grid: the tiles.
            chosen: see :meth:`refine`.
        """
        around = grid.windows(chosen, halo=2)
        origin = trace_tiles(tuple(above.shape[-2:]), grid, chosen, self.align_corners, halo=2)
        lateral = self.lateral_convs[0](around.take(x))
        lateral = lateral + origin.interpolate(origin.windows().take(above))
        layer = self.fpn_convs[0]
        # What a convolution sees beyond the map is 0, not what would be computed there.
        out = finish(layer, F.conv2d(around.hide(lateral), layer.conv.weight))
        return grid.windows(chosen, halo=1).hide(out)

    def kernel(self, level: int) -> Tensor:
        """(C, C, 3, 3): the fusion convolution's weights for a level."""
        return kernel_of(self.fpn_bottleneck, level)

    def upsample(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """(B, C, h, w) -> (B, C, *size), bilinearly, as the host does."""
        size = tuple(size)
        return F.interpolate(x, size, mode='bilinear', align_corners=self.align_corners)

    def decide(
        self,
        feats: Tensor,
        grid: TileGrid,
        policy: Policy,
        valid_shapes: Sequence[tuple[int, int]] | None,
        images: Tensor,
    ) -> Decision:
        """Let the predictor choose among tiles, by what the coarse result looks like.

        The choice does not shape that result: no gradient goes from here into it.

        Args:
            feats: (B, C, h, w), the coarse features.
            grid: the tiles.
            policy: how scores become a decision.
            valid_shapes: see :meth:`forward_sparse`.
            images: by which a random policy tells images apart.

        Raises:
            ValueError: if the scores are not numbers.
        """
        cells = TileGrid(tuple(feats.shape[-2:]), grid.tile // self.coarse_step)
        with torch.no_grad():
            tokens = cells.means(feats)
            doubt = cells.means(uncertainty(self.fast_path.conv_seg(feats)).unsqueeze(1)).squeeze(
                -1
            )
        stride = FINEST_STRIDE * grid.tile
        image_hw = (FINEST_STRIDE * grid.hw[0], FINEST_STRIDE * grid.hw[1])
        valid_mask = valid_mask_of(valid_shapes, image_hw, grid.shape, stride, feats.device)
        log_probs = self.predictors[0](tokens, doubt, valid_mask)
        if not torch.isfinite(log_probs).all():
            raise ValueError(
                'decode_head.predictors.0 gave NaN or infinite scores: its input or its weights '
                'hold NaN or infinite values; check the images, the learning rate and the loss '
                'scale'
            )
        site = Site(
            index=0,
            keep_ratio=self.tile_ratio,
            hw=grid.shape,
            valid_mask=valid_mask,
            images=images,
        )
        return policy(log_probs, site)

    def loss(
        self, inputs: Sequence[Tensor], batch_data_samples: list, train_cfg: Any
    ) -> dict[str, Tensor]:
        """The host's losses, and those of the decision."""
        return self.logits_and_losses(inputs, batch_data_samples)[1]

    def logits_and_losses(
        self, inputs: Sequence[Tensor], data_samples: Sequence[Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The losses, and the logits they are about, for those who compare them with others'.

        Args:
            inputs: the backbone's maps.
            data_samples: the host's, one per image.
        """
        metainfos = [sample.metainfo for sample in data_samples]
        valid_shapes = shapes_of(metainfos, inputs[0])
        out = self.branches(inputs, self.training_policy, 'masked', valid_shapes)
        (logits,), decisions = out.merged.feats, out.merged.decisions
        losses = self.loss_by_feat(logits if out.fine is None else out.fine, data_samples)
        if out.fine is not None:
            for name, part in (('coarse', out.coarse), ('merged', logits)):
                own = self.loss_by_feat(part, data_samples)
                losses |= {f'{name}.{key}': value for key, value in own.items()}
            if self.distill_loss is not None:
                losses['loss_coarse_distill'] = self.distill_loss(out.coarse, out.fine.detach())
        return logits, {**losses, **self.decision_losses(decisions)}

    def decision_losses(self, decisions: Sequence[Decision]) -> dict[str, Tensor]:
        """The keep-ratio loss and, to be logged, the fraction of tiles that was kept."""
        if not decisions:
            return {}
        kept = torch.stack([decision.kept_fraction().detach().mean() for decision in decisions])
        return dict(loss_keep_ratio=self.keep_ratio_loss(decisions), tile_ratio=kept.mean())

    def predict(
        self, inputs: Sequence[Tensor], batch_img_metas: list[dict], test_cfg: Any
    ) -> Tensor:
        """The host's prediction; each image's meta also gets the fraction of tiles kept.

        Appended to the list ``kept_tiles``, once for each window in sliding inference.
        """
        out = self.forward_sparse(inputs, valid_shapes=shapes_of(batch_img_metas, inputs[0]))
        for decision in out.decisions:
            for meta, kept in zip(batch_img_metas, decision.kept_fraction(), strict=False):
                meta.setdefault('kept_tiles', []).append(kept)
        return self.predict_by_feat(out.feats[0], batch_img_metas)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        # A dense head's layers are where the coarse ones start from.
        own = f'{prefix}fast_path.'
        if self.fast_path is not None and not any(key.startswith(own) for key in state_dict):
            for name in self.fast_path.state_dict():
                if prefix + name in state_dict:
                    state_dict[own + name] = state_dict[prefix + name].clone()
        super()._load_from_state_dict(state_dict, prefix, *args)


def to_pixels(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H, W, C), without a copy of a channels-last map."""
    return x.permute(0, 2, 3, 1)


def to_maps(x: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, C, H, W) in channels-last memory, without a copy."""
    return x.permute(0, 3, 1, 2)


def finish(layer: ConvModule, x: Tensor) -> Tensor:
    """What a layer makes of its convolution's result, (B, C, H, W), taken without bias."""
    if layer.conv.bias is not None:
        x = x + layer.conv.bias[:, None, None]
    if layer.with_norm:
        x = layer.norm(x)
    return layer.activate(x) if layer.with_activation else x


def kernel_of(fusion: ConvModule, level: int) -> Tensor:
    """(C, C, 3, 3): the part of a fusion convolution's weights that a level meets."""
    width = fusion.conv.out_channels
    return fusion.conv.weight[:, level * width : (level + 1) * width]


def shapes_of(
    metainfos: Sequence[Mapping[str, Any]], finest: Tensor
) -> list[tuple[int, int]] | None:
    """Real (h, w) of each image in pixels, if the metas say so; ``finest`` is the finest map."""
    height, width = finest.shape[-2:]
    size = (FINEST_STRIDE * height, FINEST_STRIDE * width)
    return real_shapes(metainfos, finest.shape[0], size)


def check_coarse_stride(stride: int) -> int:
    """Return how many locations of the finest level one coarse location stands for.

    Raises:
        ValueError: if ``stride`` is none of 8, 16, 32.
    """
    if stride not in (8, 16, 32):
        raise ValueError(f'coarse_stride must be 8, 16 or 32, got {stride!r}')
    return stride // FINEST_STRIDE


def check_tile_size(size: int, step: int) -> int:
    """Return the size, or say what is wrong with it.

    Args:
        size: side of a tile in locations of the finest level.
        step: those that a coarse location stands for.

    Raises:
        ValueError: if a tile is not made of whole coarse locations.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1 or size % step:
        raise ValueError(
            f'tile_size must be a multiple of coarse_stride / {FINEST_STRIDE}, here of {step}, '
            f'got {size!r}'
        )
    return size


def check_tile_ratio(ratio: float) -> float:
    """Return the ratio as a float, or say what is wrong with it.

    Raises:
        TypeError: if it is no number.
        ValueError: if it is outside [0, 1].
    """
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)):
        raise TypeError(f'tile_ratio must be a number, got {ratio!r}')
    if not 0 <= ratio <= 1:
        raise ValueError(f'tile_ratio must lie in [0, 1], got {ratio}')
    return float(ratio)


def check_convolution(name: str, layer: ConvModule) -> None:
    """Refuse a layer that can't be computed tile by tile.

    Raises:
        ValueError: if it is no plain convolution, or its norm looks beyond a location.
    """
    if type(layer.conv) is not nn.Conv2d or tuple(layer.order) != ('conv', 'norm', 'act'):
        raise ValueError(
            f'DynamicUPerHead needs a plain convolution as {name}, got '
            f'{type(layer.conv).__name__}: leave conv_cfg out, or use UPerHead'
        )
    if layer.with_norm and not isinstance(layer.norm, _BatchNorm):
        raise ValueError(
            f'DynamicUPerHead needs a norm in which locations do not depend on each other, got '
            f'{type(layer.norm).__name__} in {name}: use BN or SyncBN, or UPerHead'
        )
