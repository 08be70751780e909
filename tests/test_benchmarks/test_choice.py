"""benchmarks/choice.py: controls, metrics, recipes, and a whole run on a tiny data set."""

import io
import json
from contextlib import redirect_stdout
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip('mmdet')

from mmengine.hooks import Hook
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from pycocotools import mask as masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mmdyn.registry import MODELS
from mmdyn.sparsity.policy import Site, TopKPolicy
from tests.test_benchmarks import load_benchmark

choice, controls, metrics, recipes, training = (
    load_benchmark(f'choice{part}')
    for part in ('', '_controls', '_metrics', '_recipes', '_training')
)


def sample_of(labels):
    sample = SegDataSample(gt_sem_seg=PixelData(data=torch.as_tensor(labels)[None]))
    sample.set_metainfo(dict(img_shape=labels.shape))
    return sample


def test_oracle_keeps_the_rarest_classes_and_then_their_neighbours():
    labels = np.zeros((64, 96), np.int64)
    labels[16:32, 48:64] = 1  # location (1, 3) of stride 16
    labels[:16, :16] = 255
    weights = controls.inverse_frequencies([labels], 2)
    assert weights[1] > 10 * weights[0] and np.mean(weights) == pytest.approx(1)
    policy = controls.OraclePolicy(weights)
    policy.read(torch.zeros(1, 3, 64, 112), [sample_of(labels)])  # padded on the right
    scores = torch.zeros(1, 28, 2, requires_grad=True)
    kept = policy(scores, Site(0, 0.05, (4, 7))).keep_mask.view(4, 7)
    assert kept.nonzero().tolist() == [[1, 3]]
    kept = policy(scores, Site(0, 5 / 28, (4, 7))).keep_mask.view(4, 7).bool()
    assert kept[:3, 2:5].sum() == 5 and kept[1, 3]
    kept = policy(scores, Site(0, 23 / 28, (4, 7))).keep_mask.view(4, 7).bool()
    assert kept[:, :6].sum() == 23 and not kept[0, 0] and not kept[:, 6].any()


@pytest.mark.parametrize('training', [False, True])
def test_oracle_looks_where_the_label_is_in_padded_and_partly_covered_maps(training):
    # 40x56 pixels of a batch of 40x104; 3 rows of stride 16 reach beyond it.
    labels = np.zeros((40, 56), np.int64)
    labels[32:40, 50:56] = 1
    padding = ((0, 0), (0, 48)) if training else ((0, 0), (0, 0))  # the host pads labels
    sample = sample_of(np.pad(labels, padding, constant_values=255))
    sample.set_metainfo(dict(img_shape=labels.shape))
    policy = controls.OraclePolicy([0.0, 1.0])
    policy.read(torch.zeros(1, 3, 40, 104), [sample])
    worth = policy.worth((3, 7)).view(3, 7)
    assert worth.argmax() == 2 * 7 + 3
    assert worth[2, 3] == pytest.approx(48 / 256 * (1 + 0.1 / 9 + 0.01 / 49), rel=0.02)


def test_oracle_reads_the_instances_of_a_detector_before_each_forward_pass():
    class Model(torch.nn.Module):
        def forward(self, inputs, data_samples, mode):
            return policy.worth((2, 2))

    both = np.zeros((2, 32, 32), np.uint8)
    both[0, :16, :16] = both[1, :8, :8] = 1
    instances = SimpleNamespace(masks=SimpleNamespace(masks=both, height=32, width=32))
    sample = type('Sample', (dict,), {'gt_instances': instances, 'img_shape': (32, 32)})()
    policy = controls.OraclePolicy([0.0, 1.0])
    model = Model()
    policy.watch(model)
    worth = model(torch.zeros(1, 3, 32, 32), data_samples=[sample], mode='loss')
    assert worth.argmax() == 0 and worth[0, 0] > 1 and (worth[0, 1:] < 0.2).all()


def test_inverted_keeps_what_topk_drops():
    log_probs = torch.randn(2, 30, 2).log_softmax(-1)
    site = Site(0, 0.5, (5, 6))
    pair = [
        policy(log_probs, site).keep_mask for policy in (TopKPolicy(), controls.InvertedPolicy())
    ]
    assert torch.equal(pair[0], 1 - pair[1])


