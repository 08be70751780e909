"""The frozen dense teacher."""

import contextlib
import copy
import pickle

import pytest
import torch
from mmengine.config import Config
from mmengine.model import ExponentialMovingAverage
from mmengine.registry import DefaultScope, init_default_scope

pytest.importorskip('mmseg')

from mmseg.registry import MODELS

from mmdyn.converters.additions import NEW_PARAMETERS
from mmdyn.models.teacher import Teacher
from tests.test_models.test_mmseg_adapter import BACKBONE, batch, segmentor_cfg

ONES = dict(BACKBONE, keep_ratios=(1.0, 1.0, 1.0))
# Without batch statistics and dropout a model computes the same in training.
HEAD = dict(
    segmentor_cfg()['decode_head'], dropout_ratio=0.0, norm_cfg=dict(type='GN', num_groups=2)
)


def build(seed=0, **changes):
    init_default_scope('mmseg')
    torch.manual_seed(seed)
    model = MODELS.build(Config(dict(model=segmentor_cfg(**changes))).model)
    model.init_weights()
    return model


def losses_of(model, shapes=((96, 96), (96, 96)), ignored=0):
    torch.manual_seed(1)
    data = model.data_preprocessor(batch(shapes), training=True)
    for sample in data['data_samples']:
        sample.gt_sem_seg.data[:, :ignored] = 255
    return model(**data, mode='loss')


@pytest.fixture
def dense(tmp_path):
    """A dense model with other weights than `build`, and its checkpoint."""
    model = build(seed=3, type='EncoderDecoder', backbone=dict(BACKBONE, type='SwinTransformer'))
    path = tmp_path / 'dense.pth'
    torch.save(dict(state_dict=model.state_dict()), path)
    return str(path)


@pytest.mark.parametrize('training', [True, False])
def test_a_fully_kept_model_that_is_its_own_teacher_has_nothing_to_learn_from_it(training):
    model = build(backbone=ONES, decode_head=HEAD, teacher='self').train(training)
    losses = losses_of(model, ignored=10)
    assert losses['loss_distill_feature'] < 1e-9 and abs(losses['loss_distill_logit']) < 1e-9
    assert losses['loss_keep_ratio'] == 0
    sparse = build(decode_head=HEAD, teacher='self').train(training)
    losses = losses_of(sparse)
    assert losses['loss_distill_feature'] > 1e-6 and losses['loss_distill_logit'] > 1e-6


def test_the_terms_are_what_their_functions_say(dense):
    model = build(teacher=dict(checkpoint=dense)).eval()
    data = model.data_preprocessor(batch(), training=True)
    for sample in data['data_samples']:
        sample.gt_sem_seg.data[:, :48] = 255
    losses = model(**data, mode='loss')
    teacher = build(type='EncoderDecoder', backbone=dict(BACKBONE, type='SwinTransformer'))
    teacher.load_state_dict(torch.load(dense, weights_only=True)['state_dict'])
    teacher.backbone.eval(), teacher.eval()
    with torch.no_grad():
        maps = [m.backbone(data['inputs']) for m in (model, teacher)]
        logits = [m.decode_head(x)[:, :, 12:] for m, x in zip((model, teacher), maps, strict=True)]
    expected = 0.5 * (maps[0][-1] - maps[1][-1]).square().mean()
    torch.testing.assert_close(losses['loss_distill_feature'].detach(), expected)
    ours, theirs = (x.permute(0, 2, 3, 1).flatten(0, 2).log_softmax(1) for x in logits)
    expected = 0.5 * torch.nn.functional.kl_div(
        ours, theirs, log_target=True, reduction='batchmean'
    )
    torch.testing.assert_close(losses['loss_distill_logit'].detach(), expected)


def test_it_is_no_part_of_the_model_and_never_trains(dense):
    model = build(teacher=dict(checkpoint=dense)).train()
    names = set(model.state_dict()), {n for n, _ in model.named_parameters()}
    losses_of(model)
    model.train()
    assert (set(model.state_dict()), {n for n, _ in model.named_parameters()}) == names
    teacher = model.teacher.model
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    losses = losses_of(model)
    model.parse_losses(losses)[0].backward()
    assert not any(m.training for m in teacher.modules())
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    missing = [n for n, p in model.named_parameters() if p.grad is None]
    assert not missing
    assert 'decode.logits' not in losses


