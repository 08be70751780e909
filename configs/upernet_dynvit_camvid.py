# UperNet, a narrow DynamicViT, on CamVid from scratch.
_base_ = './upernet_vit_camvid.py'

model = dict(type='mmdyn.DynamicEncoderDecoder', backbone={{_base_.dynvit_camvid}})
