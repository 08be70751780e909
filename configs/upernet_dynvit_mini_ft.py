# Dense to sparse: starts from a trained upernet_vit_mini (load_from), by the recipe for Swin.
_base_ = ['./upernet_dynswin_mini_ft.py', './_base_/backbones/vit_mini.py']

load_from = 'work_dirs/upernet_vit_mini/iter_450.pth'
model = dict(backbone={{_base_.dynvit_mini}})
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={'pos_embed': dict(decay_mult=0.0), 'cls_token': dict(decay_mult=0.0)}
    )
)
