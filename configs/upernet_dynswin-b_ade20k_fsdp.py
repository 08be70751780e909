# UperNet, DynamicSwin-B, ADE20K at 512x512: parameters, gradients and optimizer state sharded over
# the processes (FSDP). For tools/dist_train.sh and tools/slurm_train.sh; see docs/distributed.md.
_base_ = './upernet_dynswin-b_ade20k.py'

runner_type = 'FlexibleRunner'
strategy = dict(
    type='FSDPStrategy',
    model_wrapper=dict(type='MMFullyShardedDataParallel', auto_wrap_policy='mmdyn.wrap_blocks'),
)
