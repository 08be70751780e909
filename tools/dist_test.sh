#!/usr/bin/env bash
# Evaluate a model with one process per GPU (or, without GPUs, that many
# processes on the CPU).
set -euo pipefail
source "$(dirname "$0")/dist_common.sh"

if [ "$#" -lt 3 ]; then
    cat >&2 <<USAGE
usage: $(basename "$0") CONFIG CHECKPOINT GPUS [arguments of test.py ...]

  CONFIG      the config, a segmentor's or a detector's
  CHECKPOINT  the weights
  GPUS        processes to start on this machine, one for each GPU

$environment_help
USAGE
    exit 2
fi

launch "$3" test.py "$1" "$2" "${@:4}"
