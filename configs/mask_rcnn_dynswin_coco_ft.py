# Dense to sparse on COCO: from mmdet's trained Swin-T Mask R-CNN (1x), half of its epochs.
_base_ = './mask_rcnn_dynswin_coco.py'

load_from = 'https://download.openmmlab.com/mmdetection/v2.0/swin/mask_rcnn_swin-t-p4-w7_fpn_1x_coco/mask_rcnn_swin-t-p4-w7_fpn_1x_coco_20210902_120937-9d6b7cfa.pth'
model = dict(
    # The teacher is the checkpoint of load_from.
    teacher='self',
    backbone=dict(init_cfg=None),
)
# New parameters use the host's learning rate, pretrained ones a tenth of it, after being frozen
# during warm-up.
optim_wrapper = dict(
    constructor='mmdyn.FinetuneOptimWrapperConstructor',
    paramwise_cfg=dict(norm_decay_mult=0.0, part_lr_mult=dict(pretrained=0.1)),
)
max_epochs = 6
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=max_epochs, milestones=[4, 5], gamma=0.1),
]
# The hooks count iterations: 7330 per epoch with 16 images (8 GPUs with 2 each). Adapt them to
# another batch size.
custom_hooks = [
    dict(type='mmdyn.HoldPretrainedHook', end=2000),
    # Gumbel sampling first; top-k, as deployed, in the last epoch and a half.
    dict(
        type='mmdyn.TrainingPolicyHook',
        phases=[dict(begin=33000, policy=dict(type='mmdyn.TopKPolicy'))],
    ),
]
