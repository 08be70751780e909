"""Models measured by peers.py: dense ones of others, and ours with the same weights.

Every pair is first compared on an image; outputs must agree at keep ratio 1.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
from torch import Tensor, nn

from mmdyn.analysis.counting import count_macs
from mmdyn.analysis.measuring import Measurement, Run
from mmdyn.compat import require_host
from mmdyn.converters.additions import is_new
from mmdyn.converters.formats import to_our_names
from mmdyn.models import DynamicConvNeXt, DynamicSwin, DynamicViT
from mmdyn.models.backbones.base import DynamicBackbone
from mmdyn.models.compiled import compile_regions
from mmdyn.sparsity import GumbelPolicy, Policy, RandomPolicy, TopKPolicy, keep_ratio_loss
from mmdyn.sparsity.ratios import falling_keep_ratios

TOLERANCE = 1e-4
SWIN = dict(
    t=dict(embed_dims=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24)),
    s=dict(embed_dims=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24)),
    b=dict(embed_dims=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32)),
    tiny=dict(embed_dims=16, depths=(1, 1, 5, 1), num_heads=(1, 1, 2, 2)),
)
CONVNEXT = dict(
    t=dict(depths=(3, 3, 9, 3), channels=(96, 192, 384, 768)),
    s=dict(depths=(3, 3, 27, 3), channels=(96, 192, 384, 768)),
    b=dict(depths=(3, 3, 27, 3), channels=(128, 256, 512, 1024)),
    tiny=dict(depths=(1, 1, 5, 1), channels=(8, 16, 32, 64)),
)
VIT = dict(
    s=dict(embed_dims=384, num_layers=12, num_heads=6),
    tiny=dict(embed_dims=16, num_layers=4, num_heads=2),
)
# Rows, inner dimension and columns of matrix products; the last is of Swin-S's MLP at 512x512.
PRODUCTS = ((1024, 1024, 1024), (2048, 2048, 2048), (1024, 384, 1536))
LEARNING_RATE = 1e-6
RATIO_LOSS_WEIGHT = 10.0


@dataclass(frozen=True)
class Built:
    """Contenders of a group.

    Attributes:
        contenders: functions of (B, 3, h, w) images, by name.
        deviations: of each peer's maps from ours at keep ratio 1, relative.
        macs: of contenders that can't be counted by running them.
    """

    contenders: dict[str, Run]
    deviations: dict[str, float]
    macs: dict[str, int] = field(default_factory=dict)


def deviation(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """Largest difference of two backbones' maps, relative to the largest value of each map."""
    pairs = list(zip(ours, theirs, strict=True))
    if any(a.shape != b.shape for a, b in pairs):
        raise ValueError(f'maps of different shapes: {[(a.shape, b.shape) for a, b in pairs]}')
    return max((torch.dist(a, b, p=float('inf')) / b.abs().max()).item() for a, b in pairs)


def in_bf16(run: Run) -> Run:
    """Run under autocast, like the hosts' mixed precision."""
    return torch.autocast('cpu', torch.bfloat16)(run)


def randomise(model: nn.Module) -> nn.Module:
    """Add noise to parameters that are initialised to constants; returns the model.

    Otherwise comparisons would miss differences: layer scales, for example, start at 1e-6, where a
    block does nothing.
    """
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2 or 'bias_table' in name or 'embed' in name or 'token' in name:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data += 0.1 * noise
    return model


def load_from_peer(ours: DynamicBackbone, peer: nn.Module) -> DynamicBackbone:
    """Load a dense model's weights into ours; returns it in evaluation mode.

    Raises:
        RuntimeError: if a dense parameter other than output norms is missing.
    """
    missing, unexpected = ours.load_state_dict(
        to_our_names(dict(peer.state_dict()), ours), strict=False
    )
    parameters = {name for name, _ in ours.named_parameters()}
    lost = [
        name
        for name in missing
        if name in parameters and not is_new(name) and not name.startswith('norm')
    ]
    if lost or unexpected:
        raise RuntimeError(f'weights do not fit: {lost[:3]} missing, {unexpected[:3]} unknown')
    return ours.eval()


@torch.inference_mode()
def compare(
    ours: DynamicBackbone, peers: dict[str, Callable[[Tensor], Sequence[Tensor]]], images: Tensor
) -> dict[str, float]:
    """Deviation of each peer from ours at keep ratio 1.

    Args:
        ours: set to keep ratio 1.
        peers: from image to maps, by name.
        images: (B, 3, h, w); the first one is used.

    Raises:
        RuntimeError: if a deviation exceeds :data:`TOLERANCE`.
    """
    ours.set_keep_ratios((1.0,) * len(ours.predictors))
    image = images[:1]
    maps = ours(image)
    found = {name: deviation(maps, tuple(peer(image))) for name, peer in peers.items()}
    for name, value in found.items():
        if not value <= TOLERANCE:
            raise RuntimeError(
                f'{type(ours).__name__} at keep ratio 1 deviates from {name} by {value:.1e}, more '
                f'than {TOLERANCE}: they are not the same function and can not be compared'
            )
    return found


