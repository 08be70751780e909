# Semantic FPN, DynamicSwin-T, ADE20K at 512x512, 40k iterations at batch 32: mmseg's recipe for
# PoolFormer. The head is small: half of the multiply-adds are in the backbone, where sparsity saves
# (UperNet: a tenth).
_base_ = 'mmseg::poolformer/fpn_poolformer_s12_8xb4-40k_ade20k-512x512.py'

custom_imports = dict(imports=['mmdyn'], allow_failed_imports=False)
model = dict(
    type='mmdyn.DynamicEncoderDecoder',
    backbone=dict(
        _delete_=True,
        type='mmdyn.DynamicSwin',
        embed_dims=96,
        depths=(2, 2, 6, 2),
        num_heads=(3, 6, 12, 24),
        window_size=7,
        drop_path_rate=0.2,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://mmassets.onedl.ai/mmsegmentation/v0.5/pretrain/swin/swin_tiny_patch4_window7_224_20220317-1cdeb081.pth',
        ),
        keep_ratios=(0.7, 0.5, 0.3),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
