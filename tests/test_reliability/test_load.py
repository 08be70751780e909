"""Large images, many sizes, and repeatability."""

import functools
import gc
import importlib
import os
import pkgutil
import random
import time
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip('mmseg')

import mmdyn
from mmdyn.analysis.measuring import peak_memory
from mmdyn.models import DynamicConvNeXt, DynamicSwin, DynamicViT
from mmdyn.models.backbones import window_attention
from tests.test_reliability.examples import count
from tests.test_reliability.forks import in_fork
from tests.test_reliability.trainings import Place, read_losses
from tests.test_tools.segmentation import write_config, write_data
from tests.torch_line import EXPORTS, needs_lean_attention

WIDTH = 96
IMAGES = count(150, 2000)
WARM_UP = IMAGES // 3
MIB = 2**20
CACHES = (window_attention.window_layout.cache, window_attention.shift_masks.cache)


def swin(width: int = 8) -> DynamicSwin:
    return DynamicSwin(embed_dims=width, depths=(1, 1, 4, 1), num_heads=(1, 1, 1, 1)).eval()


def convnext(width: int = 8) -> DynamicConvNeXt:
    channels = [width * 2**stage for stage in range(4)]
    return DynamicConvNeXt(arch=dict(depths=[1, 1, 4, 1], channels=channels)).eval()


def vit() -> DynamicViT:
    return DynamicViT(
        img_size=64, embed_dims=16, num_layers=4, num_heads=2, sparse_blocks=(1, 2, 3)
    ).eval()


LARGE = 'Images of 4096x4096'


@pytest.mark.slow
@pytest.mark.parametrize(
    ('make', 'maps'),
    [
        # A map of the first stage has width x 1024 x 1024 values; the hidden layer of an MLP and
        # its activation 4 times as many each.
        pytest.param(swin, 10, id='swin', marks=needs_lean_attention),
        pytest.param(convnext, 5, id='convnext'),
    ],
)
def test_large_images_stay_within_a_bound(figure, make, maps):
    model, image = make(WIDTH), torch.zeros(1, 3, 4096, 4096)
    peaks = []
    for ratios in ((0.7, 0.5, 0.3), (1.0, 1.0, 1.0)):
        model.set_keep_ratios(ratios)
        start = time.monotonic()
        with torch.no_grad():
            peaks.append(peak_memory(lambda: model.forward_sparse(image, execution='gathered')))
        seconds = time.monotonic() - start
    bound = maps * WIDTH * 1024 * 1024 * 4
    assert peaks[0] <= bound
    assert peaks[0] <= 1.01 * peaks[1]
    name = f'{make.__name__} of width {WIDTH}'
    figure(LARGE, f'{name}: peak of a forward, keep ratio 0.7', f'{peaks[0] / MIB:.0f} MiB')
    figure(LARGE, f'{name}: at most, {maps} maps of its first stage', f'{bound / MIB:.0f} MiB')
    figure(LARGE, f'{name}: peak with everything kept', f'{peaks[1] / MIB:.0f} MiB')
    figure(LARGE, f'{name}: seconds, everything kept', f'{seconds:.0f}')


def test_layouts_and_masks_are_made_once_for_a_size():
    for cache in CACHES:
        cache.cache_clear()
    model, image = swin(), torch.zeros(2, 3, 200, 264)
    with torch.no_grad():
        model(image)
        made = [cache.cache_info().misses for cache in CACHES]
        assert made == [5, 1]  # four stages; with four blocks, also shifted windows
        for _ in range(3):
            model(image)
    assert [cache.cache_info().misses for cache in CACHES] == made


def caches_of_mmdyn():
    """Every function cache in mmdyn, by name."""
    for info in pkgutil.walk_packages(mmdyn.__path__, 'mmdyn.'):
        if info.name.endswith('__main__') or (info.name.endswith('onnx_operators') and not EXPORTS):
            continue
        for name, value in vars(importlib.import_module(info.name)).items():
            value = getattr(value, 'cache', value)  # of made_once
            if isinstance(value, functools._lru_cache_wrapper):
                yield f'{info.name}.{name}', value


