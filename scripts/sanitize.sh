#!/usr/bin/env bash
# The kernels' tests under AddressSanitizer and UndefinedBehaviorSanitizer: a build of its own, in
# build/sanitized. The CUDA kernels are in it too, compiled for the CPU (tests/cuda_on_cpu). Options
# go to pytest.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$ROOT/scripts/common.sh"
if [ "${1:-}" = --no-set-up ]; then shift; else set_up; fi
cd "$ROOT"

# to the library's build environment belongs nanobind, as pyproject.toml says
python -c 'import nanobind, setuptools' 2>/dev/null ||
  python -m pip install --quiet --disable-pip-version-check nanobind setuptools
say "building for the sanitizers"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
MPIMOMENTUM_SANITIZE=address,undefined MPIMOMENTUM_CUDA=emulate python setup.py -q build \
  --build-base build/sanitizing --build-lib build/sanitized >"$log" 2>&1 ||
  { cat "$log"; exit 1; }
compgen -G 'build/sanitized/mpimomentum/codecs/_csrc*.so' >/dev/null ||
  { cat "$log"; die "the extension was not built; the compiler's output is above"; }

say "ends of segments that are wrong, under address,undefined"
g++ -std=c++17 -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -ffp-contract=off \
  -Wno-unknown-pragmas -DMM_CUDA_EMULATED -Icsrc -Itests/cuda_on_cpu \
  tests/cuda_on_cpu/wrong_ends.cpp -x c++ csrc/sign.cu csrc/feedback.cu csrc/rows.cu \
  -o build/sanitized/wrong_ends
build/sanitized/wrong_ends

say "the kernels' tests under address,undefined"
# python -m puts it first, and importlib no other before it: this build is the one imported
cd build/sanitized
# the sanitizers come first in the process, as they must; Python itself never frees all it has;
# pytest leaves their output alone, which would be lost with the process
LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so) $(gcc -print-file-name=libstdc++.so)" \
  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
  python -m pytest --import-mode=importlib --capture=sys "$ROOT/tests/unit/kernels" -q \
  -p no:cacheprovider \
  -k "not reference and not 2_to_the_31 and not (cuda and long)" "$@"
