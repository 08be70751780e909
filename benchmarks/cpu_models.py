"""Models measured by cpu_runtimes.py: the hosts' and ours with the same weights, by runtime."""

import contextlib
import copy
import functools
import multiprocessing
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gpu_models
import numpy as np
import peer_models
import torch
from gpu_models import first_line
from mmengine.registry import init_default_scope
from torch import Tensor, nn

import mmdyn
from mmdyn import deploy
from mmdyn.analysis.images import HostBatch
from mmdyn.analysis.lines import PARTS, Line
from mmdyn.analysis.measuring import Run
from mmdyn.analysis.progress import quietly
from mmdyn.analysis.stock import build_stock_model
from mmdyn.compat import require_host
from mmdyn.convolutions.precision import choose_precision
from mmdyn.deploy.graphs import as_tuple, require_packages
from mmdyn.deploy.parity import made_up_images
from mmdyn.engine.loading import load_model
from mmdyn.registry import MODELS
from mmdyn.sparsity import Policy, RandomPolicy, TopKPolicy

RUNTIMES = ('onnxruntime', 'openvino')
IMAGES = 4
DENSE, SPARSE = (1.0, 1.0, 1.0), (0.7, 0.5, 0.3)
HEADS = dict(
    ours=dict(coarse_stride=16, tile_size=16, tile_ratio=0.125),
    static=dict(coarse_stride=8, tile_size=16, tile_ratio=0.0),
)
"""Settings of ours that differ from mmseg's UPerHead; the first one supports any tile ratio."""
DETECTOR = 'mmdyn::mask_rcnn_dynfpn_dynswin-s_coco.py'
TINY_DETECTOR = 'mmdyn::mask_rcnn_dynfpn_dynswin_mini.py'


@dataclass(frozen=True)
class Contender:
    """A way to run a model.

    Attributes:
        run: a function of (1, 3, h, w) normalised images.
        same_as: contender whose outputs must agree; '' = no comparison.
        own: dense model of ours, or of the same runtime, as reference for savings; '' = none.
        counted_as: contender with the same multiply-adds; '' = they are counted.
        host: whether it is a dense model of others; ours are compared with the fastest of these.
        outputs: function whose outputs are compared; None = ``run``.
        differs: whether outputs may differ by rounding (which can change the selection) or a lower
            precision.
        timed: whether it is timed, or only used for comparison.
        dtype: of products.
    """

    run: Run
    same_as: str = ''
    own: str = ''
    counted_as: str = ''
    host: bool = False
    outputs: Run | None = None
    differs: bool = False
    timed: bool = True
    dtype: str = 'float32'


@dataclass(frozen=True)
class Options:
    """Settings for building a group.

    Attributes:
        images: (1, 3, h, w) each, normalised.
        tiny: whether to use tiny models.
        threads: of every runtime.
        runtimes: subset of :data:`RUNTIMES`.
        compile: whether to include Inductor.
        folder: for exported graphs.
    """

    images: Sequence[Tensor]
    tiny: bool
    threads: int
    runtimes: Sequence[str]
    compile: bool
    folder: Path

    @property
    def shape(self) -> tuple[int, int]:
        """(h, w) of the images."""
        return tuple(self.images[0].shape[-2:])


Found = dict[str, Contender | str]
"""Contenders by name, or a text with the reason why one is missing."""


def check_runtimes(without: Sequence[str]) -> list[str]:
    """Select the runtimes to measure.

    Raises:
        ValueError: if one of them is not installed.
    """
    taking_part = [name for name in RUNTIMES if name not in without]
    for name in taking_part:
        if find_spec(name) is None:
            raise ValueError(
                f'{name} is not installed: pip install -r requirements/benchmark.txt, or use '
                f'--without {name}'
            )
    if taking_part:
        require_packages('onnx')
    return taking_part


def images_of(shape: tuple[int, int]) -> list[Tensor]:
    """Different generated images of one size."""
    return list(made_up_images(IMAGES, shape).split(1))


