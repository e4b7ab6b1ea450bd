# shellcheck shell=bash
# The site's part of a job: what to load, and how ranks are started. Sourced by the batch scripts on
# the first node, before the ranks; what is exported here reaches them all.
#
# Sets the array LAUNCH, the command that starts the ranks of the allocation. A site's file sets
# what differs there, then sources this one; the user's variables win over both:
#   LAUNCHER=srun        srun --mpi=…, which fits the MPI that mpi4py finds (the default)
#   LAUNCHER=mpirun      the MPI's own mpirun, inside the allocation
#   PMI=pmix             another --mpi= than the usual (srun --mpi=list shows the choice);
#                        PMI=default leaves the choice to the site
#   SRUN_OPTIONS=…       more for srun, divided by blanks; they come last, and so win
#   MPIRUN_OPTIONS=…     more for mpirun
#   OUTLIVE=yes          ranks that go on without one that dies (train --on-failure continue): Open
#                        MPI's by mpirun, as srun --mpi=pmix ends all ranks with the first
#   RANKS=8              as many ranks in place of all of the allocation, on as few nodes
#   GPU_VARIABLE=…       which variable says what GPUs a process sees (gpu_select.sh)

# What your site needs comes here, for instance:
# module load Python OpenMPI
# source /path/to/.venv/bin/activate

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
export GPU_VARIABLE=${GPU_VARIABLE:-CUDA_VISIBLE_DEVICES}
# srun takes it from nowhere else since 22.05; empty it would be no number
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK; fi

# which MPI, without starting it
if ! mpi_library=$(python -c 'import mpi4py; mpi4py.rc.initialize = False
from mpi4py import MPI; print(MPI.Get_library_version().split()[0])'); then
  echo "$(type -P python || echo 'no python') on $(hostname) cannot load mpi4py: load the site's" \
    "MPI module and activate the environment in ${site_file:-the file of the site}" >&2
  exit 2
fi
ranks=${RANKS:-$SLURM_NTASKS}
per_node=${SLURM_NTASKS_PER_NODE:-$(((SLURM_NTASKS + SLURM_JOB_NUM_NODES - 1) / SLURM_JOB_NUM_NODES))}
if [ "$per_node" -gt "$ranks" ]; then per_node=$ranks; fi

usual_launcher=srun
case $mpi_library in
  Open)
    usual_pmi=pmix placement=(--map-by "ppr:$per_node:node")
    if [ "${OUTLIVE:-}" = yes ]; then
      usual_launcher=mpirun placement+=(--enable-recovery)
      if [ "${LAUNCHER:-mpirun}" != mpirun ]; then
        echo "OUTLIVE=yes with LAUNCHER=$LAUNCHER: srun would end Open MPI's ranks with the first;" \
          "leave LAUNCHER out" >&2
        exit 2
      fi
    fi
    ;;
  *) usual_pmi=pmi2 placement=(-ppn "$per_node") ;; # MPICH and what descends from it
esac

# shellcheck disable=SC2034 # for who sources this
case ${LAUNCHER:-$usual_launcher} in
  srun)
    LAUNCH=(srun "--nodes=$(((ranks + per_node - 1) / per_node))" "--ntasks=$ranks"
      "--ntasks-per-node=$per_node" --kill-on-bad-exit=1)
    [ "${PMI:=$usual_pmi}" = default ] || LAUNCH+=("--mpi=$PMI")
    LAUNCH+=(${SITE_OPTIONS[@]+"${SITE_OPTIONS[@]}"})
    read -ra more <<<"${SRUN_OPTIONS:-}"
    LAUNCH+=(${more[@]+"${more[@]}"})
    ;;
  mpirun)
    # Open MPI's would bind a rank, with all its threads, to one core
    export PRTE_MCA_hwloc_default_binding_policy=${PRTE_MCA_hwloc_default_binding_policy:-none}
    read -ra more <<<"${MPIRUN_OPTIONS:-}"
    LAUNCH=(mpirun -n "$ranks" "${placement[@]}" ${more[@]+"${more[@]}"})
    ;;
  *)
    echo "LAUNCHER=$LAUNCHER: choose srun or mpirun" >&2
    exit 2
    ;;
esac
