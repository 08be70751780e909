"""Models measured by gpu.py: the hosts' and ours with the same weights, and ways to run them."""

import copy
import functools
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peer_models
import torch
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from mmdyn.analysis.measuring import Run
from mmdyn.compat import require_host
from mmdyn.models import DynamicSwin
from mmdyn.models.backbones.base import DynamicBackbone
from mmdyn.registry import MODELS
from mmdyn.sparsity import FixedPolicy, RandomPolicy
from mmdyn.sparsity.ratios import falling_keep_ratios

MODES = EAGER, GRAPH, COMPILED = 'eager', 'graph', 'compiled'
Row = dict[str, Any]
Item = Tensor | list[Tensor]
"""A batch: images, or a head's input maps."""

HEAD = dict(
    in_index=[0, 1, 2, 3],
    pool_scales=(1, 2, 3, 6),
    channels=512,
    num_classes=150,
    norm_cfg=dict(type='BN'),
    align_corners=False,
)
# Settings of ours that differ from mmseg's head.
HEADS: dict[str, dict[str, Any]] = {
    'exact': dict(tile_ratio=1.0),
    'static': dict(tile_ratio=0.0, coarse_stride=8),
    'tiles': dict(tile_ratio=0.125),
}
GROUPS = {'upernet': 'segmentor', 'uperhead': 'head'}
"""Group by the first word of a model's name; others are backbones."""
WARMUP = 3


@dataclass(frozen=True)
class Contenders:
    """A host's model and ours with its weights, on one device.

    Attributes:
        hosts: names of the host's; ours are compared with the fastest.
        dense: name of our dense one.
        runs: functions of a batch, by name.
        channels: of the maps in a batch, from stride 4 on; None = a batch is images.
        random: ours with random selection, fixed by :func:`draw`.
    """

    hosts: tuple[str, ...]
    dense: str
    runs: dict[str, Run]
    channels: tuple[int, ...] | None = None
    random: DynamicBackbone | None = None


@functools.cache
def build(model: str, shape: tuple[int, int], device: torch.device, tiny: bool) -> Contenders:
    """Build the contenders of a model in evaluation mode.

    Args:
        model: family and size, as in :mod:`peer_models`; UperNets and their heads (``upernet-t``,
            ``uperhead-t``) by the size of their Swin.
        shape: (h, w) of the images, for a ViT.
        device: of the models.
        tiny: whether to use tiny models.
    """
    family, _, size = model.partition('-')
    size = 'tiny' if tiny else size
    found = models_of(family, size, shape if family == 'deit' else None)
    models = {name: copy.deepcopy(one).to(device) for name, one in found.items()}
    if family == 'upernet':
        return Contenders(('mmseg',), 'exact', {k: logits_of(one) for k, one in models.items()})
    if family == 'uperhead':
        return Contenders(('mmseg',), 'exact', models, channels=tuple(_head(size)['in_channels']))
    sparse = models.pop('sparse')
    dense, random = copy.deepcopy(sparse), copy.deepcopy(sparse)
    count = len(sparse.predictors)
    ladder = getattr(sparse, 'keep_ratio_ladder', 'linear')
    dense.set_keep_ratios((1.0,) * count)
    for one in (sparse, random):
        one.set_keep_ratios(falling_keep_ratios(0.7, count, ladder))
    runs: dict[str, Run] = dict(models)
    if family == 'convnext':
        runs['timm'] = peer_models.intermediates(models['timm'])
        runs['timm channels-last'] = peer_models.channels_last(models['timm'])
    elif family == 'deit':
        runs['timm'] = peer_models.vit_maps(models['timm'], sparse)
    hosts = tuple(runs)
    runs |= dict(sparse=sparse, dense=dense, random=random)
    return Contenders(hosts, 'dense', runs, random=random)


@functools.cache
def models_of(family: str, size: str, shape: tuple[int, int] | None = None) -> dict[str, nn.Module]:
    """The host's model and ours on the CPU, with the same weights; built once for all devices."""
    if family == 'swin':
        peer = peer_models.host_swin('mmseg', size)
        ours = peer_models.load_from_peer(DynamicSwin(**peer_models.SWIN[size]), peer)
        return dict(mmseg=peer, sparse=ours)
    if family == 'convnext':
        return dict(zip(('timm', 'sparse'), peer_models.convnext_pair(size), strict=True))
    if family == 'deit':
        return dict(zip(('timm', 'sparse'), peer_models.vit_pair(shape, size), strict=True))
    require_host('mmseg')
    init_default_scope('mmseg')
    torch.manual_seed(0)
    configs = _heads(size) if family == 'uperhead' else _segmentors(size)
    models = {name: MODELS.build(config).eval() for name, config in configs.items()}
    weights = peer_models.randomise(models['mmseg']).state_dict()
    for model in models.values():
        model.load_state_dict(weights, strict=False)
    return models


def head_config(width: int, tiny: bool) -> dict[str, Any]:
    """Config of a UPerHead without type, for maps of ``width << i`` channels."""
    small = dict(channels=16, num_classes=5) if tiny else {}
    return HEAD | small | dict(in_channels=[width << i for i in range(4)])


def _head(size: str) -> dict[str, Any]:
    return head_config(peer_models.SWIN[size]['embed_dims'], size == 'tiny')


def _heads(size: str) -> dict[str, dict[str, Any]]:
    """Configs of mmseg's head and ours."""
    ours = {
        name: dict(type='mmdyn.DynamicUPerHead', **_head(size), **changed)
        for name, changed in HEADS.items()
    }
    return dict(mmseg=dict(type='mmseg.UPerHead', **_head(size)), **ours)


