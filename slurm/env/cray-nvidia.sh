# shellcheck shell=bash
# HPE Cray EX with NVIDIA GPUs and Cray MPICH (the kind of Perlmutter). SITE=cray-nvidia sbatch …
#
# Ask for --gpus-per-node, not --gpus-per-task: ranks that Slurm confines to one GPU each cannot open
# their neighbours' GPU memory, which Cray MPICH does on a node. gpu_select.sh gives each its own.

# The versions are your site's; mpi4py must have been built with the same modules:
# module load PrgEnv-gnu cray-mpich cudatoolkit craype-accel-nvidia80
# source /path/to/.venv/bin/activate

# MPI takes device pointers. "GTL library is not linked" at the start: mpi4py was built without the
# craype-accel module; build it again, or set this to 0
export MPICH_GPU_SUPPORT_ENABLED=${MPICH_GPU_SUPPORT_ENABLED:-1}
GPU_VARIABLE=${GPU_VARIABLE:-CUDA_VISIBLE_DEVICES}
PMI=${PMI:-cray_shasta}
SITE_OPTIONS=(--cpu-bind=cores --gpu-bind=none)

# shellcheck source=slurm/env/generic.sh
source "$SLURM_SCRIPTS/env/generic.sh"
