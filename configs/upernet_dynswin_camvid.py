# UperNet, a narrow DynamicSwin, on CamVid from scratch. Data elsewhere than in data/camvid:
# --cfg-options {train,val,test}_dataloader.dataset.data_root=DIR (the shell expands the braces).
_base_ = './upernet_swin_camvid.py'

model = dict(
    type='mmdyn.DynamicEncoderDecoder',
    backbone=dict(type='mmdyn.DynamicSwin', keep_ratios=(0.7, 0.5, 0.3)),
)