class OwnProcess:
    """A contender in a separate process, so that mmdyn's process-wide settings don't affect it.

    Args:
        make: builds the function to run; must be picklable.
        images: that it will be called with.
        threads: of torch.
    """

    def __init__(self, make: Callable[[], Run], images: Sequence[Tensor], threads: int) -> None:
        self._indices = {id(image): i for i, image in enumerate(images)}
        self._pool = ProcessPoolExecutor(
            1,
            multiprocessing.get_context('spawn'),
            _start,
            (make, [image.numpy() for image in images], threads),
        )

    def __call__(self, image: Tensor) -> None:
        """Run it on one of the images."""
        self._pool.submit(_run, self._indices[id(image)]).result()

    def outputs(self, image: Tensor) -> tuple[Tensor, ...]:
        """Outputs for one of the images."""
        found = self._pool.submit(_run, self._indices[id(image)], True).result()
        return tuple(map(torch.from_numpy, found))

    def close(self) -> None:
        """End the process."""
        self._pool.shutdown()


_THERE: dict[str, Any] = {}


def _start(make: Callable[[], Run], images: Sequence[np.ndarray], threads: int) -> None:
    warnings.simplefilter('ignore')  # as in this process
    torch.set_num_threads(threads)
    with quietly():
        _THERE.update(run=make(), images=[torch.from_numpy(image) for image in images])


@torch.inference_mode()
def _run(index: int, outputs: bool = False) -> list[np.ndarray] | None:
    found = _THERE['run'](_THERE['images'][index])
    return [x.numpy() for x in as_tuple(found)] if outputs else None


def prepared(model: nn.Module, precision: str = 'float32') -> nn.Module:
    """Copy a model and prepare it for inference; returns the model itself if precision is ''."""
    return mmdyn.prepare_for_inference(copy.deepcopy(model), precision) if precision else model


def add_ways(precisions: Sequence[str], found: Found) -> dict[str, str]:
    """Ways to run ours, from suffix of the name to precision ('' = unprepared).

    Args:
        precisions: besides float32.
        found: gets the reasons why precisions are missing.
    """
    ways = {'': '', ' prepared': 'float32'}
    for precision in precisions:
        name = f' prepared, {precision}'
        try:
            choose_precision(precision)
            ways[name] = precision
        except ValueError as error:
            found[f'ours{name}'] = first_line(error)
    return ways


def in_bf16(run: Run, counted_as: str) -> Contender:
    """A host's model with bfloat16 autocast."""
    mixed = peer_models.in_bf16(run)
    return Contender(mixed, counted_as=counted_as, host=True, dtype='bfloat16')


def at(
    model: nn.Module,
    run: Run,
    keep_ratios: Sequence[float],
    tile_ratio: float,
    policy: Policy = TopKPolicy(),  # noqa: B008, has no state
) -> Run:
    """Set ratios and policy of a model of ours in every call of ``run``."""
    line = Line('', model, tuple(keep_ratios), policy, tile_ratio, policy)

    def run_at(images: Tensor) -> Any:
        line.apply()
        return run(images)

    return run_at


