"""Predictions, drawn and written: one channel, many classes, panoptic, instances."""

import json

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip('mmseg')

from mmengine.structures import BaseDataElement, InstanceData, PixelData

from mmdyn.apis import DynamicInferencer, Inference, Picture
from mmdyn.apis.writing import Writer, label_image, panoptic_image
from mmdyn.engine.predictions import INSTANCE_OFFSET
from mmdyn.visualization.inference import classes_in, draw, predicted
from tests.test_tools.segmentation import write_config, write_data

CLASSES, PALETTE = ('cat', 'dog', 'sky'), ((200, 0, 0), (0, 200, 0), (0, 0, 200))

ONE_CHANNEL = {
    'model.decode_head.num_classes': 2,
    'model.decode_head.out_channels': 1,
    'model.decode_head.threshold': 0.4,
    'model.decode_head.loss_decode.use_sigmoid': True,
}
PANOPTIC = """
_base_ = 'mmdet::BASE'
custom_imports = dict(imports=['mmdyn'], allow_failed_imports=False)
model = dict(
    backbone=dict(
        _delete_=True, type='mmdyn.DynamicSwin', embed_dims=8, depths=(1, 1, 4, 1),
        num_heads=(1, 1, 2, 2), window_size=4))
_maps = [8, 16, 32, 64]
MODEL
test_dataloader = dict(dataset=dict(pipeline=[
    dict(type='LoadImageFromFile'), dict(type='Resize', scale=(96, 96), keep_ratio=True),
    dict(type='LoadPanopticAnnotations'),
    dict(type='PackDetInputs', meta_keys=(
        'img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))]))
"""
FPN = """
model.update(neck=dict(in_channels=_maps), test_cfg=dict(
    rpn=dict(nms_pre=50, max_per_img=20), rcnn=dict(score_thr=0.0, max_per_img=5),
    panoptic=dict(stuff_area_limit=10)))
"""
MASK2FORMER = """
model.update(
    panoptic_head=dict(in_channels=_maps, num_queries=20, transformer_decoder=dict(num_layers=1)),
    test_cfg=dict(object_mask_thr=0.0, iou_thr=0.0, max_per_image=10, instance_on=INSTANCES))
"""
MASK2FORMER_CONFIG = 'mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py'


def infer_of(folder, options=None):
    config = write_config(folder, write_data(folder / 'data'))
    return DynamicInferencer(str(config), device='cpu', cfg_options=options)


def noise(height, width):
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)


def make(height=4, width=6, classes=CLASSES, palette=PALETTE, **fields):
    picture = Picture('one', np.full((height, width, 3), 100, np.uint8))
    return Inference(picture, BaseDataElement(**fields), (), None, classes, palette, 0.0)


def semantic(labels, **changes):
    labels = torch.as_tensor(labels)[None]
    return make(*labels.shape[1:], pred_sem_seg=PixelData(data=labels), **changes)


def panoptic(ids, **fields):
    ids = torch.as_tensor(ids, dtype=torch.int32)[None]
    return make(*ids.shape[1:], pred_panoptic_seg=PixelData(sem_seg=ids), **fields)


def instances(scores, labels, **fields):
    labels = torch.tensor(labels, dtype=torch.long)
    return InstanceData(scores=torch.tensor(scores), labels=labels, **fields)


def written(folder, *results, **options):
    with Writer(folder, labels=True, **options) as writer:
        for result in results:
            writer.add(result)
    return json.loads((folder / 'results.json').read_text())


