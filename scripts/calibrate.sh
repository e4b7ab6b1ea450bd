#!/usr/bin/env bash
# Measure this machine on a few ranks, then compare what is predicted from that for more ranks with
# as many real ones: calibration.toml, and the study `scaling` with its part on real ranks.
#
#   scripts/calibrate.sh                                       2 ranks; the study on 4 and 8, too
#   RANKS=4 scripts/calibrate.sh --parameters 25e6             options of mpimomentum calibrate
#   STUDY='--quick --seeds 1' scripts/calibrate.sh             options of the study; 'no' for none
#
#   RANKS   that measure; default 2
#   OUT     folder of both; default runs/calibration-DATE-TIME
#   MPI     openmpi (default) or mpich, where mpimomentum is not installed yet
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/common.sh
. "$ROOT/scripts/common.sh"
at_hand

RANKS=${RANKS:-2}
STUDY=${STUDY:-}
OUT=${OUT:-runs/calibration-$(date +%Y%m%d-%H%M%S)}
[[ $RANKS =~ ^[1-9][0-9]*$ ]] || die "RANKS='$RANKS': a number of ranks is needed, such as 2"
mkdir -p "$OUT"
timeout --kill-after=10 300 mpirun -n "$RANKS" \
  python -m mpimomentum calibrate --out "$OUT/calibration.toml" "$@"
if [ "$STUDY" != no ]; then
  # shellcheck disable=SC2086 # several options
  python -m mpimomentum study scaling --mpi --out "$OUT/study" $STUDY
fi