def _segmentors(size: str) -> dict[str, dict[str, Any]]:
    """Configs of whole UperNets, with a sparse backbone unless the head is exact."""
    configs = {}
    for name, head in _heads(size).items():
        backbone = dict(type='mmseg.SwinTransformer', **peer_models.SWIN[size])
        if name != 'mmseg':
            ratios = (1.0,) * 3 if name == 'exact' else (0.7, 0.5, 0.3)
            backbone |= dict(type='mmdyn.DynamicSwin', keep_ratios=ratios)
        configs[name] = dict(
            type='mmseg.EncoderDecoder' if name == 'mmseg' else 'mmdyn.DynamicEncoderDecoder',
            backbone=backbone,
            decode_head=head,
            train_cfg=dict(),
            test_cfg=dict(mode='whole'),
        )
    return configs


def logits_of(model: nn.Module) -> Run:
    """A segmentor, from images to logits of their size."""

    def run(images: Tensor) -> Tensor:
        size = tuple(images.shape[-2:])
        meta = dict(img_shape=size, pad_shape=size, ori_shape=size)
        return model.encode_decode(images, [dict(meta) for _ in images])

    return run


def batches_for(
    contenders: Contenders, shape: tuple[int, int], batch: int, device: torch.device, count: int
) -> list[Item]:
    """Different batches of noise on a device."""
    generator = torch.Generator(device).manual_seed(0)

    def noise(channels: int, stride: int) -> Tensor:
        size = [-(-side // stride) for side in shape]
        return torch.randn(batch, channels, *size, generator=generator, device=device)

    if contenders.channels is None:
        return [noise(3, 1) for _ in range(count)]
    levels = [(channels, 4 << i) for i, channels in enumerate(contenders.channels)]
    return [[noise(*level) for level in levels] for _ in range(count)]


@torch.inference_mode()
def draw(contenders: Contenders, item: Item) -> None:
    """Fix the random selection for batches of this shape, which later forwards replay."""
    if contenders.random is not None:
        random = contenders.random
        random.policy = FixedPolicy(random.forward_sparse(item, policy=RandomPolicy(0)).decisions)


def moved(item: Item, device: torch.device, copy: bool = False) -> Item:
    """Move a batch to a device, as a copy if requested."""
    if isinstance(item, Tensor):
        return item.to(device, copy=copy)
    return [x.to(device, copy=copy) for x in item]


def tensors(value: Any) -> list[Tensor]:
    """Tensors of a batch or an output."""
    return [value] if isinstance(value, Tensor) else list(value)


def deviation(ours: Any, theirs: Any) -> float:
    """Largest difference on the first image, relative to each map's largest value.

    Rounded to two digits; outputs may be on different devices.
    """
    pair = ([x[:1].float().cpu() for x in tensors(value)] for value in (ours, theirs))
    return float(f'{peer_models.deviation(*pair):.2g}')


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Allow or forbid TF32 for fp32 products and convolutions on CUDA within the block."""
    places = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [place.allow_tf32 for place in places]
    for place in places:
        place.allow_tf32 = allowed
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.allow_tf32 = value


def eager(run: Run, dtype: str, device: torch.device) -> Run:
    """Run eagerly, under autocast for ``'bf16'``."""
    if dtype != 'bf16':
        return run

    def mixed(item: Item) -> Any:
        # Entered in every call, so that a graph includes the casts of weights.
        with torch.autocast(device.type, torch.bfloat16):
            return run(item)

    return mixed


def compiled(run: Run, dtype: str, device: torch.device) -> Run:
    """Run through ``torch.compile`` for fixed shapes; on CUDA with graphs."""
    if device.type == 'cuda':
        fast = torch.compile(run, dynamic=False, mode='reduce-overhead')
    else:
        fast = torch.compile(run, dynamic=False, backend='eager')
    return eager(fast, dtype, device)


def captured(run: Run, item: Item, pool: Any) -> Run:
    """Capture a forward as a CUDA graph; batches are copied into its input.

    Args:
        run: to capture.
        item: a batch; all others must have its shape.
        pool: memory shared by graphs, as outputs are not used after another one runs.

    Raises:
        RuntimeError: if the forward synchronises or can't be captured.
    """
    static = moved(item, tensors(item)[0].device, copy=True)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARMUP):
            run(static)
        # Checked before, as a failed capture leaves torch's CUDA generator unusable.
        with sync_debug('error'):
            run(static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        out = run(static)

    def replay(item: Item) -> Any:
        for mine, given in zip(tensors(static), tensors(item), strict=True):
            mine.copy_(given)
        graph.replay()
        return out

    return replay


def count_synchronisations(run: Callable[[], Any]) -> Row:
    """Count the synchronisations with the device in a warm forward.

    Returns:
        ``count``; if it is not 0, ``places`` as ``folder/file:line`` with counts, and the ``error``
        that torch raises if none is allowed.
    """
    for _ in range(WARMUP):
        run()
    with sync_debug('warn'), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        run()
    places = Counter(
        f'{"/".join(Path(one.filename).parts[-2:])}:{one.lineno}'
        for one in caught
        if 'called a synchronizing' in str(one.message)
    )
    if not places:
        return dict(count=0)
    row = dict(count=places.total(), places=', '.join(f'{k} x{v}' for k, v in places.items()))
    try:
        with sync_debug('error'):
            run()
    except RuntimeError as error:
        row['error'] = str(error).splitlines()[0]
    return row


@contextmanager
def sync_debug(mode: str) -> Iterator[None]:
    """Make torch raise (``'error'``) or warn (``'warn'``) on synchronisations in the block."""
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode('default')


def first_line(error: Exception) -> str:
    """Short description of an error for a row."""
    lines = str(error).strip().splitlines()
    return ': '.join([type(error).__name__, *lines[:1]])[:200]
