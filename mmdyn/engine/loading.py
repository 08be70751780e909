"""Builds a config's model, of any host, and loads a checkpoint, without data or Runner."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmdyn.compat import SCOPES
from mmdyn.config_parts import is_pretrained, parts
from mmdyn.converters.additions import is_new
from mmdyn.converters.formats import dataset_meta_of, weights_of
from mmdyn.engine import config as edit
from mmdyn.engine.hooks.check_weights import no_logs
from mmdyn.guard import checkpoints_as_data, load_checkpoint
from mmdyn.models.adapters import use_adapter
from mmdyn.models.backbones.base import DynamicBackbone
from mmdyn.models.weights import Report, load_weights
from mmdyn.sparsity.ratios import falling_keep_ratios

RANDOM_WEIGHTS = 'random weights'


@dataclass(frozen=True)
class LoadedModel:
    """A model and its origin.

    Attributes:
        name: of the config, without folder and suffix.
        cfg: the whole config that the model was built from.
        model: the host's, in evaluation mode.
        weights: description of the weights, for reports.
        notes: messages for the user.
        dataset_meta: the checkpoint's metainfo of its data set, ``classes`` and ``palette``.
        report: what the checkpoint lacks; empty without one.
    """

    name: str
    cfg: Config
    model: nn.Module
    weights: str
    notes: tuple[str, ...]
    dataset_meta: Mapping[str, Any] = field(default_factory=dict)
    report: Report = field(default_factory=Report)

    @property
    def backbone(self) -> nn.Module:
        """The model's backbone."""
        return self.model.backbone

    @property
    def is_sparse(self) -> bool:
        """Whether the backbone is a sparse one."""
        return isinstance(self.backbone, DynamicBackbone)

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return next(self.model.parameters()).device

    def ladder(self, keep_ratio: float) -> tuple[float, ...]:
        """Keep ratios of a sparse backbone, derived from that of the first predictor.

        Raises:
            ValueError: if it is outside (0, 1].
        """
        kind = getattr(self.backbone, 'keep_ratio_ladder', 'linear')
        return falling_keep_ratios(keep_ratio, len(self.backbone.predictors), kind)


def load_model(
    config: str,
    checkpoint: str | None = None,
    *,
    keep_ratio: float | None = None,
    keep_ratios: Sequence[float] | None = None,
    cfg_options: dict[str, Any] | None = None,
    device: str | torch.device = 'cpu',
    trust_checkpoint: bool = False,
    seed: int = 0,
) -> LoadedModel:
    """Build a config's model and load its weights.

    A stock model with a sparse backbone is replaced by our adapter, as in training and testing.
    Pretrained weights of the config are not read.

    Args:
        config: a file, or a packaged one as ``mmdyn::NAME.py``.
        checkpoint: path or address of the whole model's weights; None = random weights.
        keep_ratio: of the first predictor; later ones decrease from it.
        keep_ratios: one per predictor.
        cfg_options: overrides, keys with dots.
        device: of the model.
        trust_checkpoint: whether to unpickle arbitrary objects in the file.
        seed: of the random weights.

    Raises:
        FileNotFoundError: if the config or the checkpoint is missing.
        ImportError: if the config's host can't be used.
        ValueError: if the config has no model with a backbone, an argument does not fit it, or
            torch can't use the device.
    """
    check_device(device)
    cfg = edit.load_config(config, cfg_options)
    if cfg.get('default_scope') not in SCOPES or 'backbone' not in (cfg.get('model') or {}):
        raise ValueError(
            f'config {config} has no model of {" or ".join(SCOPES)} with a backbone (its '
            f'default_scope is {cfg.get("default_scope")!r}): give a complete config'
        )
    if checkpoint is not None:
        with checkpoints_as_data(trust_checkpoint), contextlib.redirect_stdout(io.StringIO()):
            content = load_checkpoint(checkpoint)
        state, _ = weights_of(content, checkpoint)
    notes = [use_adapter(cfg, training=False)]
    edit.set_keep_ratios(cfg, keep_ratio, None if keep_ratios is None else list(keep_ratios))
    with checkpoints_as_data(trust_checkpoint):
        model = build_model(cfg, seed)
    weights, dataset_meta, report = RANDOM_WEIGHTS, {}, Report()
    if checkpoint is not None:
        report = load_weights(model, state, checkpoint)
        dataset_meta = dataset_meta_of(content)
        weights = f'weights of {Path(checkpoint).name}'
        if dense := [name for name in report.missing if not is_new(name)]:
            notes.append(
                f'{checkpoint} lacks {len(dense)} tensors, which stay random: {dense[0]} ...'
            )
        elif report.missing:
            notes.append(f'{checkpoint} is a dense model: predictors and fast paths stay random')
    # Not chained: eval() of some hosts' backbones returns None.
    model.to(device).eval()
    name = Path(config.rpartition('::')[2]).stem
    notes = tuple(note for note in notes if note)
    return LoadedModel(name, cfg, model, weights, notes, dataset_meta, report)


def check_device(device: str | torch.device) -> None:
    """Check that torch can use a device.

    Raises:
        ValueError: if it can't.
    """
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f'--device {device} is not available: {error}. Use cpu, or cuda with a GPU'
        ) from error


@checkpoints_as_data()
def build_model(cfg: Config, seed: int = 0) -> nn.Module:
    """Build a config's model with random weights; removes pretrained ones from the config."""
    _drop_pretrained(cfg.model)
    if cfg.get('data_preprocessor'):
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    with (
        torch.random.fork_rng(devices=[]),
        contextlib.redirect_stdout(io.StringIO()),  # mmengine's logger keeps the first one
        no_logs(),
    ):
        torch.manual_seed(seed)
        model = MODELS.build(cfg.model)
        model.init_weights()
    return revert_sync_batchnorm(model)


def _drop_pretrained(model: Any) -> None:
    """Remove settings that load weights from a model's config."""
    for _, part in parts(model, 'model'):
        for key, value in part.items():
            inits = value if isinstance(value, list | tuple) else [value]
            loads = key == 'init_cfg' and any(map(is_pretrained, inits))
            if loads or (key in ('pretrained', 'teacher') and value is not None):
                part[key] = None
