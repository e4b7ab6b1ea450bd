#!/usr/bin/env bash
# From a fresh clone to a trained model: sets up .venv, then runs the main job, AD-PSGD on 4 ranks.
#   ./scripts/quickstart.sh                        Open MPI (MPI=mpich: the other)
#   RANKS=2 ./scripts/quickstart.sh --epochs 5     other options go to `mpimomentum train`
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$ROOT/scripts/common.sh"
set_up

# ranks never see the terminal itself, so that this script must say that there is one
[ ! -t 2 ] || export MPIMOMENTUM_PROGRESS=${MPIMOMENTUM_PROGRESS:-bar}
say "mpirun -n ${RANKS:-4} mpimomentum train $*"
mpirun -n "${RANKS:-4}" mpimomentum train "$@"
say "next: . '$VENV/bin/activate'; mpimomentum --help"
