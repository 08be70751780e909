# UperNet, a narrow DynamicViT, on generated scenes: minutes on a CPU, no download.
_base_ = './upernet_vit_mini.py'

model = dict(type='mmdyn.DynamicEncoderDecoder', backbone={{_base_.dynvit_mini}})
