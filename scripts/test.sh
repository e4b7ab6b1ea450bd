#!/usr/bin/env bash
# The whole test suite: once outside, once inside an MPI world of 4 ranks; one closing line.
#   ./scripts/test.sh                   Open MPI (MPI=mpich: the other)
#   ./scripts/test.sh -k topology -x    options go to pytest, both times
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$ROOT/scripts/common.sh"
set_up
cd "$ROOT"

results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT
began=$SECONDS
status=0

run() { # NAME COMMAND...: 0 and 5 (nothing matched the options) are fine here
  local name=$1 code=0
  shift
  "$@" --junit-xml="$results/$name.xml" || code=$?
  [ "$code" = 0 ] || [ "$code" = 5 ] || { status=1; printf '%s' "$code" >"$results/$name.failed"; }
}

say "tests outside an MPI world ($MPI)"
# three at a time, one of which mostly waits; give -n 0 for one, as a debugger needs. By itself xdist
# would begin with the files of most tests, and end with those of a few that take minutes.
run serial python -m pytest -n 3 --dist loadfile --no-loadscope-reorder \
  --durations 20 --durations-min 5 "$@"
say "tests inside a world of 4 ranks ($MPI)"
# the last resort against a hang; pytest-timeout and the watchdog speak first
run world timeout --kill-after=10 "${WORLD_TIMEOUT_S:-1800}" mpirun -n 4 python -m pytest --only-mpi --capture=sys "$@"

python scripts/sum_tests.py "$results" $((SECONDS - began)) || status=1
exit "$status"
