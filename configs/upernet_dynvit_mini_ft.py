# Dense to sparse: starts from a trained upernet_vit_mini (load_from), with Swin's recipe but a fifth
# fewer iterations, as masked attention makes each one more expensive.
_base_ = ['./upernet_dynswin_mini_ft.py', './_base_/backbones/vit_mini.py']

load_from = 'work_dirs/upernet_vit_mini/iter_450.pth'
model = dict(backbone={{_base_.dynvit_mini}})
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={'pos_embed': dict(decay_mult=0.0), 'cls_token': dict(decay_mult=0.0)}
    )
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=20),
    dict(type='PolyLR', eta_min=0.0, power=1.0, by_epoch=False, begin=20, end=360),
]
custom_hooks = [
    dict(
        type='mmdyn.TrainingPolicyHook',
        phases=[dict(begin=120, policy=dict(type='mmdyn.TopKPolicy'))],
    ),
]
train_cfg = dict(max_iters=360, val_interval=360)
default_hooks = dict(checkpoint=dict(interval=360))
