"""DecisionVisualizationHook: drawings of predictions and decisions in validation and tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import mmcv
from mmengine.hooks import Hook
from torch import Tensor

from mmdyn.checks import check_integer
from mmdyn.engine.predictions import Inference, named_classes
from mmdyn.engine.recording import Recording, choices_of, record, windows_of
from mmdyn.engine.wrappers import unwrapped
from mmdyn.pictures import Picture, resized
from mmdyn.registry import HOOKS
from mmdyn.visualization.inference import draw, to_array


@HOOKS.register_module()
class DecisionVisualizationHook(Hook):
    """Draws predictions and decisions of some pictures in every validation or test.

    Drawings go to all backends of the runner's visualizer: local files, TensorBoard, Weights &
    Biases ... They show the picture, the prediction, the locations kept by each predictor, how many
    predictors kept each location, and the scores. With test-time augmentation the prediction is the
    merged one, and the decisions are those of the first unflipped view, if any.

    Args:
        pictures: number of pictures, from the start of the data set.
        min_score: lowest score of drawn instances.
        width: approximate width of a drawing in pixels.

    Raises:
        TypeError: if ``pictures`` is not an integer.
        ValueError: if it is below 1.
    """

    def __init__(self, pictures: int = 4, min_score: float = 0.3, width: int = 1200) -> None:
        self.pictures = check_integer('pictures', pictures)
        self.min_score, self.width = min_score, width
        self._recording: Recording | None = None
        self._after = ExitStack()

    def before_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Start recording for the first pictures."""
        if batch_idx < self.pictures:
            self._recording = self._after.enter_context(record(runner.model))

    before_test_iter = before_val_iter

    def after_val_iter(
        self,
        runner: Any,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[Any] | None = None,
        mode: str = 'val',
    ) -> None:
        """Draw predictions and decisions."""
        if self._recording is None:
            return
        recording, self._recording = self._recording, None
        self._after.close()
        self.draw(runner, recording, data_batch, outputs or (), mode)

    def after_test_iter(self, *args: Any, **kwargs: Any) -> None:
        """Draw predictions and decisions."""
        self.after_val_iter(*args, **kwargs, mode='test')

    def draw(
        self, runner: Any, recording: Recording, data_batch: Any, outputs: Sequence[Any], mode: str
    ) -> None:
        """Draw a batch from the recorded decisions, the loader's batch and the predictions."""
        model = unwrapped(runner.model)
        meta = runner.visualizer.dataset_meta or {}
        classes, palette = named_classes(meta)
        recording, data_batch = _one_view(model, recording, data_batch)
        hw = _size(data_batch['inputs'])
        inputs = data_batch['data_samples']
        for i, sample in enumerate(outputs[: self.pictures]):
            picture = _picture(data_batch['inputs'][i], inputs[i].metainfo, i)
            shape = inputs[i].metainfo['img_shape'][:2]
            choices, tiles = choices_of(model, recording, i, shape, hw)
            sample = _with_void(sample.cpu(), meta)
            shown = Inference(picture, sample, choices, tiles, classes, palette, 0.0)
            figure = draw(shown, min_score=self.min_score)
            runner.visualizer.add_image(
                f'{mode}_{picture.name}', to_array(figure, self.width), step=runner.iter
            )


def _picture(view: Tensor, meta: dict[str, Any], number: int) -> Picture:
    """Convert a packed picture, (C, h, w), to the size of its file."""
    height, width = (meta.get('ori_shape') or meta['img_shape'])[:2]
    across, down = meta.get('scale_factor', (view.shape[2] / width, view.shape[1] / height))[:2]
    # Remove padding.
    view = view[:, : max(1, round(height * down)), : max(1, round(width * across))]
    image = resized(view.permute(1, 2, 0).cpu().numpy(), (height, width))
    if meta.get('flip'):
        image = mmcv.imflip(image, meta['flip_direction'])
    name = Path(meta.get('img_path') or f'picture_{meta.get("img_id", number)}').stem
    return Picture(name, image)


def _size(images: Sequence[Any]) -> tuple[int, int]:
    """(h, w) of a batch that images are padded to."""
    return tuple(max(side) for side in zip(*(one.shape[-2:] for one in images), strict=True))


def _one_view(model: Any, recording: Recording, data_batch: Any) -> tuple[Recording, Any]:
    """Decisions and data of one view of each image.

    With test-time augmentation ``inputs`` and ``data_samples`` have a list per view, and the
    recording contains all views in order.
    """
    views, samples = data_batch['inputs'], data_batch['data_samples']
    if not isinstance(samples[0], Sequence):
        return recording, data_batch
    shown = [i for i, view in enumerate(samples) if not view[0].metainfo.get('flip')]
    chosen = shown[0] if shown else 0
    part = dict(inputs=views[chosen], data_samples=samples[chosen])
    if not shown:
        return Recording(), part
    windows = [len(windows_of(model, _size(view))) for view in views]
    first, last, total = sum(windows[:chosen]), sum(windows[: chosen + 1]), sum(windows)

    def of_view(decisions: list) -> list:
        return decisions[len(decisions) * first // total : len(decisions) * last // total]

    return Recording(of_view(recording.locations), of_view(recording.tiles)), part


def _with_void(sample: Any, meta: Mapping[str, Any]) -> Any:
    """Mark pixels without a class in a panoptic prediction.

    On a CPU, mmdet's metric has overwritten them with 0 in place. If class 0 is a thing, its pixels
    have an instance number, so 0 is unambiguous.
    """
    field, classes = sample.get('pred_panoptic_seg'), meta.get('classes')
    if field is not None and classes and classes[0] in meta.get('thing_classes', ()):
        field.sem_seg = field.sem_seg.masked_fill(field.sem_seg == 0, len(classes))
    return sample
