"""DynamicInferencer: the host's predictions, and decisions."""

import numpy as np
import pytest
import torch

pytest.importorskip('mmseg')

from mmdyn.apis import Choice, DynamicInferencer
from mmdyn.engine.recording import Recording, choices_of, windows_of
from mmdyn.sparsity import RandomPolicy
from mmdyn.visualization.inference import draw
from tests.test_tools.segmentation import write_config, write_data

CONVNEXT = {
    'model.backbone': dict(
        _delete_=True,
        type='mmdyn.DynamicConvNeXt',
        arch=dict(depths=(1, 1, 4, 1), channels=(8, 16, 32, 64)),
        layer_scale_init_value=1.0,
        out_indices=(3,),
    )
}


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp('data')
    write_data(root / 'data')
    return str(write_config(root, root / 'data'))


@pytest.fixture(scope='module')
def infer(config):
    return DynamicInferencer(config, device='cpu')


def images(*sizes):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (*size, 3), dtype=np.uint8) for size in sizes]


def test_predictions_are_the_hosts(infer):
    (image,) = images((70, 90))
    (result,) = infer(image)
    inputs = torch.from_numpy(image).permute(2, 0, 1)
    from mmseg.structures import SegDataSample

    meta = dict(img_shape=(70, 90), ori_shape=(70, 90))
    data = dict(inputs=[inputs], data_samples=[SegDataSample(metainfo=meta)])
    with torch.no_grad():
        (expected,) = infer.model.test_step(data)
    assert result.labels.shape == (70, 90)
    assert np.array_equal(result.labels, expected.pred_sem_seg.data[0].numpy())
    kept = [choice.fraction for choice in result.choices]
    assert kept == pytest.approx(expected.kept_fractions)


def test_prepared_it_predicts_the_same(config, infer):
    plain = DynamicInferencer(config, device='cpu', prepare=False)
    plain.model.train().eval()
    with pytest.raises(ValueError, match='prepared for inference'):
        infer.model.train()
    pictures = images((70, 90), (64, 64))
    for asked in ({}, dict(keep_ratio=0.5), dict(keep_ratio=1.0)):
        for one, other in zip(infer(pictures, **asked), plain(pictures, **asked), strict=True):
            assert (one.labels == other.labels).mean() >= 0.9999
            for choice, same in zip(one.choices, other.choices, strict=True):
                assert np.array_equal(choice.kept, same.kept)


@pytest.mark.parametrize('batch_size', [1, 2, 3])
def test_pictures_of_any_sizes_in_batches(infer, batch_size):
    pictures = images((64, 64), (70, 90), (33, 40))
    alone = [next(infer(image)) for image in pictures]
    together = list(infer(pictures, batch_size=batch_size))
    assert [one.picture.image.shape for one in together] == [one.shape for one in pictures]
    for one, other in zip(alone, together, strict=True):
        assert one.labels.shape == other.labels.shape
        for choice, same in zip(one.choices, other.choices, strict=True):
            height, width = choice.kept.shape
            assert np.array_equal(same.kept[:height, :width], choice.kept)
            assert same.fraction == pytest.approx(choice.fraction)


def test_a_call_chooses_and_leaves_the_model_as_it_was(infer):
    backbone = infer.loaded.backbone
    before = backbone.keep_ratios, backbone.policy
    (image,) = images((128, 128))
    (few,) = infer(image, keep_ratio=0.5)
    assert [choice.fraction for choice in few.choices] == [32 / 64, 19 / 64, 6 / 64]
    (random,) = infer(image, keep_ratios=(0.5, 0.5, 0.5), policy=RandomPolicy(0))
    assert not np.array_equal(random.choices[0].kept, few.choices[0].kept)
    assert (backbone.keep_ratios, backbone.policy) == before
    results = infer([image, image], keep_ratio=0.5)
    next(results)
    # Between two pictures too, as the caller may use the model meanwhile.
    assert (backbone.keep_ratios, backbone.policy) == before
    assert next(results).choices[0].fraction == pytest.approx(0.5)


@pytest.mark.parametrize(
    ('asked', 'error', 'said'),
    [
        (dict(keep_ratio=2), ValueError, 'got 2'),
        (dict(keep_ratios=(0.5,)), ValueError, '3 predictors'),
        (dict(keep_ratio=0.5, keep_ratios=(0.5, 0.4, 0.3)), ValueError, 'not both'),
        (dict(tile_ratio=0.5), ValueError, 'leave it out'),
        (dict(batch_size=0), ValueError, 'got 0'),
        (dict(policy=7), TypeError, 'got 7'),
    ],
)
def test_what_does_not_fit_is_known_before_anything_is_predicted(infer, asked, error, said):
    with pytest.raises(error, match=said):
        infer(images((64, 64))[0], **asked)
    assert infer.loaded.backbone.keep_ratios == (0.7, 0.5, 0.3)


