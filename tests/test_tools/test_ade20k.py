"""The shipped ADE20K config and a user's own, on the command line."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip('mmseg')

from tests.test_reliability.tiny import call
from tests.test_tools.segmentation import ROOT

CONFIG = ROOT / 'configs/upernet_dynswin_ade20k.py'
SMALL = (
    # A smaller crop than the published one, as only the workflow is tested.
    'train_dataloader.dataset.pipeline.3.crop_size=(64,64)',
    'model.data_preprocessor.size=(64,64)',
    'model.decode_head.channels=16',
    'model.auxiliary_head.channels=16',
    'model.backbone.init_cfg=None',
    'train_cfg.max_iters=2',
    'train_cfg.val_interval=2',
    'test_dataloader.dataset.pipeline.1.scale=(96,64)',
    'val_dataloader.dataset.pipeline.1.scale=(96,64)',
    *(f'{loader}_dataloader.num_workers=0' for loader in ('train', 'val')),
    *(f'{loader}_dataloader.persistent_workers=False' for loader in ('train', 'val')),
)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope='module')
def ade20k(tmp_path_factory):
    """A tree with ADE20K's layout: two images for training, two for validation."""
    root = tmp_path_factory.mktemp('ade')
    generator = np.random.default_rng(0)
    for split in ('training', 'validation'):
        for kind in ('images', 'annotations'):
            (root / kind / split).mkdir(parents=True)
        for index in range(2):
            picture = generator.integers(0, 255, (64, 80, 3), dtype=np.uint8)
            labels = generator.integers(0, 151, (64, 80), dtype=np.uint8)
            Image.fromarray(picture).save(root / 'images' / split / f'{index}.jpg')
            Image.fromarray(labels).save(root / 'annotations' / split / f'{index}.png')
    return root


def test_without_the_data_one_message_says_what_to_do(tmp_path):
    code, _, error = call('train', CONFIG)
    assert code == 2 and 'Traceback' not in error
    for said in ('data/ade/ADEChallengeData2016/images/training', '.zip', 'upernet_dynswin_mini'):
        assert said in error
    assert not (tmp_path / 'work_dirs').exists()


def train(config, ade20k, *options):
    """Train briefly; returns the log."""
    roots = [f'{loader}_dataloader.dataset.data_root={ade20k}' for loader in ('train', 'val')]
    code, _, error = call(
        'train', config, '--work-dir', 'work', '--cfg-options', *roots, *SMALL, *options
    )
    assert code == 0, error
    return ''.join(path.read_text() for path in Path('work').glob('*/*.log'))


@pytest.mark.slow
def test_trains_and_validates_on_a_tree_of_four_images(ade20k):
    log = train(CONFIG, ade20k)
    assert Path('work/iter_2.pth').exists()
    assert 'mIoU' in log and 'loss_keep_ratio' in log and 'keep_ratio_2' in log


@pytest.mark.slow
def test_a_users_config_that_inherits_mmsegs_trains_with_the_ratio_loss(tmp_path, ade20k):
    config = tmp_path / 'mine.py'
    config.write_text(
        "_base_ = 'mmseg::swin/"
        "swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py'\n"
        "custom_imports = dict(imports=['mmdyn'], allow_failed_imports=False)\n"
        "model = dict(backbone=dict(type='mmdyn.DynamicSwin'))\n"
        'default_hooks = dict(logger=dict(interval=1))\n'
    )
    log = train(config, ade20k, 'train_cfg.max_iters=1')
    assert "'EncoderDecoder' -> 'mmdyn.DynamicEncoderDecoder'" in log
    assert 'loss_keep_ratio' in log
