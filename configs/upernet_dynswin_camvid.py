# UperNet, a narrow DynamicSwin, on CamVid from scratch; the data root is an option:
#   --cfg-options train_dataloader.dataset.data_root=DIR val_dataloader.dataset.data_root=DIR
_base_ = './upernet_swin_camvid.py'

model = dict(
    type='mmdyn.DynamicEncoderDecoder',
    backbone=dict(type='mmdyn.DynamicSwin', keep_ratios=(0.7, 0.5, 0.3)),
)
