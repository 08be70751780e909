import json
import re

import numpy as np
import pytest

from mmdyn.engine.coco_files import check_coco, checked, run_lengths
from mmdyn.errors import BadDataError

pytest.importorskip('pycocotools')
HW = (6, 5)


def content(annotation=(), image=(), category=()):
    """Two images, with an annotation on the first."""
    images = [dict(id=i, file_name=f'{i}.png', height=6, width=5) for i in (7, 8)]
    images[0] |= dict(image)
    one = dict(id=3, image_id=7, category_id=1, bbox=[0, 0, 2, 2], area=4, iscrowd=0)
    categories = [dict(dict(id=1, name='a'), **dict(category)), dict(id=2, name='b')]
    return dict(images=images, annotations=[one | dict(annotation)], categories=categories)


def mask(counts, size=HW):
    return content(dict(segmentation=dict(counts=counts, size=list(size))))


def check(one, masks=True, measured=(), said=()):
    """Check a file's content; it must be refused if a message is expected."""
    if not said:
        check_coco(one, 'all.json', masks=masks, measured=measured)
        return
    with pytest.raises(BadDataError) as error:
        check_coco(one, 'all.json', masks=masks, measured=measured)
    for text in ('all.json', *said):
        assert text in str(error.value)


@pytest.mark.parametrize('seed', range(20))
def test_packed_runs_are_read_as_pycocotools_reads_them(seed):
    from pycocotools import mask as api

    draw = np.random.default_rng(seed)
    shape = tuple(draw.integers(1, 300, 2))
    picture = np.repeat(draw.random(shape) < draw.random(), 1 + seed % 7, axis=0)
    packed = api.encode(np.asfortranarray(picture.astype(np.uint8)))['counts'].decode()
    flat = picture.flatten('F').astype(int)
    expected = np.diff([0, *(np.flatnonzero(np.diff(np.append(0, flat)))), flat.size])
    assert run_lengths(packed) == expected.tolist()
    height, width = picture.shape
    one = mask(packed, picture.shape)
    one['images'][0] |= dict(height=height, width=width)
    check(one)


@pytest.mark.parametrize(
    ('counts', 'size', 'said'),
    [
        ([10, 20, 5], HW, 'add up to 35'),
        ([10, 15], HW, 'add up to 25'),
        ([], HW, 'add up to 0'),
        ('', HW, 'add up to 0'),
        ([2**64, 30], HW, 'add up to'),
        ([-10, 40], HW, '[-10, 40]'),
        ([0.5, 29.5], HW, '[0.5, 29.5]'),
        ([float('nan')], HW, 'nan'),
        (['30'], HW, "['30']"),
        ([[30]], HW, '[[30]]'),
        (None, HW, 'None'),
        (30, HW, '30'),
        ('garbage', HW, 'garbage'),
        ('zzz!', HW, 'zzz!'),
        ('é', HW, 'é'),
        ('P' * 20 + '0', HW, 'PPPP'),
        ('PPPo', HW, 'PPPo'),
        ([30], (5, 6), '[6, 5]'),
        ([30], (30,), '[6, 5]'),
        ([30], (), '[6, 5]'),
    ],
)
def test_runs_that_do_not_fill_their_picture_are_refused(counts, size, said):
    check(mask(counts, size), said=['annotation 3 of image 7.png', said])
    check(mask(counts, size), masks=False)


@pytest.mark.parametrize(
    'polygon',
    [
        [float('nan'), 1, 5, 5, 3, 1],
        [1, 1, 5, 5, 3, float('inf')],
        [1e9, 1, 1e9, 5, 3, 1e9],
        [0, 0, 1e8, 0, 1e8, 1e8],
        ['0', '0', '1e8', '0', '1e8', '1e8'],
        [0, 0, None, 5, 5, 5],
        [0, 0, 9e4, 9e4] * 5000,
    ],
)
def test_outlines_without_end_are_refused(polygon):
    for segmentation in ([[0, 0, 4, 0, 4, 4], polygon, []], [[0, 0, 4e4, 0, 4e4, 4e4]] * 1000):
        check(content(dict(segmentation=segmentation)), said=['annotation 3 of image 7.png'])


@pytest.mark.parametrize(
    'segmentation',
    [
        None,
        [],
        'abc',
        [[0, 0, 4, 0, 4, 4]],
        [[0, 0, 4, 0, 4, 4, 1]],
        [[2e5, 0, 2e5, 9, 0, 9]],
        dict(counts=[30], size=[6, 5]),
        dict(counts=[0.0, 10.0, 20.0], size=[6, 5]),
    ],
)
def test_what_the_host_reads_or_refuses_by_itself_stays(segmentation):
    check(content(dict(segmentation=segmentation)), measured=('bbox',))