def test_sliding_windows_lie_where_the_host_looks(config):
    infer = DynamicInferencer(
        config,
        device='cpu',
        cfg_options={'model.test_cfg': dict(mode='slide', crop_size=(64, 64), stride=(40, 48))},
    )
    (image,) = images((100, 150))
    seen = []
    forward = infer.model.encode_decode

    def encode_decode(inputs, metas):
        seen.append(inputs)
        return forward(inputs, metas)

    infer.model.encode_decode = encode_decode
    (result,) = infer(image)
    normalised = infer.model.data_preprocessor(
        dict(inputs=[torch.from_numpy(image).permute(2, 0, 1)]), False
    )['inputs']
    places = windows_of(infer.model, (100, 150))
    assert len(places) == len(seen) > 1
    for (top, left, bottom, right), window in zip(places, seen, strict=True):
        assert torch.equal(normalised[:, :, top:bottom, left:right], window)
    stride = infer.loaded.backbone.sparse_stride
    assert result.choices[0].kept.shape == (-(-100 // stride), -(-150 // stride))
    assert result.choices[0].real.all()
    # A backbone that rounds down omits parts of windows.
    options = {'model.test_cfg': dict(mode='slide', crop_size=(70, 75), stride=(40, 48))}
    infer = DynamicInferencer(config, device='cpu', cfg_options={**CONVNEXT, **options})
    (result,) = infer(image, keep_ratio=1.0)
    assert all(choice.fraction == 1 and choice.real.all() for choice in result.choices)


@pytest.fixture(scope='module')
def convnext(config):
    return DynamicInferencer(config, device='cpu', cfg_options=CONVNEXT)


@pytest.mark.parametrize('hw', [(32, 33), (47, 65), (70, 75), (64, 79)])
def test_a_backbone_that_leaves_out_what_fills_no_patch(convnext, hw):
    (image,) = images(hw)
    (result,) = convnext(image)
    for choice, ratio in zip(result.choices, (0.7, 0.5, 0.3), strict=True):
        rows, columns = hw[0] // 16, hw[1] // 16
        assert choice.kept.shape == choice.real.shape == choice.scores.shape == (rows, columns)
        assert choice.kept.sum() == max(1, int(rows * columns * ratio))
        shown = choice.on_picture(hw)
        whole = np.kron(choice.kept, np.ones((16, 16), bool))
        assert np.array_equal(shown[: 16 * rows, : 16 * columns], whole)
        # The remainder shows the last location.
        assert np.array_equal(shown[16 * rows :], np.tile(shown[-1], (hw[0] % 16, 1)))
    assert draw(result).axes


def test_in_a_padded_batch_it_is_drawn_as_alone(convnext):
    backbone = convnext.loaded.backbone
    image, larger = (torch.randn(1, 3, *hw) for hw in ((70, 75), (130, 130)))
    batch = torch.cat([torch.nn.functional.pad(image, (0, 55, 0, 60), value=9.0), larger])
    with torch.no_grad():
        alone = backbone.forward_sparse(image).decisions
        beside = backbone.forward_sparse(batch, valid_shapes=[(70, 75), (130, 130)]).decisions
    for recorded in (alone, beside):
        choices, _ = choices_of(convnext.model, Recording(list(recorded)), 0, (70, 75), (130, 130))
        maps = [choice.on_picture((70, 75)) for choice in choices]
        assert len(maps) == 3 and all(shown.shape == (70, 75) for shown in maps)
        assert [choice.fraction for choice in choices] == pytest.approx([11 / 16, 0.5, 0.25])
        if recorded is alone:
            expected = maps
    assert all(np.array_equal(*pair) for pair in zip(maps, expected, strict=True))


def test_a_choice_on_the_pixels_of_a_picture():
    kept = np.array([[True, False], [False, True]])
    # Only half of the second column of locations is inside the picture.
    choice = Choice(kept, kept.astype(np.float32), np.ones((2, 2), bool), (2.0, 1.5))
    pixels = choice.on_picture((4, 6))
    expected = np.array([[1, 1, 1, 1, 0, 0]] * 2 + [[0, 0, 0, 0, 1, 1]] * 2, bool)
    assert np.array_equal(pixels, expected)