@pytest.fixture
def coco_files(tmp_path):
    """Annotations of six pictures with squares, and masks found in them: moved, missed, doubled."""
    rng = np.random.default_rng(0)
    images, annotations, results = [], [], []
    for image in range(6):
        images.append(dict(id=image, height=96, width=96, file_name=f'{image}.jpg'))
        for _ in range(4):
            side, (x, y) = int(rng.integers(8, 48)), rng.integers(0, 44, 2)
            square = np.zeros((96, 96), np.uint8, order='F')
            square[y : y + side, x : x + side] = 1
            rle = masks.encode(square)
            rle['counts'] = rle['counts'].decode()
            box = [int(x), int(y), side, side]
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image,
                    category_id=1,
                    segmentation=rle,
                    area=int(square.sum()),
                    bbox=box,
                    iscrowd=0,
                )
            )
            for _ in range(rng.integers(0, 3)):
                moved = masks.encode(np.asfortranarray(np.roll(square, rng.integers(0, 6), 1)))
                moved['counts'] = moved['counts'].decode()
                results.append(
                    dict(
                        image_id=image, category_id=1, segmentation=moved, score=float(rng.random())
                    )
                )
    found = dict(images=images, annotations=annotations, categories=[dict(id=1, name='a')])
    for name, content in (('val', found), ('results', results)):
        (tmp_path / f'{name}.json').write_text(json.dumps(content))
    return tmp_path / 'val.json', tmp_path / 'results.json'


def test_average_precision_is_pycocotools_and_drawing_all_twice_changes_nothing(coco_files):
    with redirect_stdout(io.StringIO()):
        truth = COCO(str(coco_files[0]))
        reference = COCOeval(truth, truth.loadRes(str(coco_files[1])), 'segm')
        reference.evaluate(), reference.accumulate(), reference.summarize()
    matches = metrics.match_detections(*coco_files)
    assert 5 < 100 * reference.stats[0] < 95 and 5 < 100 * reference.stats[3] < 95
    for name, index in (('mask_ap', 0), ('mask_ap_small', 3)):
        draws = np.stack([np.ones(6), np.full(6, 2), np.eye(6)[0] + np.eye(6)[1]])
        once, twice, two = metrics.average_precision(matches[name], draws)
        assert once == pytest.approx(100 * reference.stats[index]) == twice
        assert two != pytest.approx(once)


def test_paths_of_all_sparse_blocks_are_seen_and_taught():
    from mmdyn.models.backbones import DynamicSwin

    torch.manual_seed(0)
    backbone = DynamicSwin(
        embed_dims=8,
        depths=(1, 1, 8, 1),
        num_heads=(1, 1, 1, 1),
        window_size=4,
        keep_ratios=(0.5, 0.3, 0.2),
        sparse_blocks=(2, 4, 6),
    )
    model = torch.nn.Module()
    model.backbone = backbone
    paths = recipes.Paths(model)
    backbone.train()
    backbone.forward_sparse(torch.randn(2, 3, 64, 64), policy=TopKPolicy())
    assert set(paths.updates) == set(range(2, 8))
    gains = [paths.gains(k) for k in range(3)]
    assert all(gain.shape == (2, 16) and (gain > 0).all() for gain in gains)
    terms = [recipes.teach(d, g, d.keep_ratio) for d, g in zip(paths.decisions, gains, strict=True)]
    (paths.distance() + sum(terms)).backward()
    for name, parameter in backbone.named_parameters():
        if 'predictors' in name or 'fast_path' in name:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_teaching_raises_the_scores_of_what_is_worth_most():
    logits = torch.zeros(1, 10, 2, requires_grad=True)
    worth = torch.arange(10.0)[None]
    optimizer = torch.optim.SGD([logits], lr=5.0)
    for _ in range(20):
        decision = TopKPolicy()(logits.log_softmax(-1), Site(0, 0.3, (2, 5)))
        optimizer.zero_grad()
        recipes.teach(decision, worth, 0.3).backward()
        optimizer.step()
    best = TopKPolicy()(logits.log_softmax(-1), Site(0, 0.3, (2, 5))).keep_mask
    assert best[0].nonzero().flatten().tolist() == [7, 8, 9]


