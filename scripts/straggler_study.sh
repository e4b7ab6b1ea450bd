#!/usr/bin/env bash
# What one slow worker costs, on this machine's ranks and on the virtual clock: the study
# `stragglers` with --mpi, an mpirun for each factor and seed, then result.json, figure.png and .svg.
#
#   scripts/straggler_study.sh                           a quarter of an hour, three seeds
#   scripts/straggler_study.sh --quick                   two minutes: one factor, one seed on ranks
#   OUT=runs/slow scripts/straggler_study.sh --seeds 5   goes on with a study that was stopped
#
# All options go to `mpimomentum study` (--help). Gradients sleep, so ranks need no core of their
# own; nothing else should run meanwhile. Links cannot be slowed down here: that part is virtual.
#
#   OUT       folder; default runs/stragglers-DATE-TIME
#   MPI       openmpi (default) or mpich, where mpimomentum is not installed yet
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/common.sh
. "$ROOT/scripts/common.sh"
at_hand

exec python -m mpimomentum study stragglers --mpi \
  --out "${OUT:-runs/stragglers-$(date +%Y%m%d-%H%M%S)}" "$@"