def test_it_follows_the_device():
    model = build(teacher='self')
    # Uses the meta device, as no accelerator is available.
    with contextlib.suppress(RuntimeError):
        model.teacher.features(torch.empty(1, 3, 64, 64, device='meta'))
    assert {p.device.type for p in model.teacher.model.parameters()} == {'meta'}


def test_a_teacher_of_another_architecture_has_a_config(tmp_path):
    deep = dict(BACKBONE, type='SwinTransformer', depths=(1, 1, 2, 1))
    config = dict(default_scope='mmseg', model=segmentor_cfg(type='EncoderDecoder', backbone=deep))
    Config(config).dump(tmp_path / 'deep.py')
    other = build(type='EncoderDecoder', backbone=deep)
    torch.save(other.state_dict(), tmp_path / 'deep.pth')
    setting = dict(config=str(tmp_path / 'deep.py'), checkpoint=str(tmp_path / 'deep.pth'))
    model = build(teacher=setting)
    with DefaultScope.overwrite_default_scope('mmdet'):  # the teacher's config determines the host
        losses = losses_of(model)
    assert losses['loss_distill_feature'] > 0 and losses['loss_distill_logit'] > 0


def test_terms_can_be_left_out():
    losses = losses_of(build(teacher='self', logit_distill_loss=None))
    assert {k for k in losses if 'distill' in k} == {'loss_distill_feature'}
    losses = losses_of(build(teacher='self', feature_distill_loss=None))
    assert {k for k in losses if 'distill' in k} == {'loss_distill_logit'}
    assert not [k for k in losses_of(build()) if 'distill' in k]


def test_self_is_the_weights_of_the_start_and_never_half_trained_ones(dense):
    model = build(teacher='self')
    model.load_state_dict(torch.load(dense, weights_only=True)['state_dict'], strict=False)
    losses_of(model)
    start = torch.load(dense, weights_only=True)['state_dict']
    torch.nn.init.zeros_(model.decode_head.conv_seg.weight)
    losses_of(model)
    kept = model.teacher.model.state_dict()
    assert all(torch.equal(kept[key], value) for key, value in start.items() if key in kept)

    resumed = build(teacher='self')
    resumed.load_state_dict(model.state_dict())
    with pytest.raises(ValueError, match=r'half-trained.*load_from'):
        losses_of(resumed)


def test_images_normalised_otherwise_are_refused(tmp_path, dense):
    other = dict(type='SegDataPreProcessor', mean=[1.0, 2, 3], std=[4.0, 5, 6])
    config = segmentor_cfg(backbone=dict(BACKBONE), data_preprocessor=other)
    Config(dict(default_scope='mmseg', model=config)).dump(tmp_path / 'other.py')
    ours = dict(other, std=[1.0, 1, 1], size=(96, 96), seg_pad_val=255)
    model = build(
        data_preprocessor=ours, teacher=dict(config=str(tmp_path / 'other.py'), checkpoint=dense)
    )
    with pytest.raises(ValueError, match=r'std \[4.0, 5.0, 6.0\].*\[1.0, 1.0, 1.0\]'):
        losses_of(model)


# The second name is that of mmseg on the original line.
@pytest.mark.parametrize('name', ['_channel_conversion', 'channel_conversion'])
def test_images_with_channels_in_another_order_are_refused(name):
    teacher, student = build(), build()
    for model, swapped in ((teacher, True), (student, False)):
        model.data_preprocessor = torch.nn.Identity()
        setattr(model.data_preprocessor, name, swapped)
    with pytest.raises(ValueError, match=r'channels swapped True.*False'):
        Teacher(teacher, student)


@pytest.mark.parametrize('teacher', ['dense.pth', True, dict(config='x.py'), dict(checkpoint=None)])
def test_other_settings_are_refused(teacher):
    with pytest.raises(TypeError, match=r'teacher must be None'):
        build(teacher=teacher)