def sparse_contenders(ours: DynamicBackbone, run: Run | None = None) -> dict[str, Run]:
    """Ours dense, sparse at 0.7, and the same with random selection.

    Args:
        ours: the backbone.
        run: function to call; None = the backbone.
    """
    run = ours if run is None else run
    count = len(ours.predictors)
    ladder = falling_keep_ratios(0.7, count, getattr(ours, 'keep_ratio_ladder', 'linear'))
    return {
        'dense': at(ours, (1.0,) * count, TopKPolicy(), run),
        'sparse': at(ours, ladder, TopKPolicy(), run),
        'random': at(ours, ladder, RandomPolicy(0), run),
    }


def at(ours: DynamicBackbone, keep_ratios: Sequence[float], policy: Policy, run: Run) -> Run:
    """Set a backbone's ratios and policy in every call of ``run``."""

    def run_at(images: Tensor) -> Any:
        ours.set_keep_ratios(keep_ratios)
        ours.policy = policy
        return run(images)

    return run_at


def host_swin(host: str, size: str) -> nn.Module:
    """The host's own SwinTransformer, randomised, in evaluation mode.

    Raises:
        ImportError: if the host is not installed.
    """
    require_host(host)
    if host == 'mmseg':
        from mmseg.models import SwinTransformer
    else:
        from mmdet.models import SwinTransformer
    torch.manual_seed(0)
    model = randomise(SwinTransformer(**SWIN[size]))
    model.eval()  # not chained: returns None
    return model


def swin(images: Tensor, size: str, hosts: Sequence[str] = ('mmseg',)) -> Built:
    """Swin of the hosts and ours.

    Args:
        images: (B, 3, h, w) for comparison and counting.
        size: a key of :data:`SWIN`.
        hosts: to include.
    """
    peers = {host: host_swin(host, size) for host in hosts}
    ours = load_from_peer(DynamicSwin(**SWIN[size]), peers[hosts[0]])
    return Built({**peers, **sparse_contenders(ours)}, compare(ours, peers, images))


def swin_mixed(images: Tensor, size: str) -> Built:
    """mmseg's Swin in fp32 and under bf16 autocast, and ours under autocast."""
    built = swin(images, size)
    mixed = {f'{name} bf16': in_bf16(run) for name, run in built.contenders.items()}
    return Built({'mmseg': built.contenders['mmseg'], **mixed}, built.deviations)


def swin_compiled(images: Tensor, size: str) -> Built:
    """mmseg's Swin, ours eager and compiled, and plain matrix products."""
    built = swin(images, size)
    # The compiled copy has the multiply-adds of the eager one.
    ours = load_from_peer(DynamicSwin(**SWIN[size]), built.contenders['mmseg'])
    fast = sparse_contenders(ours, compile_regions(ours))
    macs = {
        f'{name} compiled': count_macs(lambda run=run: run(images))
        for name, run in built.contenders.items()
    }
    contenders = {
        **built.contenders,
        **{f'{name} compiled': fast[name] for name in ('sparse', 'random')},
        **products(),
    }
    return Built(
        contenders,
        built.deviations,
        {name: value for name, value in macs.items() if name in contenders},
    )


def product(rows: int, inner: int, columns: int) -> Run:
    """A matrix product that ignores its argument."""
    left, right = torch.randn(rows, inner), torch.randn(inner, columns)
    return lambda _: left @ right


def products() -> dict[str, Run]:
    """The matrix products of :data:`PRODUCTS`, by name."""
    return {f'product {"x".join(map(str, sides))}': product(*sides) for sides in PRODUCTS}


def product_rate(found: Mapping[Any, Measurement]) -> float:
    """The best rate among the measured matrix products, in multiply-adds per ms."""
    products = [one for name, one in found.items() if str(name).startswith('product')]
    return max(one.macs / min(one.latency.samples) for one in products)


def intermediates(model: nn.Module) -> Run:
    """All stages' maps of a timm model."""
    return lambda x: model.forward_intermediates(x, indices=4, intermediates_only=True)


def convnext_pair(size: str) -> tuple[nn.Module, DynamicConvNeXt]:
    """timm's ConvNeXt and ours with its weights, ``size`` a key of :data:`CONVNEXT`."""
    arch = CONVNEXT[size]
    torch.manual_seed(0)
    peer = timm.create_model('convnext_small', depths=arch['depths'], dims=arch['channels'])
    peer = randomise(peer).eval()
    return peer, load_from_peer(DynamicConvNeXt(arch=arch), peer)


