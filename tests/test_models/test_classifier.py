"""Image classifiers: logits, losses, distillation, loading, LV-ViT."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmdyn.models import ClassifierPreprocessor, DynamicClassifier
from mmdyn.registry import MODELS
from mmdyn.samples import ClassSample
from mmdyn.sparsity import RandomPolicy

BACKBONES = dict(
    swin=dict(
        type='mmdyn.DynamicSwin',
        embed_dims=16,
        depths=(1, 4),
        num_heads=(1, 2),
        strides=(4, 2),
        window_size=4,
        out_indices=(1,),
        sparse_stage=1,
    ),
    convnext=dict(
        type='mmdyn.DynamicConvNeXt',
        arch=dict(depths=(1, 4), channels=(16, 32)),
        layer_scale_init_value=1.0,
        out_indices=(1,),
        sparse_stage=1,
    ),
    deit=dict(
        type='mmdyn.DynamicViT',
        img_size=32,
        patch_size=8,
        embed_dims=32,
        num_layers=8,
        num_heads=2,
        out_indices=(7,),
        final_norm=True,
    ),
    lvvit=dict(
        type='mmdyn.DynamicViT',
        img_size=32,
        patch_size=8,
        embed_dims=32,
        num_layers=8,
        num_heads=2,
        mlp_ratio=3,
        qkv_bias=False,
        norm_cfg=dict(type='LN', eps=1e-5),
        stem_channels=8,
        skip_lam=2.0,
        out_indices=(7,),
        final_norm=True,
    ),
)


def make(name, **kwargs):
    torch.manual_seed(0)
    config = dict(type='mmdyn.DynamicClassifier', backbone=dict(BACKBONES[name]), num_classes=5)
    if name == 'lvvit':
        config['aux_head'] = True
    if name == 'deit':
        config['feature_distill_loss'] = dict(type='mmdyn.FeatureDistillLoss', kept_only=True)
    model = MODELS.build(config | kwargs)
    model.init_weights()
    for parameter in model.parameters():  # norms and biases that matter
        if parameter.dim() == 1:
            nn.init.normal_(parameter, 0.3, 0.3)
    return model


def samples(count):
    return [ClassSample(gt_label=torch.tensor(i % 5)) for i in range(count)]


@pytest.fixture(params=BACKBONES)
def name(request):
    return request.param


@pytest.mark.parametrize('batch', [1, 2, 3])
def test_logits_and_predictions_agree_and_do_not_depend_on_the_batch(name, batch):
    model = make(name).eval()
    images = torch.randn(batch, 3, 32, 32)
    with torch.no_grad():
        logits = model(images, mode='tensor')
        predicted = model(images, samples(batch), mode='predict')
        single = torch.cat([model(image[None]) for image in images])
    assert logits.shape == (batch, 5)
    torch.testing.assert_close(logits, single, rtol=1e-4, atol=1e-5)
    scores = torch.stack([sample.pred_score for sample in predicted])
    torch.testing.assert_close(scores, logits.softmax(dim=1))
    assert [sample.pred_label for sample in predicted] == logits.argmax(dim=1).tolist()
    assert all(len(sample.kept_fractions) == 3 for sample in predicted)


def test_logits_are_those_of_the_originals_pooling(name):
    """Swin normalises then pools, ConvNeXt pools then normalises, a ViT has a class token."""
    model = make(name).eval()
    backbone = model.backbone
    images = torch.randn(2, 3, 32, 32)
    found = []
    norm = backbone.norm1 if name in ('swin', 'convnext') else backbone.norm
    hook = norm.register_forward_hook(lambda _, args, out: found.append((args[0], out)))
    with torch.no_grad():
        out = backbone.forward_sparse(images)
        logits = model.class_logits(out.feats)
    hook.remove()
    before, after = found[0]
    wanted = dict(
        swin=after.mean(dim=1),
        convnext=F.layer_norm(before.mean(dim=1), (32,), norm.weight, norm.bias, norm.eps),
    ).get(name, after[:, 0])
    torch.testing.assert_close(logits, model.head(wanted), rtol=1e-4, atol=1e-5)


def test_masked_and_gathered_execution_agree(name):
    model = make(name).eval()
    images = torch.randn(3, 3, 32, 32)
    outs = [
        model.backbone.forward_sparse(images, execution=way, policy=RandomPolicy(0))
        for way in ('masked', 'gathered')
    ]
    with torch.no_grad():
        torch.testing.assert_close(*map(model.logits_of, outs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('teacher', ['self', None])
def test_losses_reach_every_parameter(name, teacher):
    model = make(name, teacher=teacher).train()
    losses = model(torch.randn(4, 3, 32, 32), samples(4), mode='loss')
    last = 'loss_distill_token' if name == 'lvvit' else 'loss_distill_feature'
    distilled = {'loss_distill_logit', last} if teacher else set()
    wanted = {'loss_cls', 'loss_keep_ratio'} | distilled
    assert {key for key in losses if 'loss' in key} == wanted
    sum(value for key, value in losses.items() if 'loss' in key).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
        # The offset of keys does not change a softmax; a norm takes away what is added before it.
        if not key.endswith('bias'):
            assert parameter.grad.abs().sum() > 0, key


def test_a_teacher_that_agrees_costs_nothing(name):
    """The dense student is its own teacher."""
    model = make(name, teacher='self')
    model.backbone.set_keep_ratios((1.0, 1.0, 1.0))
    model.eval()  # no sampling
    losses = model.loss(torch.randn(2, 3, 32, 32), samples(2))
    for key in losses:
        if 'distill' in key:
            assert losses[key].item() == pytest.approx(0, abs=1e-6), key


def test_lvvit_distils_the_class_probabilities_of_kept_tokens():
    model = make('lvvit', teacher='self').eval()
    images = torch.randn(2, 3, 32, 32)
    losses = model.loss(images, samples(2))
    with torch.no_grad():
        out = model.backbone.forward_sparse(images)
        dense = copy.deepcopy(model)
        dense.backbone.set_keep_ratios((1.0, 1.0, 1.0))
        feats = dense.backbone(images)
        ours, theirs = (
            model.aux_head(f[-2].flatten(2).transpose(1, 2)).log_softmax(-1)
            for f in (out.feats, feats)
        )
        kept = out.decisions[-1].keep_mask > 0
        divergence = (theirs.exp() * (theirs - ours)).sum(-1)[kept].mean()
    assert losses['loss_distill_token'].item() == pytest.approx(0.5 * divergence.item(), rel=1e-4)


def test_mixed_labels_are_learned_as_probabilities():
    model = make('convnext').eval()
    images = torch.randn(2, 3, 32, 32)
    mixed = [
        ClassSample(gt_label=torch.tensor(0), gt_score=torch.tensor(p))
        for p in ([0.7, 0.3, 0, 0, 0.0], [0, 0, 0.5, 0.5, 0.0])
    ]
    with torch.no_grad():
        loss = model.loss(images, mixed)['loss_cls']
        logits = model(images).log_softmax(dim=1)
    wanted = -(torch.stack([sample.gt_score for sample in mixed]) * logits).sum(dim=1).mean()
    torch.testing.assert_close(loss, wanted)


def test_the_auxiliary_logit_is_the_highest_of_kept_tokens():
    model = make('lvvit').eval()
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        out = model.backbone.forward_sparse(images)
        tokens = model.aux_head(out.feats[-2].flatten(2).transpose(1, 2))
        dropped = out.decisions[-1].keep_mask == 0
        wanted = tokens.masked_fill(dropped[..., None], float('-inf')).amax(dim=1)
        logits = model(images)
    torch.testing.assert_close(logits, model.class_logits(out.feats) + 0.5 * wanted)


def test_a_backbones_checkpoint_with_a_head_loads(name):
    model, other = make(name), make(name)
    nn.init.constant_(other.head.bias, 7.0)
    bare = {key.removeprefix('backbone.'): value for key, value in model.state_dict().items()}
    other.load_state_dict(bare, strict=True)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(other.state_dict()[key], value)
    other.load_state_dict(model.state_dict(), strict=True)
    # The backbone alone ignores the head.
    make(name).backbone.load_state_dict(bare, strict=True)


def test_a_classifier_needs_the_last_map():
    with pytest.raises(ValueError, match=r'out_indices=\(7,\)'):
        MODELS.build(
            dict(
                type='mmdyn.DynamicClassifier',
                backbone=BACKBONES['deit'] | dict(out_indices=(5, 6)),
            )
        )
    with pytest.raises(ValueError, match=r"mode must be .*'classify'"):
        make('convnext')(torch.zeros(1, 3, 32, 32), mode='classify')


def test_preprocessor_mixes_and_erases_in_training_only():
    torch.manual_seed(0)
    mixing = dict(mixup_alpha=0.8, label_smoothing=0.1)
    preprocess = ClassifierPreprocessor(
        mean=[0.0] * 3, std=[1.0] * 3, mixing=mixing, erasing=1.0, bgr_to_rgb=True
    )
    images = [torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8) for _ in range(4)]
    plain = preprocess(dict(inputs=images, data_samples=samples(4)), training=False)
    torch.testing.assert_close(plain['inputs'], torch.stack(images).flip(1).float())
    assert 'gt_score' not in plain['data_samples'][0]
    trained = preprocess(dict(inputs=images, data_samples=samples(4)), training=True)
    scores = torch.stack([sample.gt_score for sample in trained['data_samples']])
    torch.testing.assert_close(scores.sum(dim=1), torch.ones(4))
    assert not torch.equal(trained['inputs'], plain['inputs'])
    with pytest.raises(ValueError, match='batch of 3'):
        preprocess(dict(inputs=images[:3], data_samples=samples(3)), training=True)


def test_without_an_auxiliary_head_there_is_none():
    assert isinstance(make('deit'), DynamicClassifier) and make('deit').aux_head is None