@pytest.mark.parametrize(
    ('changed', 'always', 'said'),
    [
        (dict(image=dict(id='x')), True, "id of images is 'x'"),
        (dict(image=dict(id=None)), True, 'id of images is None'),
        (dict(annotation=dict(image_id='7')), True, "annotation 3 of image '7' has image_id '7'"),
        (dict(annotation=dict(image_id=None)), True, 'annotation 3 of image None'),
        (dict(category=dict(id='x')), True, "id of categories is 'x'"),
        (dict(annotation=dict(category_id='1')), True, '3 of image 7.png has category_id'),
        (dict(annotation=dict(id='x')), False, "annotation 'x' of image 7.png has id 'x'"),
        (dict(annotation=dict(iscrowd='no')), False, "3 of image 7.png has iscrowd 'no'"),
        (dict(annotation=dict(iscrowd=-1)), False, 'has iscrowd -1'),
        (dict(annotation=dict(area=None)), False, 'annotation 3 of image 7.png has area None'),
        (dict(annotation=dict(bbox=[1, 2, 3])), False, 'has bbox [1, 2, 3]'),
        (dict(annotation=dict(bbox=[1, 2, 3, 'x'])), False, "has bbox [1, 2, 3, 'x']"),
    ],
)
def test_ids_that_do_not_compare_are_refused(changed, always, said):
    check(content(**changed), masks=False, measured=('bbox',), said=[said])
    check(content(**changed), masks=False, said=[said] if always else ())


@pytest.mark.parametrize('key', ['images', 'categories', 'name'])
def test_what_a_metric_misses_at_its_end_is_missed_at_once(key):
    one = content()
    if key == 'name':
        del one['categories'][1][key]
    else:
        del one[key]
    if key == 'categories':
        one['annotations'] = []
    check(one, masks=False, measured=('bbox',), said=[key])


@pytest.mark.parametrize('height', [None, 'x', float('nan'), -6])
def test_runs_of_an_image_without_a_size_are_refused(height):
    one = content(dict(segmentation=dict(counts=[30], size=[height, 5])), dict(height=height))
    check(one, said=[f'got {height!r} and 5'])


def test_boxes_that_are_not_measured_may_be_missing():
    one = content(dict(segmentation=[[0, 0, 4, 0, 4, 4]]))
    del one['annotations'][0]['bbox']
    check(one, measured=['segm'])
    check(content(dict(segmentation=[[0, 0, 640, 0, 640, 480] * 20] * 200)))  # in many parts


def test_ids_that_are_text_and_captions_are_fine():
    one = content(dict(image_id='a'), dict(id='a'))
    one['images'][1]['id'] = 'b'
    check(one, measured=('bbox',))
    one = dict(images=content()['images'], annotations=[dict(id='a', image_id=7, caption='b')])
    check(one, measured=('bbox',))


def written(path, one):
    path.write_text(json.dumps(one))
    return str(path)


def test_panoptic_files_are_looked_through_too(tmp_path):
    pytest.importorskip('mmdet')
    from mmdet.datasets.api_wrappers import COCOPanoptic

    one = content()
    segment = {key: one['annotations'][0].pop(key) for key in ('id', 'category_id', 'iscrowd')}
    one['annotations'][0]['segments_info'] = [segment, dict(segment, id=4, category_id='sky')]
    path = written(tmp_path / 'panoptic.json', one)
    said = r"annotation 4 of image 7\.png has category_id 'sky'.*panoptic\.json"
    with checked(masks=True, measured=('bbox',)), pytest.raises(BadDataError, match=said):
        COCOPanoptic(path)
    COCOPanoptic(path)  # as before


@pytest.mark.parametrize('segmentation', [None, [], [[]], [[4, 4, 24, 4]], 'abc'])
def test_masks_that_a_metric_cannot_encode_are_refused(tmp_path, segmentation):
    from pycocotools.coco import COCO

    path = written(tmp_path / 'all.json', content(dict(segmentation=segmentation)))
    said = re.escape("annotation 3 of image 7.png has an invalid mask, 'segmentation' is")
    with checked(masks=True, measured=('segm',)), pytest.raises(BadDataError, match=said):
        COCO(path)