@pytest.mark.parametrize('name', ['one', 'deeper'])
@pytest.mark.parametrize('task', ['nuclei', 'nuclei-plain'])
def test_other_predictors_spend_as_many_slow_updates(task, name):
    recipe = recipes.RECIPES[name]
    ladder = choice.LADDERS[recipe.ladder]
    config = training.load_config(training.TASKS[task].sparse)

    def slow_updates():
        backbone = MODELS.build(config.model.backbone)
        ratios = torch.ones(backbone.depths[backbone.sparse_stage])
        for block, ratio in zip(backbone.sparse_blocks, backbone.keep_ratios, strict=True):
            ratios[block:] = ratio
        return ratios.sum().item()

    config.model.backbone.keep_ratios = ladder
    before = slow_updates()
    first, depth = {'nuclei': (2, 12), 'nuclei-plain': (0, 6)}[task]
    config.merge_from_dict(recipe.options(ladder, [], config))
    dense = first if name == 'one' else first + depth // 6
    assert slow_updates() == pytest.approx(before)
    assert config.model.backbone.sparse_blocks[0] == dense


def test_intervals_have_the_variance_of_seeds(monkeypatch):
    values = {0: -1.0, 1: 0.0, 2: 4.0}
    draws = choice.Draws.__new__(choice.Draws)
    monkeypatch.setattr(draws, 'of', lambda unit: dict(miou=np.full(20000, values[unit.seed])))
    zero = SimpleNamespace(seed=1)
    pairs = [(SimpleNamespace(seed=seed), zero) for seed in values]
    low, high = draws.interval(pairs, 'miou')
    # Plain resampling would end at the extreme seeds, 2 below and 3 above the mean.
    assert (low, high) == pytest.approx((1 - 2 * 1.5**0.5, 1 + 3 * 1.5**0.5))
    assert draws.interval(pairs[:1], 'miou') == (-1.0, -1.0)


def test_bfloat16_inside_float32_outside():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone, self.decode_head = torch.nn.Conv2d(3, 4, 1), torch.nn.Conv2d(4, 2, 1)

    model = Model()
    training.compute_in_bfloat16(model)
    maps = model.backbone.forward(torch.randn(1, 3, 4, 4))
    out = model.decode_head.forward(maps)
    assert (maps.dtype, out.dtype) == (torch.bfloat16, torch.float32)
    out.sum().backward()
    assert model.backbone.weight.grad.dtype == torch.float32


