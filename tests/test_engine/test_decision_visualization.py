"""DecisionVisualizationHook in a run of the runner."""

import pytest

pytest.importorskip('mmseg')

from mmengine.runner import Runner

from mmdyn.engine.hooks import DecisionVisualizationHook
from mmdyn.engine.prepare import prepare_training
from tests.test_tools.segmentation import write_config, write_data


def test_drawings_go_to_the_visualizers_backends(tmp_path):
    data = write_data(tmp_path / 'data')
    config = write_config(tmp_path, data)
    options = {
        'custom_hooks': [dict(type='mmdyn.DecisionVisualizationHook', pictures=2, width=300)],
        'visualizer.name': 'decisions',
    }
    cfg, _ = prepare_training(str(config), work_dir=str(tmp_path / 'work'), cfg_options=options)
    runner = Runner.from_cfg(cfg)
    policy = runner.model.backbone.policy
    runner.train()
    assert runner.model.backbone.policy is policy
    drawn = sorted(path.name for path in (tmp_path / 'work').rglob('vis_image/*.png'))
    assert drawn == ['val_0_2.png', 'val_1_2.png']


@pytest.mark.parametrize(('value', 'error'), [(0, ValueError), (True, TypeError), ('4', TypeError)])
def test_wrong_arguments(value, error):
    with pytest.raises(error, match=repr(value)):
        DecisionVisualizationHook(pictures=value)
