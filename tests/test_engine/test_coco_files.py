import json

import numpy as np
import pytest

from mmdyn.engine.coco_files import check_coco, checked, run_lengths
from mmdyn.errors import BadDataError

pytest.importorskip('pycocotools')
HW = (6, 5)


def content(annotation=(), image=(), category=()):
    """Two images, an annotation on the first."""
    images = [dict(id=i, file_name=f'{i}.png', height=6, width=5) for i in (7, 8)]
    images[0] |= dict(image)
    one = dict(id=3, image_id=7, category_id=1, bbox=[0, 0, 2, 2], area=4, iscrowd=0)
    categories = [dict(dict(id=1, name='a'), **dict(category)), dict(id=2, name='b')]
    return dict(images=images, annotations=[one | dict(annotation)], categories=categories)


def mask(counts, size=HW):
    return content(dict(segmentation=dict(counts=counts, size=list(size))))


@pytest.mark.parametrize('seed', range(20))
def test_packed_runs_are_read_as_pycocotools_reads_them(seed):
    from pycocotools import mask as api

    draw = np.random.default_rng(seed)
    shape = tuple(draw.integers(1, 300, 2))
    picture = np.repeat(draw.random(shape) < draw.random(), 1 + seed % 7, axis=0)
    packed = api.encode(np.asfortranarray(picture.astype(np.uint8)))['counts'].decode()
    flat = picture.flatten('F').astype(int)
    expected = np.diff([0, *(np.flatnonzero(np.diff(np.append(0, flat)))), flat.size])
    runs = run_lengths(packed)
    assert runs.tolist() == expected.tolist()
    check_coco(
        dict(
            images=[dict(id=1, height=picture.shape[0], width=picture.shape[1])],
            annotations=[
                dict(
                    id=1,
                    image_id=1,
                    category_id=1,
                    segmentation=dict(counts=packed, size=list(picture.shape)),
                )
            ],
            categories=[dict(id=1)],
        ),
        'all.json',
        masks=True,
    )


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
    with pytest.raises(BadDataError) as error:
        check_coco(mask(counts, size), 'all.json', masks=True)
    for text in ('annotation 3 of image 7.png', 'all.json', said):
        assert text in str(error.value)
    check_coco(mask(counts, size), 'all.json', masks=False)


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
    parts = [[0, 0, 4, 0, 4, 4], polygon, []]
    for segmentation in (parts, parts[1:], [[0, 0, 4e4, 0, 4e4, 4e4]] * 1000):
        one = content(dict(segmentation=segmentation))
        with pytest.raises(BadDataError, match=r'annotation 3 of image 7\.png .*all\.json'):
            check_coco(one, 'all.json', masks=True)


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
    check_coco(content(dict(segmentation=segmentation)), '', masks=True, measured=('bbox',))


NOT, BOXES = (), ('bbox',)
ANY, EVALUATED = (NOT, BOXES), (BOXES,)


@pytest.mark.parametrize(
    ('changed', 'when', 'said'),
    [
        (dict(image=dict(id='x')), ANY, "id of an image is 'x'"),
        (dict(image=dict(id=None)), ANY, 'id of an image is None'),
        (dict(annotation=dict(image_id='7')), ANY, "annotation 3 of image '7' has image_id '7'"),
        (dict(annotation=dict(image_id=None)), ANY, 'annotation 3 of image None'),
        (dict(category=dict(id='x')), ANY, "id of a category is 'x'"),
        (
            dict(annotation=dict(category_id='1')),
            ANY,
            'annotation 3 of image 7.png has category_id',
        ),
        (dict(annotation=dict(id='x')), EVALUATED, "annotation 'x' of image 7.png has id 'x'"),
        (
            dict(annotation=dict(iscrowd='no')),
            EVALUATED,
            "annotation 3 of image 7.png has iscrowd 'no'",
        ),
        (dict(annotation=dict(iscrowd=None)), EVALUATED, 'has iscrowd None'),
        (dict(annotation=dict(iscrowd=-1)), EVALUATED, 'has iscrowd -1'),
        (dict(annotation=dict(area=None)), EVALUATED, 'annotation 3 of image 7.png has area None'),
        (dict(annotation=dict(bbox=[1, 2, 3])), EVALUATED, 'has bbox [1, 2, 3]'),
        (dict(annotation=dict(bbox=[1, 2, 3, 'x'])), EVALUATED, "has bbox [1, 2, 3, 'x']"),
    ],
)
def test_ids_that_do_not_compare_are_refused(changed, when, said):
    for measured in NOT, BOXES:
        if measured in when:
            with pytest.raises(BadDataError) as error:
                check_coco(content(**changed), 'all.json', masks=False, measured=measured)
            assert said in str(error.value) and 'all.json' in str(error.value)
        else:
            check_coco(content(**changed), 'all.json', masks=False, measured=measured)


@pytest.mark.parametrize('key', ['images', 'categories'])
def test_what_a_metric_misses_at_its_end_is_missed_at_once(key):
    one = content()
    del one[key]
    if key == 'categories':
        one['annotations'] = []
    with pytest.raises(BadDataError, match=rf"all\.json has no '{key}'"):
        check_coco(one, 'all.json', masks=False, measured=BOXES)
    one = content()
    del one['categories'][1]['name']
    with pytest.raises(BadDataError, match=r'all\.json: category 2 has no name'):
        check_coco(one, 'all.json', masks=False, measured=BOXES)


@pytest.mark.parametrize('height', [None, 'x', float('nan'), -6])
def test_runs_of_an_image_without_a_size_are_refused(height):
    one = content(dict(segmentation=dict(counts=[30], size=[height, 5])), dict(height=height))
    with pytest.raises(BadDataError, match=f'it has {height!r} and 5'):
        check_coco(one, 'all.json', masks=True)


def test_boxes_that_are_not_measured_may_be_missing():
    one = content(dict(segmentation=[[0, 0, 4, 0, 4, 4]]))
    del one['annotations'][0]['bbox']
    check_coco(one, '', masks=True, measured=['segm'])
    many = [[0, 0, 640, 0, 640, 480] * 20] * 200  # of a picture in many parts
    check_coco(content(dict(segmentation=many)), '', masks=True)


def test_ids_that_are_text_everywhere_are_fine():
    one = content(dict(image_id='a'), dict(id='a'))
    one['images'][1]['id'] = 'b'
    check_coco(one, '', masks=True, measured=('bbox',))


def test_captions_are_fine():
    one = dict(images=content()['images'], annotations=[dict(id='a', image_id=7, caption='b')])
    check_coco(one, '', masks=True, measured=('bbox',))


def test_panoptic_files_are_looked_through_too(tmp_path):
    pytest.importorskip('mmdet')
    from mmdet.datasets.api_wrappers import COCOPanoptic

    one = content()
    segment = {key: one['annotations'][0].pop(key) for key in ('id', 'category_id', 'iscrowd')}
    one['annotations'][0]['segments_info'] = [segment, dict(segment, id=4, category_id='sky')]
    path = tmp_path / 'panoptic.json'
    path.write_text(json.dumps(one))
    COCOPanoptic(str(path))
    with checked(masks=True, measured=('bbox',)), pytest.raises(BadDataError) as error:
        COCOPanoptic(str(path))
    assert "annotation 4 of image 7.png has category_id 'sky'" in str(error.value)
    assert str(path) in str(error.value)
    COCOPanoptic(str(path))  # as before
