# Dense to sparse on ADE20K: from mmseg's trained Swin-T UperNet, a quarter of its iterations.
_base_ = './upernet_dynswin_ade20k.py'

load_from = 'https://mmassets.onedl.ai/mmsegmentation/v0.5/swin/upernet_swin_tiny_patch4_window7_512x512_160k_ade20k_pretrain_224x224_1K/upernet_swin_tiny_patch4_window7_512x512_160k_ade20k_pretrain_224x224_1K_20210531_112542-e380ad3e.pth'
model = dict(
    # The teacher is the checkpoint of load_from.
    teacher='self',
    backbone=dict(init_cfg=None),
)
# New parameters use the host's learning rate, pretrained ones a tenth of it, after being frozen
# during warm-up.
optim_wrapper = dict(
    constructor='mmdyn.FinetuneOptimWrapperConstructor',
    paramwise_cfg=dict(norm_decay_mult=0.0, part_lr_mult=dict(pretrained=0.1)),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', eta_min=0.0, power=1.0, by_epoch=False, begin=1500, end=40000),
]
custom_hooks = [
    dict(type='mmdyn.HoldPretrainedHook', end=2000),
    # Gumbel sampling first, then top-k, as deployed.
    dict(
        type='mmdyn.TrainingPolicyHook',
        phases=[dict(begin=30000, policy=dict(type='mmdyn.TopKPolicy'))],
    ),
]
train_cfg = dict(max_iters=40000, val_interval=4000)
default_hooks = dict(checkpoint=dict(interval=4000))