def segmentors(family: str, size: str) -> dict[str, nn.Module]:
    """UperNets with the same weights: the host's (``'stock'``), and ours by :data:`HEADS`.

    ``'dense'`` is the host's with our backbone at keep ratio 1, for export. With ConvNeXt, which
    mmseg takes from mmpretrain, the backbone of ``'stock'`` is ours, too.
    """
    require_host('mmseg')
    init_default_scope('mmseg')
    arch: dict[str, Any]
    if family == 'swin':
        arch, width = peer_models.SWIN[size], peer_models.SWIN[size]['embed_dims']
        ours, stock = 'mmdyn.DynamicSwin', dict(type='mmseg.SwinTransformer', **arch)
    else:
        arch = dict(arch=peer_models.CONVNEXT[size])
        ours, width = 'mmdyn.DynamicConvNeXt', peer_models.CONVNEXT[size]['channels'][0]
        stock = dict(type=ours, keep_ratios=DENSE, **arch)
    head = gpu_models.head_config(width, size == 'tiny')
    parts = dict(
        stock=(stock, dict(type='mmseg.UPerHead')),
        dense=(dict(type=ours, keep_ratios=DENSE, **arch), dict(type='mmseg.UPerHead')),
    )
    for name, changed in HEADS.items():
        backbone = dict(type=ours, keep_ratios=SPARSE, **arch)
        parts[name] = backbone, dict(type='mmdyn.DynamicUPerHead', **changed)
    torch.manual_seed(0)
    models = {}
    for name, (backbone, own_head) in parts.items():
        kind = 'mmdyn.DynamicEncoderDecoder' if name in HEADS else 'mmseg.EncoderDecoder'
        models[name] = MODELS.build(
            dict(
                type=kind,
                backbone=backbone,
                decode_head={**head, **own_head},
                train_cfg=dict(),
                test_cfg=dict(mode='whole'),
            )
        ).eval()
    weights = peer_models.randomise(models['stock']).state_dict()
    for model in models.values():
        model.load_state_dict(weights, strict=False)
    return models


def stock_segmentor(family: str, size: str) -> Run:
    """The host's UperNet, from images to logits."""
    return gpu_models.logits_of(segmentors(family, size)['stock'])


def segmentor(
    options: Options,
    family: str,
    size: str,
    few: bool = True,
    precisions: Sequence[str] = (),
) -> Found:
    """UperNet, from images to logits of their size.

    Args:
        options: see :class:`Options`.
        family, size: of the backbone, as in :mod:`peer_models`.
        few: whether to omit random selection, and unprepared variants of ours except the exact one.
        precisions: of prepared models of ours, besides float32; bfloat16 adds the host's autocast.
    """
    size = 'tiny' if options.tiny else size
    models = segmentors(family, size)
    logits = gpu_models.logits_of
    host = 'mmseg' if family == 'swin' else 'stand-in'
    kept = f'{host} eager, memory kept'
    found: Found = {kept: Contender(logits(models['stock']), host=True)}
    make = functools.partial(stock_segmentor, family, size)
    found[f'{host} eager'] = elsewhere(make, options, kept)
    if options.compile:
        run = compiled(logits(models['stock']))
        found[f'{host} compiled'] = Contender(run, kept, counted_as=kept, host=True)
    else:
        found[f'{host} compiled'] = 'only with --compile'
    if 'bfloat16' in precisions:
        found[f'{host} eager, bfloat16 autocast'] = in_bf16(logits(models['stock']), kept)
    found[f'{host} prepared'] = Contender(logits(prepared(models['stock'])), kept)

    tiles, coarse = 'tiles 1/8 + sparse backbone', 'ours static stride 8 + sparse backbone'
    ratios = {'exact': (DENSE, 1.0), 'sparse': (SPARSE, 1.0), tiles: (SPARSE, 0.125)}
    for suffix, precision in add_ways(precisions, found).items():
        ours, static = (prepared(models[name], precision) for name in ('ours', 'static'))
        lower = precision in precisions
        more: dict[str, Any] = dict(dtype=precision or 'float32')
        own = f'ours exact{suffix}'
        for name, both in ratios.items():
            plain, exact = f'ours {name}', name == 'exact'
            same = kept if exact else plain if suffix else ''
            found[plain + suffix] = Contender(
                at(ours, logits(ours), *both),
                same,
                '' if exact else own,
                differs=not exact or lower,
                timed=bool(suffix) or exact or not few,
                **more,
            )
        found[coarse + suffix] = Contender(
            at(static, logits(static), SPARSE, 0.0),
            coarse if suffix else '',
            own,
            differs=True,
            timed=bool(suffix) or not few,
            **more,
        )
        if precision and not few:
            random = at(ours, logits(ours), SPARSE, 0.125, RandomPolicy(0))
            found[f'ours random {tiles}{suffix}'] = Contender(random, own=own, **more)
    graphs = {'dense': ('dense', kept, ''), coarse: ('static', coarse, 'dense')}
    for name, (model, same, own) in graphs.items():
        path = exported(models[model], options, model) if options.runtimes else ''
        for runtime in RUNTIMES:
            key = f'{name}, {runtime}' if own else f'{runtime} {name}'
            found[key] = contender_of(runtime, path, options, same, own and f'{runtime} {own}')
    return found


