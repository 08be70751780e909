"""Checks of the weights that a run loads."""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseTTAModel
from torch import nn

from mmdyn.converters.additions import NEW_PARAMETERS
from mmdyn.engine.hooks.check_weights import CheckWeightsHook


class Head(nn.Module):
    """One layer that was renamed once."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        for key in [key for key in state_dict if key.startswith(f'{prefix}old.')]:
            state_dict[key.replace(f'{prefix}old.', f'{prefix}layer.')] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


class Model(nn.Module):
    """Two layers."""

    def __init__(self):
        super().__init__()
        self.head = Head()
        self.last = nn.Linear(2, 2)


class Mean(BaseTTAModel):
    """Wraps a model."""

    def __init__(self, module):
        nn.Module.__init__(self)
        self.module = module

    def merge_preds(self, data_samples_list):
        raise NotImplementedError


def look(checkpoint, model=None, whole=True, **more):
    """Call the hook with the content of 'some.pth'."""
    runner = SimpleNamespace(model=model or Model(), cfg=Config(dict(load_from='some.pth')))
    CheckWeightsHook(runner, whole=whole, **more).after_load_checkpoint(runner, checkpoint)
    return checkpoint


def test_what_mmengine_would_not_look_at_is_put_where_it_looks():
    state = Model().state_dict()
    assert look(dict(model=state))['state_dict'] is state
    assert look(dict(state_dict=state, model={}))['state_dict'] is state
    assert look(dict(state))['state_dict'] == dict(state)


class Versioned(Model):
    """Translates state dicts of an old version."""

    _version = 2

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        if local_metadata.get('version', 1) < 2:
            for key in [key for key in state_dict if key.startswith('first.')]:
                state_dict[key.replace('first.', 'last.')] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


@pytest.mark.parametrize('version', [1, 2])
def test_the_version_in_a_state_dict_counts(version):
    state = Versioned().state_dict()
    for name in ('weight', 'bias'):
        state[f'first.{name}'] = state.pop(f'last.{name}')
    state._metadata['']['version'] = version
    refused = pytest.raises(ValueError, match=r'e\.g\. last\.weight')
    with contextlib.nullcontext() if version == 1 else refused:
        look(dict(state_dict=state), Versioned())


@pytest.mark.parametrize('whole', [True, False])
def test_names_of_old_files_are_the_models_to_translate(whole):
    state = {f'module.{k}'.replace('layer', 'old'): v for k, v in Model().state_dict().items()}
    look(dict(state_dict=state), whole=whole)


def test_a_part_that_is_missing_or_of_another_shape_is_named():
    state = Model().state_dict()
    missing = {key: value for key, value in state.items() if key != 'head.layer.bias'}
    with pytest.raises(ValueError, match=r'some\.pth lacks 1 .*e\.g\. head\.layer\.bias'):
        look(dict(state_dict=missing))
    look(dict(state_dict=missing), whole=False)
    other = state | {'last.weight': torch.zeros(3, 2)}
    with pytest.raises(ValueError, match=r'last\.weight.*\(3, 2\).*\(2, 2\)'):
        look(dict(state_dict=other))
    with pytest.raises(ValueError, match=r'some\.pth has no parameter'):
        look(dict(state_dict={'backbone.weight': torch.zeros(1)}), whole=False)


@pytest.mark.parametrize('wrap', [Mean, nn.DataParallel, lambda m: nn.DataParallel(Mean(m))])
def test_models_are_found_in_their_wrappers(wrap):
    look(dict(state_dict=Model().state_dict()), wrap(Model()))


def segmentor(head=None, **backbone):
    from mmengine.registry import init_default_scope
    from mmseg.registry import MODELS

    from tests.test_models.test_mmseg_adapter import BACKBONE, segmentor_cfg

    init_default_scope('mmseg')
    head = {**segmentor_cfg()['decode_head'], **(head or {})}
    return MODELS.build(Config(segmentor_cfg(backbone={**BACKBONE, **backbone}, decode_head=head)))


def tiled_segmentor(tile_ratio, keep_ratios=(1.0, 1.0, 1.0)):
    """A segmentor that chooses locations and, with a ratio below 1, tiles."""
    head = dict(type='mmdyn.DynamicUPerHead', tile_ratio=tile_ratio)
    return segmentor(head, keep_ratios=keep_ratios)


def tiled_detector():
    from tests.test_models.test_dynamic_fpn import SPARSE
    from tests.test_models.test_mmdet_adapter import build

    return build(**SPARSE, backbone=dict(keep_ratios=(1.0, 1.0, 1.0)))


def without(state, *parts):
    return {key: value for key, value in state.items() if not any(part in key for part in parts)}


@pytest.mark.parametrize(
    ('make', 'lacking', 'named'),
    [
        (lambda: tiled_segmentor(0.5), NEW_PARAMETERS, 'decode_head'),
        (lambda: tiled_segmentor(0.5), ('decode_head.predictors.',), 'decode_head'),
        (lambda: tiled_segmentor(0), NEW_PARAMETERS, 'decode_head'),
        (lambda: tiled_segmentor(1, (0.7, 0.5, 0.3)), NEW_PARAMETERS, 'backbone'),
        (tiled_detector, NEW_PARAMETERS, 'neck'),
        (tiled_detector, ('neck.predictors',), 'neck'),
        (tiled_detector, ('rpn_head.fast_path',), 'rpn_head'),
    ],
)
def test_whatever_decides_must_keep_everything_for_a_dense_checkpoint(make, lacking, named):
    model = make()
    look(dict(state_dict=model.state_dict()), model)
    dense = without(model.state_dict(), *lacking)
    with pytest.raises(ValueError, match=rf'some\.pth .*e\.g\. {named}\.'):
        look(dict(state_dict=dense), model)
    look(dict(state_dict=dense), model, whole=False)


def test_what_keeps_everything_needs_no_predictors_unless_ratios_are_to_change():
    model = tiled_segmentor(1)
    dense = without(model.state_dict(), *NEW_PARAMETERS)
    look(dict(state_dict=dense), model)
    with pytest.raises(ValueError, match=r'e\.g\. backbone\.'):
        look(dict(state_dict=dense), model, any_ratio=True)
    detector = tiled_detector()
    detector.neck.set_tile_ratio(1)
    look(dict(state_dict=without(detector.state_dict(), *NEW_PARAMETERS)), detector)


def test_a_training_starts_from_no_part_of_a_backbone():
    model = segmentor()
    state = model.state_dict() | {'decode_head.conv_seg.weight': torch.zeros(7, 16, 1, 1)}
    for start in (
        state,  # of other classes
        without(state, *NEW_PARAMETERS),  # dense
        without(state, 'decode_head.', 'backbone.norm'),
        without(state, 'backbone.'),
    ):
        look(dict(state_dict=start), model, whole=False)
    for start, named in (
        (segmentor(window_size=5).state_dict(), r'bias_table.*\(81, 1\).*\(169, 1\)'),
        (segmentor(depths=(1, 1, 4, 1)).state_dict(), r'stages\.2\.blocks\.4'),
        (without(state, 'backbone.stages.'), r'backbone\.stages\.0'),
    ):
        with pytest.raises(ValueError, match=rf'some\.pth lacks.*{named}'):
            look(dict(state_dict=start), model, whole=False)
