#!/usr/bin/env bash
# One GPU for each rank of a node, where Slurm gives every rank all of them:
#   srun … slurm/gpu_select.sh mpimomentum train …
# Where a rank sees one already (--gpus-per-task=1), or none, this changes nothing.
#
# GPU_VARIABLE names the variable that says what a process sees: CUDA_VISIBLE_DEVICES unless it is
# set; for AMD's GPUs it must be ROCR_VISIBLE_DEVICES (env/cray-amd.sh).
set -euo pipefail

name=${GPU_VARIABLE:-CUDA_VISIBLE_DEVICES}
IFS=, read -r -a visible <<<"${!name:-}"
if [ "${#visible[@]}" -gt 1 ]; then
  # under mpirun SLURM_LOCALID is its daemon's
  local_rank=${OMPI_COMM_WORLD_LOCAL_RANK:-${MPI_LOCALRANKID:-${SLURM_LOCALID:-}}}
  if [ -z "$local_rank" ]; then
    echo "gpu_select.sh: cannot tell the ranks of a node apart: start it by srun or mpirun" >&2
    exit 2
  fi
  export "$name=${visible[$((local_rank % ${#visible[@]}))]}"
fi
if [ "$name" = ROCR_VISIBLE_DEVICES ] && [ -n "${!name:-}" ]; then
  # they would choose again, among what is left
  unset HIP_VISIBLE_DEVICES CUDA_VISIBLE_DEVICES GPU_DEVICE_ORDINAL
fi
exec "$@"
