# UperNet, a narrow DynamicConvNeXt, on generated scenes: minutes on a CPU, no download.
# Data, heads and recipe are those of upernet_swin_mini.py.
_base_ = ['./upernet_swin_mini.py', './_base_/backbones/convnext_mini.py']

model = dict(type='mmdyn.DynamicEncoderDecoder', backbone={{_base_.convnext_mini}})
