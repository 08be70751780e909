"""NucleiDataset on a tiny tree, read by the config's own pipeline."""

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from mmseg.utils import register_all_modules
from PIL import Image

import mmdyn  # noqa: F401, registers the config look-up


def test_pictures_and_label_maps_are_found_and_scaled(tmp_path):
    register_all_modules(init_default_scope=False)
    labels = np.zeros((40, 60), np.uint8)
    labels[8:20, 8:20], labels[9:19, 9:19] = 2, 1
    for folder, suffix, content in (
        ('images', 'jpg', labels * 100),
        ('annotations', 'png', labels),
    ):
        (tmp_path / folder / 'val').mkdir(parents=True)
        Image.fromarray(content).convert('RGB' if suffix == 'jpg' else 'L').save(
            tmp_path / folder / 'val' / f'a.{suffix}'
        )
    cfg = Config.fromfile('configs/upernet_swin_nuclei.py').val_dataloader.dataset
    cfg.data_root = str(tmp_path)
    with DefaultScope.overwrite_default_scope('mmseg'):
        dataset = DATASETS.build(cfg)
    assert dataset.metainfo['classes'] == ('background', 'nucleus', 'border')
    (item,) = dataset
    assert item['inputs'].shape == (3, 341, 512)
    read = item['data_samples'].gt_sem_seg.data[0].numpy()
    assert read.shape == (40, 60) and (read == labels).all()