def elsewhere(make: Callable[[], Run], options: Options, same_as: str) -> Contender:
    """A host's model in a separate process."""
    run = OwnProcess(make, options.images, options.threads)
    return Contender(run, same_as, counted_as=same_as, host=True, outputs=run.outputs)


def exported(model: nn.Module, options: Options, name: str) -> Path | str:
    """Export a model to ONNX; returns the path, or the reason of a failure."""
    path = options.folder / f'{name}.onnx'
    try:
        program = deploy.trace(deploy.exportable(model), torch.zeros_like(options.images[0]))
        deploy.export_onnx(program, path, {})
    except Exception as error:  # continue with the other contenders
        return first_line(error)
    return path


def contender_of(
    runtime: str, path: Path | str, options: Options, same_as: str, own: str
) -> Contender | str:
    """An exported graph in a runtime, or the reason why it is missing."""
    if runtime not in options.runtimes:
        return f'left out by --without {runtime}'
    if isinstance(path, str):
        return path
    try:
        load = openvino if runtime == 'openvino' else deploy.load_exported
        run = load(path, options.threads)
    except Exception as error:  # continue with the other contenders
        return first_line(error)
    dense = not own
    return Contender(run, same_as, own, counted_as=same_as, host=dense, differs=not dense)


def openvino(path: Path, threads: int) -> Run:
    """Load an ONNX file into OpenVINO, in float32, for one call at a time."""
    import openvino

    settings = dict(
        PERFORMANCE_HINT='LATENCY',
        INFERENCE_NUM_THREADS=threads,
        INFERENCE_PRECISION_HINT='f32',
        NUM_STREAMS=1,
    )
    request = openvino.Core().compile_model(str(path), 'CPU', settings).create_infer_request()

    def run(images: Tensor) -> tuple[Tensor, ...]:
        # Without copies of inputs and outputs, which are not the runtime's work.
        found = request.infer([images.numpy()], share_inputs=True, share_outputs=True)
        return tuple(map(torch.from_numpy, found.values()))

    return run


def compiled(run: Run) -> Run:
    """Compile with Inductor for a fixed shape, with frozen weights."""
    import torch._inductor.config as inductor

    fast = torch.compile(run, dynamic=False)

    def run_compiled(images: Tensor) -> Any:
        with inductor.patch(freezing=True), torch.no_grad():
            return fast(images)

    return run_compiled


def stock_backbone(family: str, size: str, shape: tuple[int, int]) -> Run:
    """Backbone of mmseg (Swin) or timm, from images to maps."""
    models = gpu_models.models_of(family, size, shape)
    if family == 'swin':
        return models['mmseg']
    if family == 'convnext':
        maps = peer_models.intermediates(models['timm'])
    else:
        maps = peer_models.vit_maps(models['timm'], models['sparse'])
    return lambda images: tuple(maps(images))


