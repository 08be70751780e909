# Dense twin of upernet_dynvit_mini.py: a plain ViT with the recipe of upernet_swin_mini.py.
_base_ = ['./upernet_swin_mini.py', './_base_/backbones/vit_mini.py']

model = dict(backbone={{_base_.vit_mini}})
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={'pos_embed': dict(decay_mult=0.0), 'cls_token': dict(decay_mult=0.0)}
    )
)
