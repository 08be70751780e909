# Sourced by dist_train.sh and dist_test.sh: what they share.

environment_help='Environment, for several machines: NNODES (1), NODE_RANK (0), MASTER_ADDR (127.0.0.1),
PORT (29500; each run on a machine needs its own), PYTHON (python).'

# launch GPUS TOOL ARGUMENT...: runs a tool of this folder in that many processes.
launch() {
    local gpus=$1 tool=$2
    shift 2
    exec "${PYTHON:-python}" -m torch.distributed.run \
        --nnodes="${NNODES:-1}" \
        --node_rank="${NODE_RANK:-0}" \
        --master_addr="${MASTER_ADDR:-127.0.0.1}" \
        --master_port="${PORT:-29500}" \
        --nproc_per_node="$gpus" \
        "$(dirname "${BASH_SOURCE[0]}")/$tool" "$@" --launcher pytorch
}
