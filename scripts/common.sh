# shellcheck shell=bash
# Sourced by the scripts here: one virtual environment per MPI, and an mpirun that works on
# a laptop, in a container and as root. Not executable by itself.

TORCH=2.13.0 # pinned: the newest build of the index may be gigabytes of CUDA

say() { printf '\033[1m==> %s\033[0m\n' "$*" >&2; }
die() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

# choose: set VENV as MPI says, and PYTHON unless it is set.
choose() {
  MPI=${MPI:-openmpi}
  case $MPI in
    openmpi) VENV=$ROOT/.venv ;;
    mpich) VENV=$ROOT/.venv-mpich ;;
    *) die "MPI=$MPI: choose openmpi or mpich (for an MPI of your site see README, 'Your own MPI')" ;;
  esac
  PYTHON=${PYTHON:-python3}
  "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
    die "$PYTHON is not Python 3.11 or newer: set PYTHON=/path/to/python3.11"
}

# pip_install WHAT...: into $VENV, which is made if it is not there.
pip_install() {
  [ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
  "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check "torch==$TORCH" "$@" ||
    die "pip could not install; its message is above"
}

# set_up: make $VENV with mpimomentum, torch and the chosen MPI, if it is not up to date; activate it.
set_up() {
  choose
  local stamp wanted
  stamp=$VENV/.mpimomentum
  wanted=$(cat "$ROOT"/{pyproject.toml,setup.py,scripts/common.sh} "$ROOT"/csrc/* | cksum)
  if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    say "setting up $VENV (torch $TORCH, $MPI); a few minutes, once"
    pip_install -e "${ROOT}[$MPI,dev]"
    printf '%s' "$wanted" >"$stamp"
  fi
  PATH=$VENV/bin:$PATH
  launcher_defaults
}

# at_hand: what is installed already, on PATH; where there is none, set_up.
at_hand() {
  if python -c 'import mpimomentum' 2>/dev/null && command -v mpirun >/dev/null; then
    launcher_defaults
  else
    set_up
  fi
}

# fetch: install into $VENV what mpimomentum needs; set_up then has itself to build and little else.
fetch() {
  choose
  local needed
  mapfile -t needed < <("$PYTHON" -c 'if True:
    import sys, tomllib
    with open(sys.argv[1], "rb") as file:
        project = tomllib.load(file)["project"]
    extras = [project["optional-dependencies"][name] for name in sys.argv[2:]]
    print(*sum(extras, project["dependencies"]), sep="\n")' "$ROOT/pyproject.toml" "$MPI" dev)
  pip_install "${needed[@]}"
}

# More ranks than cores, as root in a container: fine here, and said by variables so that every
# mpirun below us inherits it. MPICH reads none of them. What the user has set stays.
launcher_defaults() {
  export OMPI_ALLOW_RUN_AS_ROOT=${OMPI_ALLOW_RUN_AS_ROOT:-1}
  export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=${OMPI_ALLOW_RUN_AS_ROOT_CONFIRM:-1}
  export PRTE_MCA_rmaps_default_mapping_policy=${PRTE_MCA_rmaps_default_mapping_policy:-:oversubscribe}
  export PRTE_MCA_hwloc_default_binding_policy=${PRTE_MCA_hwloc_default_binding_policy:-none}
  export OMPI_MCA_mpi_yield_when_idle=${OMPI_MCA_mpi_yield_when_idle:-1}
  export OMPI_MCA_osc=${OMPI_MCA_osc:-^ucx} # silences a harmless error per window
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
}