def test_no_cache_grows_without_a_bound():
    caches = dict(caches_of_mmdyn())
    assert 'mmdyn.models.backbones.window_attention.window_layout' in caches
    unbounded = [
        name for name, cache in caches.items() if cache.cache_parameters()['maxsize'] is None
    ]
    # Keyed by torch's operators, patterns of rules in the code, and classes of models; one has no
    # arguments.
    assert {name.rpartition('.')[2] for name in unbounded} == {
        'kind_of',
        '_regex',
        'derive',
        '_all_allowed',
    }


def resident() -> int:
    """Resident memory of this process in bytes."""
    return int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')


def of_tensors() -> int:
    """Bytes of all live tensors."""
    kinds = (torch.Tensor, torch.nn.Parameter)
    return sum(one.nbytes for one in gc.get_objects() if type(one) in kinds)


def run_many(make, config: str | None, kernels: int) -> tuple[int, int]:
    """Growth of memory and of live tensors over images of random sizes, after the warm-up.

    Args:
        make: builds the backbone; None = the inferencer of ``config``.
        config: for the inferencer.
        kernels: number of shapes for which oneDNN may cache kernels.
    """
    os.environ['ONEDNN_PRIMITIVE_CACHE_CAPACITY'] = str(kernels)
    torch.set_num_threads(1)
    if make is None:
        from mmdyn.apis import DynamicInferencer

        infer = DynamicInferencer(config, device='cpu')
    else:
        model = make()
    draw = random.Random(0)
    for number in range(IMAGES):
        size = draw.randint(48, 192), draw.randint(48, 192)
        if make is None:
            list(infer(np.zeros((*size, 3), np.uint8)))
        else:
            with torch.no_grad():
                model(torch.zeros(1, 3, *size))
        if number == WARM_UP:
            warm = resident(), of_tensors()
    return resident() - warm[0], of_tensors() - warm[1]


# Libraries below torch warm up, too: oneDNN caches kernels for the last 1024 shapes, others grow
# during the first few hundred images. Ours are tensors, with a tight limit.
FEW, ALL = 16, 1024


@pytest.mark.parametrize(
    ('make', 'kernels', 'bound'),
    [
        pytest.param(swin, FEW, 32, id='swin'),
        pytest.param(swin, ALL, 128, id='swin, as it is', marks=pytest.mark.slow),
        pytest.param(convnext, FEW, 32, id='convnext', marks=pytest.mark.slow),
        pytest.param(vit, FEW, 32, id='vit', marks=pytest.mark.slow),
        pytest.param(None, FEW, 32, id='inferencer', marks=pytest.mark.slow),
    ],
)
def test_images_of_many_sizes_leave_nothing_behind(tmp_path, figure, make, kernels, bound):
    config = None if make else str(write_config(tmp_path, write_data(tmp_path / 'data')))
    grown, tensors = in_fork(run_many, make, config, kernels)
    assert grown < bound * MIB
    assert tensors < MIB
    name = make.__name__ if make else 'DynamicInferencer'
    figure(
        f'{IMAGES} images of random sizes in one process',
        f'{name}, oneDNN keeping kernels for {kernels} shapes',
        f'{grown / MIB:+.1f} MiB after the first {WARM_UP}',
    )


@pytest.mark.slow
@pytest.mark.parametrize('deterministic', [False, True])
def test_the_same_seed_gives_the_same_weights(tmp_path, figure, deterministic):
    option = ('--cfg-options', f'randomness.deterministic={deterministic}')
    runs = []
    for name in ('first', 'second'):
        place = Place(tmp_path / name, 3)
        assert place.train(*option).wait() == 0, place.log.read_text()[-3000:]
        runs.append((read_losses(place.losses), place.checkpoints()['iter_3.pth']['state_dict']))
    (losses, weights), (again, others) = runs
    assert losses == again and len(losses) == 3
    assert all(torch.equal(weights[key], others[key]) for key in weights)
    figure(
        'Two trainings with the same seed, on the CPU',
        f'weights after 3 iterations, deterministic={deterministic}',
        'the same, bit for bit',
    )
