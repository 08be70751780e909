# What shape is it? A narrow LV-ViT that drops tokens, from scratch on generated pictures.
_base_ = './lvvit_mini.py'

model = dict(backbone=dict(keep_ratios=(0.5, 0.25, 0.125)))