TINY = """
_base_ = 'mmdyn::{base}.py'
model = dict(
    backbone=dict(embed_dims=8, num_heads=(1, 1, 1, 1), depths=(1, 1, 8, 1), window_size=4),
    decode_head=dict(in_channels=[8, 16, 32, 64], channels=8),
    auxiliary_head=dict(in_channels=32, channels=8),
)
train_cfg = dict(max_iters=2)
param_scheduler = dict(_delete_=True, type='ConstantLR', factor=1.0, by_epoch=False)
default_hooks = dict(checkpoint=dict(interval=1))
train_dataloader = dict(batch_size=2)
val_dataloader = dict(num_workers=0, persistent_workers=False)
test_dataloader = dict(num_workers=0, persistent_workers=False)
"""


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A data set of four pictures as a task, and the options of the command line."""
    rng = np.random.default_rng(0)
    for split in ('train', 'val'):
        for folder in ('images', 'annotations'):
            (tmp_path / 'nuclei' / folder / split).mkdir(parents=True)
        for index in range(4):
            labels = np.zeros((64, 64), np.uint8)
            x, y = rng.integers(0, 32, 2)
            labels[y : y + 24, x : x + 24], labels[y + 1 : y + 23, x + 1 : x + 23] = 2, 1
            pictures = dict(images=labels * 100, annotations=labels)
            for folder, content in pictures.items():
                name = f'{index}.{"jpg" if folder == "images" else "png"}'
                cv2.imwrite(str(tmp_path / 'nuclei' / folder / split / name), content)
    for name in ('swin', 'dynswin'):
        text = TINY.format(base=f'upernet_{name}_nuclei')
        (tmp_path / f'{name}.py').write_text(text)
    task = training.Task(str(tmp_path / 'swin.py'), str(tmp_path / 'dynswin.py'), 'nuclei')
    monkeypatch.setitem(training.TASKS, 'nuclei', task)
    folders = ['--work-dir', str(tmp_path / 'work'), '--out', str(tmp_path / 'out')]
    return ['--data', str(tmp_path), '--tasks', 'nuclei', *folders]


class Stop(Hook):
    """Ends a training before an iteration."""

    def __init__(self, iteration):
        self.iteration = iteration

    def before_train_iter(self, runner, *args, **kwargs):
        if runner.iter == self.iteration:
            raise KeyboardInterrupt


@pytest.mark.parametrize('stop, left', [(1, 1), (0, 2)])
def test_an_interrupted_training_is_resumed_but_never_from_another_recipes_checkpoint(
    tiny, tmp_path, stop, left
):
    settings = dict(seed=0, data_root=str(tmp_path / 'nuclei'))
    arguments = (str(tmp_path / 'swin.py'), tmp_path / 'work')
    training.train(*arguments, **settings, cfg_options={'optim_wrapper.optimizer.lr': 1e-4})
    with pytest.raises(KeyboardInterrupt):
        training.train(*arguments, **settings, prepare=lambda r: r.register_hook(Stop(stop)))
    iterations = []
    training.train(*arguments, **settings, advance=lambda: iterations.append(1))
    assert len(iterations) == left


def test_a_result_is_of_the_training_that_its_folder_has(tiny, tmp_path, monkeypatch):
    laboratory = training.Laboratory(tmp_path / 'work', tmp_path)
    unit = training.Unit('nuclei', 0, 'dense')
    assert laboratory.finished(unit) is None
    row = laboratory.result(unit)
    monkeypatch.setattr(laboratory, 'evaluate', lambda *_: dict(miou=1.0, boundary_f=2.0))
    assert laboratory.result(unit) == row == laboratory.finished(unit)
    config = tmp_path / 'swin.py'
    config.write_text(config.read_text() + 'optim_wrapper = dict(optimizer=dict(lr=1e-5))\n')
    assert laboratory.result(unit)['miou'] == 1.0 == laboratory.finished(unit)['miou']


def test_a_whole_run_and_what_is_read_again(tiny, tmp_path, monkeypatch, capsys):
    threads = torch.get_num_threads()
    hard = [0.3, 0.2, 0.1]
    monkeypatch.setattr(choice, 'LADDERS', (tuple(hard),))
    path = tmp_path / 'out' / 'choice.json'
    assert choice.main([*tiny, '--seeds', '0', '1', '--time']) == 0
    result = json.loads(path.read_text())
    rows = result['rows']
    assert len(rows) == 2 * (3 + len(choice.METHODS))
    assert all(0 <= row[metric] <= 100 for row in rows for metric in ('miou', 'boundary_f'))
    (one,) = (
        found
        for found in result['differences']
        if (found['first'], found['second']) == ('learned', 'random') and found['metric'] == 'miou'
    )
    value = {(row['seed'], row['method']): row['miou'] for row in rows}
    each = [value[seed, 'learned'] - value[seed, 'random'] for seed in (0, 1)]
    assert one['each'] == pytest.approx(each) and one['difference'] == pytest.approx(np.mean(each))
    assert one['low'] <= one['high']
    assert [time['ladder'] for time in result['times']] == [[], [1.0, 1.0, 1.0], hard]
    assert (path.parent / 'choice.png').stat().st_size > 10000

    names = [name for name, recipe in recipes.RECIPES.items() if name and not recipe.ladder]
    assert choice.main([*tiny, '--seeds', '0', '--recipes', *names]) == 0
    extra = json.loads(path.read_text())
    assert extra['times'] == result['times']
    taught = {row['recipe'] for row in extra['rows'] if row['method'] == 'learned'}
    assert taught == {'', *names}
    compared = {(one['recipe'], one['second']) for one in extra['differences'] if one['recipe']}
    assert compared == {(name, second) for name in names for second in ('learned', 'random')}

    def refuse(*args, **kwargs):
        raise AssertionError('trained again')

    monkeypatch.setattr(training, 'train', refuse)
    assert choice.main([*tiny, '--seeds', '0', '1', '2', '--finished']) == 0
    assert json.loads(path.read_text())['rows'] == rows
    assert 'learned - random' in capsys.readouterr().out
    torch.set_num_threads(threads)
