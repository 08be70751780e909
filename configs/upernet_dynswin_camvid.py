# UperNet, a narrow DynamicSwin, on CamVid from scratch. For another folder than data/camvid:
# tools/train.py --data-root FOLDER.
_base_ = './upernet_swin_camvid.py'

model = dict(
    type='mmdyn.DynamicEncoderDecoder',
    backbone=dict(type='mmdyn.DynamicSwin', keep_ratios=(0.7, 0.5, 0.3)),
)
