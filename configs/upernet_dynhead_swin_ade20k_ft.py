# Adds a head to mmseg's trained Swin-T UperNet on ADE20K that uses full resolution on an eighth of
# the map only. The loaded weights are frozen; coarse pass and predictor train for a tenth of its
# iterations.
_base_ = 'mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py'

custom_imports = dict(imports=['mmdyn'], allow_failed_imports=False)
load_from = 'https://mmassets.onedl.ai/mmsegmentation/v0.5/swin/upernet_swin_tiny_patch4_window7_512x512_160k_ade20k_pretrain_224x224_1K/upernet_swin_tiny_patch4_window7_512x512_160k_ade20k_pretrain_224x224_1K_20210531_112542-e380ad3e.pth'
model = dict(
    backbone=dict(init_cfg=None, frozen_stages=4),
    decode_head=dict(
        type='mmdyn.DynamicUPerHead', coarse_stride=16, tile_ratio=0.125, freeze_dense=True
    ),
    # Useless with a frozen backbone.
    auxiliary_head=None,
)
optim_wrapper = dict(optimizer=dict(lr=1e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=500),
    dict(type='PolyLR', eta_min=0.0, power=1.0, by_epoch=False, begin=500, end=16000),
]
# Gumbel sampling first, then top-k, as deployed.
custom_hooks = [
    dict(
        type='mmdyn.TrainingPolicyHook',
        phases=[dict(begin=8000, policy=dict(type='mmdyn.TopKPolicy'))],
    ),
]
train_cfg = dict(max_iters=16000, val_interval=4000)
default_hooks = dict(checkpoint=dict(interval=4000))