def backbone(options: Options, family: str, size: str, precisions: Sequence[str] = ()) -> Found:
    """Backbones of ours, dense and sparse, and of mmseg (Swin) or timm; see :func:`segmentor`."""
    size = 'tiny' if options.tiny else size
    shape = options.shape if family == 'deit' else None
    host = 'mmseg' if family == 'swin' else 'timm'
    ours = gpu_models.models_of(family, size, shape)['sparse']
    stock = stock_backbone(family, size, shape)
    kept = f'{host} eager, memory kept'
    # timm's ConvNeXt has no output norms; ours are applied for the comparison.
    outputs = peer_models.with_norms(stock, ours) if family == 'convnext' else None
    found: Found = {}
    for suffix, precision in add_ways(precisions, found).items():
        for name, run in peer_models.sparse_contenders(prepared(ours, precision)).items():
            found[f'ours {name}{suffix}'] = Contender(
                run,
                f'ours {name}' if suffix and name != 'random' else '',
                '' if name == 'dense' else f'ours dense{suffix}',
                differs=name != 'dense' or precision in precisions,
                dtype=precision or 'float32',
            )
    found[kept] = Contender(stock, 'ours dense', host=True, outputs=outputs)
    make = functools.partial(stock_backbone, family, size, shape)
    own = elsewhere(make, options, '')
    same = '' if family == 'convnext' else kept
    found[f'{host} eager'] = Contender(
        own.run, same, counted_as=kept, host=True, outputs=own.outputs
    )
    if 'bfloat16' in precisions:
        found[f'{host} eager, bfloat16 autocast'] = in_bf16(stock, kept)
    if family == 'convnext':
        run = peer_models.channels_last(gpu_models.models_of(family, size, shape)['timm'])
        found['timm channels-last, memory kept'] = Contender(run, host=True)
    return found


def detectors(tiny: bool) -> dict[str, nn.Module]:
    """Mask R-CNN Swin-S with the same weights: mmdet's, and ours, sparse in backbone and neck."""
    loaded = load_model(TINY_DETECTOR if tiny else DETECTOR)
    return dict(stock=build_stock_model(loaded), ours=loaded.model)


def detections(model: nn.Module) -> Run:
    """A detector of mmdet, from images to predictions."""
    run = Line('', model).runner(PARTS[1])

    def run_on(images: Tensor) -> Any:
        hw = tuple(images.shape[-2:])
        meta = dict(img_shape=hw, ori_shape=hw, pad_shape=hw, batch_input_shape=hw)
        return run(HostBatch(images, (meta | dict(scale_factor=(1.0, 1.0)),), 'mmdet'))

    return run_on


def maps_and_proposals(model: nn.Module) -> Run:
    """From images to maps of the neck and raw RPN outputs."""

    def run(images: Tensor) -> tuple[Tensor, ...]:
        maps = model.extract_feat(images)
        return (*maps, *(x for level in model.rpn_head(maps) for x in level))

    return run


def stock_detector(tiny: bool) -> Run:
    """mmdet's Mask R-CNN, from images to predictions."""
    return detections(detectors(tiny)['stock'])


def detector(options: Options) -> Found:
    """Mask R-CNN, from images to predictions."""
    models, kept = detectors(options.tiny), 'mmdet eager, memory kept'

    def same(model: nn.Module, **more: Any) -> Contender:
        return Contender(detections(model), outputs=maps_and_proposals(model), **more)

    found: Found = {kept: same(models['stock'], host=True)}
    make = functools.partial(stock_detector, options.tiny)
    alone = OwnProcess(make, options.images, options.threads)
    found['mmdet eager'] = Contender(alone, counted_as=kept, host=True)
    found['mmdet prepared'] = same(prepared(models['stock']), same_as=kept)
    for suffix in ('', ' prepared'):
        model = prepared(models['ours']) if suffix else models['ours']
        run, outputs = detections(model), maps_and_proposals(model)
        ratios = {'everything kept': (DENSE, 1.0), 'sparse, half of the tiles': (SPARSE, 0.5)}
        for name, both in ratios.items():
            everything = both[0] == DENSE
            found[f'ours {name}{suffix}'] = Contender(
                at(model, run, *both),
                kept if everything else '',
                '' if everything else f'ours everything kept{suffix}',
                outputs=at(model, outputs, *both),
                differs=not everything,
            )
    return found


@contextlib.contextmanager
def closing(found: Mapping[str, Contender | str]) -> Iterator[None]:
    """End the contenders' processes at the end of the block."""
    try:
        yield
    finally:
        for one in found.values():
            if isinstance(one, Contender) and isinstance(one.run, OwnProcess):
                one.run.close()
