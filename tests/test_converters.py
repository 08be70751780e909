"""Checkpoints of other releases give the function they were trained to be."""

import pytest
import torch

from mmdyn.models import DynamicSwin
from mmdyn.models.backbones.pretrained import NEW_PARAMETERS
from tests.reference import dynamic_swin as reference

TINY = dict(embed_dims=8, heads=(1, 2, 2, 4), window=7)


def converted(tmp_path, state, **kwargs):
    """Our model, initialised from a file of the original's layout."""
    path = tmp_path / 'original.pth'
    torch.save({'model': state}, path)
    model = DynamicSwin(
        embed_dims=TINY['embed_dims'],
        num_heads=TINY['heads'],
        convert_weights=True,
        init_cfg=dict(type='Pretrained', checkpoint=str(path)),
        **kwargs,
    )
    model.init_weights()
    return model.eval()


@pytest.mark.parametrize(
    'depths, sparse_blocks', [((2, 2, 6, 2), (1, 2, 3)), ((2, 2, 18, 2), (2, 4, 6))]
)
@pytest.mark.parametrize('batch', [1, 4])
def test_original_dynamic_swin_keeps_its_function(tmp_path, depths, sparse_blocks, batch):
    state = reference.random_state(depths=depths, predictors=3, **TINY)
    model = converted(tmp_path, state, depths=depths)
    images = torch.randn(batch, 3, 448, 448, generator=torch.Generator().manual_seed(1))
    for ratios in ((0.7, 0.5, 0.3), (0.9, 0.81, 0.729)):
        model.set_keep_ratios(ratios)
        with torch.no_grad():
            ours = model(images)[-1].flatten(2).transpose(1, 2)
            theirs = reference.last_map(
                state,
                images,
                depths=depths,
                heads=TINY['heads'],
                window=TINY['window'],
                sparse_blocks=sparse_blocks,
                keep_ratios=ratios,
            )
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_nothing_of_an_original_checkpoint_is_lost():
    state = reference.random_state(depths=(2, 2, 6, 2), predictors=3, **TINY)
    model = DynamicSwin(
        embed_dims=8, num_heads=TINY['heads'], convert_weights=True, out_indices=(3,)
    )
    names = model.adapt_state_dict(dict(state))
    assert set(names) == {name for name, _ in model.named_parameters()}
    # The classifier, the indices that follow from the window, and the fast path of the block
    # before the first predictor, which is never taken.
    dropped = [k for k in state if k.startswith('head.') or k.endswith('_index')]
    dropped += [k for k in state if k.startswith('layers.2.blocks.0.fastmlp')]
    assert len(names) == len(state) - len(dropped)


def test_a_plain_swin_gives_all_but_the_new_parameters():
    state = reference.random_state(depths=(2, 2, 6, 2), predictors=0, **TINY)
    state = {key: value for key, value in state.items() if 'fastmlp' not in key}
    model = DynamicSwin(
        embed_dims=8, num_heads=TINY['heads'], convert_weights=True, out_indices=(3,)
    )
    names = model.adapt_state_dict(dict(state))
    lacking = {name for name, _ in model.named_parameters()} - set(names)
    assert lacking and all(any(new in name for new in NEW_PARAMETERS) for name in lacking)
    assert not set(names) - set(model.state_dict())