def read(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def test_one_channel_is_two_classes(tmp_path):
    infer = infer_of(tmp_path, ONE_CHANNEL)
    (result,) = infer(noise(70, 90))
    probability = result.sample.seg_logits.data[0].numpy()
    assert result.labels.dtype == np.int64
    assert np.array_equal(result.labels, probability > 0.4)
    middle, threshold = (torch.logit(torch.tensor(p)) for p in (np.median(probability), 0.4))
    with torch.no_grad():  # half of the pixels are above
        infer.model.decode_head.conv_seg.bias += threshold - middle
    (result,) = infer(noise(70, 90))
    (found,) = written(tmp_path, result)
    share = float(result.labels.mean())
    assert 0.2 < share < 0.8
    assert found['classes'] == pytest.approx({'a': 1 - share, 'b': share}, abs=1e-4)
    assert np.array_equal(read(tmp_path / 'array_labels.png'), result.labels)
    assert classes_in(result) == ([1, 0] if share > 0.5 else [0, 1])


@pytest.mark.parametrize(
    ('count', 'label', 'dtype'), [(3, 2, 'uint8'), (255, 254, 'uint8'), (300, 290, 'uint16')]
)
def test_every_class_survives_in_a_label_map(count, label, dtype, tmp_path):
    colours = [(i % 256, i // 256, 7) for i in range(count)]
    labels = np.zeros((4, 6), np.int64)
    labels[1] = label
    result = semantic(labels, classes=tuple(map(str, range(count))), palette=tuple(colours))
    (found,) = written(tmp_path, result)
    image = read(tmp_path / 'one_labels.png')
    assert image.dtype == dtype and np.array_equal(image, labels)
    # All pictures have the same properties, whatever their content.
    assert label_image(semantic(0 * labels, classes=result.classes)).dtype == dtype
    assert found['classes'] == {'0': 0.75, str(label): 0.25}
    assert predicted(result)[1, 0, 0] == int(0.6 * (label % 256) + 40)


def test_classes_that_nobody_named(tmp_path):
    result = semantic(np.full((4, 6), 300))
    (found,) = written(tmp_path, result)
    assert found['classes'] == {'300': 1.0}
    assert (read(tmp_path / 'one_labels.png') == 300).all()
    assert (predicted(result) == 100).all() and classes_in(result) == []
    with pytest.raises(ValueError, match='70000'):
        label_image(semantic(np.full((4, 6), 70000)))


def test_a_panoptic_prediction(tmp_path):
    ids = np.full((4, 6), 3)  # no class
    ids[0] = 2  # sky, which is stuff
    ids[1:3, :3] = 0 + 1 * INSTANCE_OFFSET
    ids[1:3, 3:] = 0 + 2 * INSTANCE_OFFSET
    result = panoptic(ids)
    (found,) = written(tmp_path, result)
    assert found['segments'] == [
        {'id': 1, 'class': 'sky', 'is_thing': False, 'area': 6},
        {'id': 2, 'class': 'cat', 'is_thing': True, 'area': 6},
        {'id': 3, 'class': 'cat', 'is_thing': True, 'area': 6},
    ]
    assert found['classes'] == {'sky': 0.25, 'cat': 0.5} and 'instances' not in found
    numbers = np.array([[1] * 6, [2] * 3 + [3] * 3, [2] * 3 + [3] * 3, [0] * 6])
    blue, green, red = read(tmp_path / 'one_panoptic.png').transpose(2, 0, 1).astype(int)
    assert np.array_equal(red + 256 * green + 65536 * blue, numbers)
    labels = read(tmp_path / 'one_labels.png')
    assert labels[0, 0] == 2 and labels[1, 0] == 0 and (labels[3] == 255).all()
    shown = predicted(result)
    assert (shown[1:3, 2:4] == 255).all(), 'two cats, a border'
    assert tuple(shown[2, 5]) == (255,) * 3 and classes_in(result) == [0, 2]
    assert (tmp_path / 'one.png').is_file()


def test_more_segments_than_a_byte_can_count():
    ids = INSTANCE_OFFSET * np.arange(1, 301).reshape(20, 15)
    blue, green, red = panoptic_image(panoptic(ids)).transpose(2, 0, 1).astype(int)
    assert np.array_equal(red + 256 * green + 65536 * blue, np.arange(1, 301).reshape(20, 15))


def test_a_detectors_semantic_map():
    labels = torch.tensor([[[0, 1], [1, 1]]])
    result = make(2, 2, pred_sem_seg=PixelData(sem_seg=labels))
    assert result.to_dict()['classes'] == {'cat': 0.25, 'dog': 0.75}


@pytest.mark.parametrize('boxes', [dict(bboxes=torch.zeros(2, 4)), {}])
def test_instances_without_boxes_get_that_of_their_mask(boxes):
    masks = torch.zeros(2, 4, 6, dtype=torch.bool)
    masks[0, 1:3, 2:5] = True
    result = make(pred_instances=instances([0.9, 0.8], [1, 9], masks=masks, **boxes))
    first, second = result.to_dict()['instances']
    assert first['box'] == [2, 1, 5, 3] and first['class'] == 'dog'
    assert second['box'] == [0, 0, 0, 0] and second['class'] == '9'
    assert tuple(predicted(result)[1, 2]) == (0, 200, 0)


def test_instances_beside_segments_are_told_and_framed():
    ids = np.full((4, 6), 2)
    found = instances([0.9], [0], bboxes=torch.tensor([[1.0, 1.0, 5.0, 3.0]]))
    result = panoptic(ids, pred_instances=found)
    told = result.to_dict()
    assert len(told['segments']) == len(told['instances']) == 1
    assert tuple(predicted(result)[1, 1]) == PALETTE[0]


def test_no_instances_at_all(tmp_path):
    (told,) = written(tmp_path, make(pred_instances=instances([], [], bboxes=torch.zeros(0, 4))))
    assert told['instances'] == [] and 'classes' not in told


@pytest.mark.parametrize(
    ('base', 'model', 'with_instances'),
    [
        ('panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py', FPN, False),
        (MASK2FORMER_CONFIG, MASK2FORMER.replace('INSTANCES', 'True'), True),
        (MASK2FORMER_CONFIG, MASK2FORMER.replace('INSTANCES', 'False'), False),
    ],
    ids=['PanopticFPN', 'Mask2Former', 'Mask2Former-without-instances'],
)
def test_panoptic_models_of_the_host(base, model, with_instances, tmp_path):
    pytest.importorskip('mmdet')
    config = tmp_path / 'panoptic.py'
    config.write_text(PANOPTIC.replace('BASE', base).replace('MODEL', model))
    infer = DynamicInferencer(str(config), device='cpu')
    (result,) = infer(noise(50, 70))
    (found,) = written(tmp_path, result, min_score=0.0)
    assert (50, 70) == result.segment_map.shape and len(result.choices) == 3
    assert found['segments'] and ('instances' in found) is with_instances
    for segment in found['segments']:
        mask = result.segment_map == segment['id']
        assert segment['area'] == mask.sum() > 0
        (label,) = np.unique(result.labels[mask])
        assert infer.classes[label] == segment['class']
        assert segment['is_thing'] is bool(label < 80)
    assert draw(result).axes[1].get_title() == 'prediction'


def test_predictions_of_an_unknown_kind_are_refused(tmp_path):
    infer = infer_of(tmp_path)
    predict = infer.model.predict

    def depth(*args):
        (sample,) = predict(*args)
        del sample.pred_sem_seg
        return [sample]

    infer.model.predict = depth
    with pytest.raises(ValueError, match='seg_logits'):
        next(infer(noise(64, 64)))


def test_what_an_earlier_run_wrote_is_not_replaced_by_nothing(tmp_path):
    (found,) = written(tmp_path, semantic(np.zeros((4, 6))))
    with pytest.raises(ValueError, match='gone'), Writer(tmp_path):
        raise ValueError('gone')
    assert json.loads((tmp_path / 'results.json').read_text()) == [found]
