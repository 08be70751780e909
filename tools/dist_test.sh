#!/usr/bin/env bash
# Evaluate with one process per GPU (or, without GPUs, that many processes on the CPU).
set -euo pipefail

if [ "$#" -lt 3 ]; then
    cat >&2 <<USAGE
usage: $(basename "$0") CONFIG CHECKPOINT GPUS [arguments of test.py ...]

  CONFIG      the config
  CHECKPOINT  the weights
  GPUS        processes to start on this machine, one for each GPU

Environment, for several machines: NNODES (1), NODE_RANK (0), MASTER_ADDR (127.0.0.1),
PORT (29500; each run on a machine needs its own), PYTHON (python).
USAGE
    exit 2
fi

config=$1
checkpoint=$2
gpus=$3
shift 3

exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$gpus" \
    "$(dirname "$0")/test.py" "$config" "$checkpoint" --launcher pytorch "$@"
