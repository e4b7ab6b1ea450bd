# shellcheck shell=bash
# Jülich's machines (JUWELS, JURECA, JUSUF, JUPITER): Slurm with ParaStation's daemons in place of
# slurmd, and with Open MPI or ParaStationMPI. SITE=jsc sbatch --account=YOUR_BUDGET …

# The stage and the versions change every year; mpi4py comes with the stage, for its MPI:
# module load Stages/YEAR GCC OpenMPI Python mpi4py
# source /path/to/.venv/bin/activate     (made with python -m venv --system-site-packages)

# ParaStation's srun starts both MPIs by itself; pmix and pmi2 of Slurm's own are not there. With
# Open MPI, if each rank is a world of its own: PMI=pspmix
PMI=${PMI:-default}
# It also gives each rank its GPU and the cores beside it, so that one is visible and gpu_select.sh
# changes nothing. To have all of a node's: export CUDA_VISIBLE_DEVICES=0,1,2,3 before sbatch
GPU_VARIABLE=${GPU_VARIABLE:-CUDA_VISIBLE_DEVICES}
SITE_OPTIONS=()

# shellcheck source=slurm/env/generic.sh
source "$SLURM_SCRIPTS/env/generic.sh"
