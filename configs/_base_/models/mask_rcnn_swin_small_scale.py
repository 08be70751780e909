# A narrow Mask R-CNN Swin that trains from scratch on a CPU; set num_classes of both heads.
_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'

# Norms in neck and mask head, as nothing is pretrained.
norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    backbone=dict(
        _delete_=True,
        type='SwinTransformer',
        embed_dims=48,
        depths=(2, 2, 6, 2),
        num_heads=(2, 4, 8, 16),
        window_size=7,
        drop_path_rate=0.0,
    ),
    neck=dict(in_channels=[48, 96, 192, 384], out_channels=64, num_outs=4, norm_cfg=norm_cfg),
    rpn_head=dict(
        in_channels=64,
        feat_channels=64,
        anchor_generator=dict(scales=[4], strides=[4, 8, 16, 32]),
    ),
    roi_head=dict(
        # A lower finest_scale, as things are about six times smaller than usual.
        bbox_roi_extractor=dict(out_channels=64, finest_scale=20),
        bbox_head=dict(in_channels=64, fc_out_channels=256),
        mask_roi_extractor=dict(out_channels=64, finest_scale=20),
        mask_head=dict(in_channels=64, conv_out_channels=64, norm_cfg=norm_cfg),
    ),
    # Few proposals suffice for a handful of things per picture.
    train_cfg=dict(
        rpn=dict(sampler=dict(num=128)),
        rpn_proposal=dict(nms_pre=400, max_per_img=200),
        rcnn=dict(sampler=dict(num=64)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=400, max_per_img=100)),
)
