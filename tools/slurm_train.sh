#!/usr/bin/env bash
# Train a model as a Slurm job step, one task per GPU.
set -euo pipefail

if [ "$#" -lt 4 ]; then
    cat >&2 <<USAGE
usage: $(basename "$0") PARTITION JOB_NAME CONFIG WORK_DIR [arguments of train.py ...]

  PARTITION  Slurm partition
  JOB_NAME   the job's name
  CONFIG     the training's config, a segmentor's or a detector's
  WORK_DIR   folder for logs and checkpoints

Environment: GPUS (8, in all), GPUS_PER_NODE (8), CPUS_PER_TASK (5), SRUN_ARGS (further
arguments of srun, split at blanks), PYTHON (python).
USAGE
    exit 2
fi

partition=$1
job_name=$2
config=$3
work_dir=$4
shift 4

gpus_per_node=${GPUS_PER_NODE:-8}
read -r -a srun_args <<<"${SRUN_ARGS:-}"

exec srun \
    --partition="$partition" \
    --job-name="$job_name" \
    --gres="gpu:$gpus_per_node" \
    --ntasks="${GPUS:-8}" \
    --ntasks-per-node="$gpus_per_node" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 \
    ${srun_args[@]+"${srun_args[@]}"} \
    "${PYTHON:-python}" -u "$(dirname "$0")/train.py" "$config" \
    --work-dir="$work_dir" --launcher=slurm "$@"
