# shellcheck shell=bash
# The site's part of a job: what to load, and how ranks are started. Sourced by the batch scripts on
# the first node, before the ranks; what is exported here reaches them all.
#
# Sets the array LAUNCH, the command that starts the ranks of the allocation:
#   LAUNCHER=srun     srun --mpi=…, which fits the MPI that mpi4py finds (the default)
#   LAUNCHER=mpirun   the MPI's own mpirun, inside the allocation
#   PMI=pmix          another --mpi= than the usual (srun --mpi=list shows the choice)

# What your site needs comes here, for instance:
# module load Python OpenMPI
# source /path/to/.venv/bin/activate

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun takes it from nowhere else since 22.05

# which MPI, without starting it
library=$(python -c 'import mpi4py; mpi4py.rc.initialize = False
from mpi4py import MPI; print(MPI.Get_library_version().split()[0])')
case $library in
  Open) usual_pmi=pmix ;;
  *) usual_pmi=pmi2 ;; # MPICH and what descends from it
esac

# shellcheck disable=SC2034 # for who sources this
case ${LAUNCHER:-srun} in
  srun) LAUNCH=(srun --kill-on-bad-exit=1 "--mpi=${PMI:-$usual_pmi}") ;;
  mpirun) LAUNCH=(mpirun -n "$SLURM_NTASKS") ;;
  *)
    echo "LAUNCHER=$LAUNCHER: choose srun or mpirun" >&2
    exit 2
    ;;
esac
