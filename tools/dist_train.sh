#!/usr/bin/env bash
# Train a model with one process per GPU (or, without GPUs, that many processes
# on the CPU).
set -euo pipefail
source "$(dirname "$0")/dist_common.sh"

if [ "$#" -lt 2 ]; then
    cat >&2 <<USAGE
usage: $(basename "$0") CONFIG GPUS [arguments of train.py ...]

  CONFIG  the training's config, a segmentor's or a detector's
  GPUS    processes to start on this machine, one for each GPU

$environment_help
USAGE
    exit 2
fi

launch "$2" train.py "$1" "${@:3}"