def convnext(images: Tensor, size: str) -> Built:
    """timm's ConvNeXt in both memory formats, and ours.

    timm's has norms on the last map only and is timed so; for the comparison ours are applied.
    """
    peer, ours = convnext_pair(size)
    maps = intermediates(peer)
    deviations = compare(ours, {'timm': with_norms(maps, ours)}, images)
    peers = {'timm': maps, 'timm channels-last': channels_last(peer)}
    return Built({**peers, **sparse_contenders(ours)}, deviations)


def with_norms(maps: Run, ours: DynamicConvNeXt) -> Run:
    """Maps of timm's ConvNeXt with the output norms of ours."""

    def normed(x: Tensor) -> list[Tensor]:
        norms = [getattr(ours, f'norm{i}') for i in range(4)]
        feats = zip(norms, maps(x), strict=True)
        return [norm(feat.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for norm, feat in feats]

    return normed


def channels_last(peer: nn.Module) -> Run:
    """Maps of a channels-last copy of a timm model."""
    maps = intermediates(copy.deepcopy(peer).to(memory_format=torch.channels_last))
    return lambda x: maps(x.contiguous(memory_format=torch.channels_last))


def vit_pair(shape: tuple[int, int], size: str) -> tuple[nn.Module, DynamicViT]:
    """timm's ViT for images of ``shape``, and ours with its weights."""
    arch = VIT[size]
    torch.manual_seed(0)
    peer = timm.create_model(
        'deit_small_patch16_224',
        img_size=shape,
        embed_dim=arch['embed_dims'],
        depth=arch['num_layers'],
        num_heads=arch['num_heads'],
    )
    peer = randomise(peer).eval()
    return peer, load_from_peer(DynamicViT(img_size=shape, **arch), peer)


def vit_maps(peer: nn.Module, ours: DynamicViT) -> Run:
    """The maps of timm's ViT at the output indices of ours."""
    indices = list(ours.out_indices)
    return lambda x: peer.forward_intermediates(
        x, indices=indices, norm=False, intermediates_only=True
    )


def vit(images: Tensor, size: str) -> Built:
    """timm's ViT and ours, with the same four maps."""
    peer, ours = vit_pair(tuple(images.shape[-2:]), size)
    peers = {'timm': vit_maps(peer, ours)}
    return Built({**peers, **sparse_contenders(ours)}, compare(ours, peers, images))


def swin_training(images: Tensor, size: str, dtype: torch.dtype | None = None) -> Built:
    """A training step of mmseg's Swin and of ours in masked execution.

    Of the backbone only: the loss is the mean square of every map, plus ours the keep-ratio loss.

    Args:
        images: (B, 3, h, w) for comparison; models move to their device.
        size: a key of :data:`SWIN`.
        dtype: of autocast in the forward; None = no autocast.
    """
    device = images.device
    peer = host_swin('mmseg', size).to(device)
    ours = load_from_peer(DynamicSwin(**SWIN[size]), peer).to(device)
    autocast = torch.autocast(device.type, dtype, enabled=dtype is not None)
    deviations = compare(ours, {'mmseg': peer}, images)
    ours.set_keep_ratios(falling_keep_ratios(0.7, len(ours.predictors)))
    for model in (peer, ours):
        model.train()  # not chained: mmseg's returns None

    @autocast
    def dense_loss(images: Tensor) -> Tensor:
        return sum(feat.square().mean() for feat in peer(images))

    @autocast
    def sparse_loss(images: Tensor) -> Tensor:
        out = ours.forward_sparse(images)
        task = sum(feat.square().mean() for feat in out.feats)
        return task + RATIO_LOSS_WEIGHT * keep_ratio_loss(out.decisions)

    train = step(ours, sparse_loss)
    contenders = {
        'mmseg': step(peer, dense_loss),
        'masked': choosing(ours, GumbelPolicy(), train),
        'masked random': choosing(ours, RandomPolicy(0), train),
    }
    # Of the forward; the backward takes about twice as many.
    dense, masked = (
        count_macs(lambda loss=loss: loss(images)) for loss in (dense_loss, sparse_loss)
    )
    macs = {'mmseg': dense, 'masked': masked, 'masked random': masked}
    return Built(contenders, deviations, macs)


def choosing(ours: DynamicBackbone, policy: Any, run: Run) -> Run:
    """Set a backbone's training policy in every call of ``run``."""

    def run_so(images: Tensor) -> Any:
        ours.training_policy = policy
        return run(images)

    return run_so


def step(model: nn.Module, loss: Callable[[Tensor], Tensor]) -> Run:
    """A training step: forward, backward, AdamW; gradients are freed afterwards.

    Args:
        model: to train.
        loss: of images, through the model.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)

    def run(images: Tensor) -> None:
        loss(images).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run