ENC_HEAD = dict(
    type='EncHead',
    in_channels=[32, 64, 128],
    in_index=(1, 2, 3),
    channels=16,
    num_codes=4,
    use_se_loss=True,
    add_lateral=False,
    num_classes=4,
    align_corners=False,
)
SIGMOID_HEAD = dict(
    segmentor_cfg()['decode_head'],
    num_classes=2,
    out_channels=1,
    loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=True),
)


@pytest.mark.parametrize('head', [ENC_HEAD, SIGMOID_HEAD], ids=['EncHead', 'sigmoid'])
def test_heads_without_one_distribution_per_pixel_are_refused(head):
    with pytest.raises(ValueError, match=rf'{head["type"]} .*logit_distill_loss=None'):
        losses_of(build(decode_head=head, teacher='self'))
    assert build(decode_head=head, teacher='self', logit_distill_loss=None)


@pytest.mark.parametrize(
    ('of', 'without', 'named'),
    [
        (dict(), (), r'bad\.pth has predictors'),
        (dict(), (*NEW_PARAMETERS, 'running_'), r'bad\.pth lacks .*running_'),
        (dict(num_classes=7), NEW_PARAMETERS, r'bad\.pth does not fit .*conv_seg'),
        (dict(type='FCNHead', in_index=3, in_channels=128), NEW_PARAMETERS, r'bad\.pth lacks'),
    ],
    ids=['sparse', 'no running statistics', 'other classes', 'another head'],
)
def test_checkpoints_that_are_no_teachers_are_refused(tmp_path, of, without, named):
    head = dict(segmentor_cfg()['decode_head'], norm_cfg=dict(type='BN'))
    state = build(decode_head={**head, **of}).state_dict()
    state = {k: v for k, v in state.items() if not any(part in k for part in without)}
    torch.save(state, tmp_path / 'bad.pth')
    model = build(decode_head=head, teacher=dict(checkpoint=str(tmp_path / 'bad.pth')))
    with pytest.raises(ValueError, match=named):
        losses_of(model)


@pytest.mark.parametrize('made_before', [True, False])
@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
@pytest.mark.parametrize('setting', ['self', 'config'])
def test_the_model_may_change_its_dtype(dense, tmp_path, setting, dtype, made_before):
    teacher = 'self'
    if setting == 'config':
        swin = dict(BACKBONE, type='SwinTransformer')
        cfg = dict(default_scope='mmseg', model=segmentor_cfg(type='EncoderDecoder', backbone=swin))
        Config(cfg).dump(tmp_path / 'dense.py')
        teacher = dict(checkpoint=dense, config=str(tmp_path / 'dense.py'))
    model = build(teacher=teacher).eval()
    expected = losses_of(model)
    if not made_before:
        model._teacher = None
    torch.manual_seed(1)
    data = model.data_preprocessor(batch(), training=True)
    model.to(dtype)
    losses = model.loss(data['inputs'].to(dtype), data['data_samples'])
    for key in ('loss_distill_feature', 'loss_distill_logit'):
        tolerance = 1e-5 if dtype is torch.float64 else 0.2
        torch.testing.assert_close(
            losses[key].float(), expected[key].float(), rtol=tolerance, atol=tolerance
        )
    model.float()  # and back
    losses_of(model)


def test_copies_share_it(dense):
    model = build(teacher=dict(checkpoint=dense))
    expected = losses_of(model.eval())
    average = ExponentialMovingAverage(model)
    average.update_parameters(model)
    weights = {id(p) for p in model.teacher.model.parameters()}
    assert {id(p) for p in average.module.teacher.model.parameters()} == weights
    half = copy.deepcopy(model).to(torch.bfloat16)
    data = half.data_preprocessor(batch(), training=True)
    half.loss(data['inputs'].bfloat16(), data['data_samples'])
    # The copy may be on another device.
    assert {id(p) for p in model.teacher.model.parameters()} == weights
    assert all(p.dtype == torch.float32 for p in model.teacher.model.parameters())
    loaded = pickle.loads(pickle.dumps(model))
    for other in (model, average.module, loaded):
        losses = losses_of(other.eval())
        assert losses.keys() == expected.keys()
        torch.testing.assert_close(losses['loss_distill_logit'], expected['loss_distill_logit'])
