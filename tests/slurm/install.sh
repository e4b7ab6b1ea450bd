#!/usr/bin/env bash
# What tests/slurm needs, on Debian and its like: Slurm, its PMI libraries, shellcheck. As root; no
# daemon is started or left enabled to start now. Where this cannot be done it says so and ends well:
# the tests are skipped there.
set -euo pipefail

PACKAGES=(slurm-wlm libpmix2 libpmi0 libpmi2-0 shellcheck)

main() {
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "tests/slurm will be skipped: installing Slurm needs root and apt" >&2
    return
  fi
  dpkg -s "${PACKAGES[@]}" >/dev/null 2>&1 || install_packages
  name_pmix
}

install_packages() {
  local policy=/usr/sbin/policy-rc.d
  if ! [ -e "$policy" ]; then # packages ask it whether to start what they bring
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
    # shellcheck disable=SC2064 # the name is this one
    trap "rm -f '$policy'" EXIT
  fi
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    "${PACKAGES[@]}" >/dev/null
}

# Slurm's mpi_pmix.so opens libpmix.so, a name that only the package with PMIx's headers brings
name_pmix() {
  local library
  # the first, but all is read: who stops earlier may have ldconfig, and so this script, end by SIGPIPE
  library=$(ldconfig -p | awk '$1 == "libpmix.so.2" && !seen++ { print $NF }')
  library=$(readlink -f "$library")
  [ -e "${library%/*}/libpmix.so" ] || ln -s libpmix.so.2 "${library%/*}/libpmix.so"
}

main
