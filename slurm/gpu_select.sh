#!/usr/bin/env bash
# One GPU for each rank of a node, where Slurm gives every rank all of them:
#   srun … slurm/gpu_select.sh mpimomentum train …
# Slurm's own --gpus-per-task=1 does the same; then each rank sees one GPU, and this changes nothing.
set -euo pipefail

IFS=, read -r -a visible <<<"${CUDA_VISIBLE_DEVICES:-}"
if [ "${#visible[@]}" -gt 1 ]; then
  export CUDA_VISIBLE_DEVICES=${visible[$((${SLURM_LOCALID:-0} % ${#visible[@]}))]}
fi
exec "$@"
