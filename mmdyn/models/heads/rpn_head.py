"""RPN whose finest level is computed in full on the neck's tiles only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.models import RPNHead
from torch import Tensor, nn

from mmdyn.convolutions.fast import check_plain
from mmdyn.convolutions.kernels import convolve_valid
from mmdyn.models.init_order import init_then_load
from mmdyn.registry import MODELS
from mmdyn.sparsity.tile_routing import Pyramid, route_tiles

# Initial logit of the fast path: an object in 1 of 100 locations.
BACKGROUND_LOGIT = -4.6


@MODELS.register_module()
class DynamicRPNHead(RPNHead):
    """RPNHead that follows the tiles chosen by :class:`mmdyn.models.necks.DynamicFPN`.

    Takes the arguments and loads the state dict of mmdet's ``RPNHead``. In the finest level it runs
    on the neck's tiles; elsewhere one linear layer scores and regresses the anchors of a location
    from its features, initialised to predict background. Adds ``loss_tile_ratio``, the loss on the
    neck's decision.

    Args:
        args, kwargs: the host's.
        keep_ratio_loss: config of the loss on the decision.

    Raises:
        ValueError: if the head has more than one convolution or it is not a plain one.
    """

    def __init__(
        self,
        *args: Any,
        keep_ratio_loss: dict = dict(type='mmdyn.KeepRatioLoss'),  # noqa: B006, only read
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        check_plain('DynamicRPNHead', 'rpn_conv', self.rpn_conv)
        outputs = self.rpn_cls.out_channels + self.rpn_reg.out_channels
        self.fast_path = nn.Conv2d(self.in_channels, outputs, 1)
        self.keep_ratio_loss = MODELS.build(keep_ratio_loss)

    def init_weights(self) -> None:
        """Initialise like the host; the fast path predicts background everywhere."""
        init_then_load(self, super().init_weights, self.predict_background)

    def predict_background(self) -> None:
        """Initialise the fast path to predict background everywhere."""
        nn.init.zeros_(self.fast_path.weight)
        nn.init.zeros_(self.fast_path.bias)
        if self.use_sigmoid_cls:
            nn.init.constant_(self.fast_path.bias[: self.rpn_cls.out_channels], BACKGROUND_LOGIT)

    def forward(self, x: Pyramid) -> tuple[list[Tensor], list[Tensor]]:
        """Score and regress the anchors of each level, like the host.

        Raises:
            TypeError: if the maps are not from a DynamicFPN.
        """
        if not isinstance(x, Pyramid):
            raise TypeError(
                f'DynamicRPNHead needs the tiles of a mmdyn.DynamicFPN, got maps in a '
                f'{type(x).__name__}: set neck.type, or use the stock RPNHead'
            )
        if x.tiles is None:
            return super().forward(tuple(x))
        finest = route_tiles(x[0], x.tiles, self.slow_path, self.fast_path)
        score, box = finest.split([self.rpn_cls.out_channels, self.rpn_reg.out_channels], dim=1)
        scores, boxes = super().forward(tuple(x[1:]))
        return [score, *scores], [box, *boxes]

    def slow_path(self, x: Tensor) -> Tensor:
        """Apply the host's head, its 3x3 convolution without padding; scores before boxes."""
        x = F.relu(convolve_valid(self.rpn_conv, x))
        return torch.cat([self.rpn_cls(x), self.rpn_reg(x)], dim=1)

    def loss(self, x: Pyramid, batch_data_samples: Sequence[Any]) -> dict[str, Any]:
        """The host's losses and that of the decision."""
        return {**super().loss(x, batch_data_samples), **self.tile_losses(x)}

    def loss_and_predict(
        self, x: Pyramid, batch_data_samples: Sequence[Any], proposal_cfg: Any = None
    ) -> tuple[dict[str, Any], list[Any]]:
        """Like the host's, with the loss of the decision."""
        losses, results = super().loss_and_predict(x, batch_data_samples, proposal_cfg)
        return {**losses, **self.tile_losses(x)}, results

    def tile_losses(self, x: Pyramid) -> dict[str, Tensor]:
        """The keep-ratio loss and, for the log, the fraction of tiles kept."""
        if x.tiles is None:
            return {}
        decision = x.tiles.decision
        kept = decision.kept_fraction().detach().mean()
        return dict(loss_tile_ratio=self.keep_ratio_loss([decision]), tile_ratio=kept)
