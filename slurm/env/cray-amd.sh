# shellcheck shell=bash
# HPE Cray EX with AMD GPUs and Cray MPICH (the kind of Frontier, LUMI). SITE=cray-amd sbatch …
#
# Every MI250X is two GPUs: 8 of them, and as many ranks, on a node. Ask for --gpus-per-node, not
# --gpus-per-task: see cray-nvidia.sh.

# The versions are your site's; mpi4py must have been built with the same modules:
# module load PrgEnv-gnu cray-mpich rocm craype-accel-amd-gfx90a
# source /path/to/.venv/bin/activate

export MPICH_GPU_SUPPORT_ENABLED=${MPICH_GPU_SUPPORT_ENABLED:-1} # see cray-nvidia.sh
# The others, such as HIP_VISIBLE_DEVICES, count only what this one leaves visible
GPU_VARIABLE=${GPU_VARIABLE:-ROCR_VISIBLE_DEVICES}
PMI=${PMI:-cray_shasta}
# A GPU is near to certain cores only. On LUMI's nodes, in place of cores:
#   SRUN_OPTIONS=--cpu-bind=mask_cpu:…   (the site's page has the masks; gpu_select.sh takes GPU i
#   for local rank i, so the i-th mask is that of the cores beside GPU i)
SITE_OPTIONS=(--cpu-bind=cores --gpu-bind=none)

# shellcheck source=slurm/env/generic.sh
source "$SLURM_SCRIPTS/env/generic.sh"
