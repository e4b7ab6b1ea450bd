"""The CUDA kernels for ``gpu_check.py``, built into the package beside the sources if need be.

Only that package is ever tested: the extension alone is built, and one for CUDA has the CPU's
kernels too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parent.parent
EXTENSION = "mpimomentum/codecs/_csrc" + sysconfig.get_config_var("EXT_SUFFIX")
LIMIT_S = 240  # 15 to 20 s of 16 cores


def obstacle() -> str | None:
    """Return what keeps the CUDA kernels from running on this machine, or None."""
    try:
        import torch
    except ImportError:
        return "torch is not installed"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built for CPUs only"
    if not torch.cuda.is_available():
        return "there is no GPU, or no driver for it"
    return None


def build_if_needed() -> str | None:
    """Build the extension if it has no CUDA or is old; return what stands in the way, or None."""
    if not stale() and has_cuda() == "True":
        return None
    if problem := build():
        return problem
    found = has_cuda()
    return None if found == "True" else f"the extension that was built has no CUDA: {found}"


def stale() -> bool:
    """Whether the extension is not there, or older than a source."""
    built = ROOT / EXTENSION
    sources = [ROOT / "setup.py", *(ROOT / "csrc").iterdir()]
    return not built.exists() or built.stat().st_mtime < max(p.stat().st_mtime for p in sources)


def has_cuda() -> str:
    """Return True or False as text, or why the package cannot be imported."""
    program = "from mpimomentum.codecs import extension; print(extension.cuda())"
    run = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True
    )
    return (run.stdout or run.stderr).strip()


def environment() -> dict[str, str]:
    """Return the environment in which the package beside the sources is imported, by all."""
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


def build() -> str | None:
    """Build the extension; return what stands in the way, or None."""
    if beside_nvcc("nvcc") is None:
        return "there is no nvcc to build the CUDA kernels with"
    print("building the CUDA kernels", flush=True)
    folder = ROOT / "build" / "gpu"
    command = ["setup.py", "-q", "build_ext", "--build-temp", f"{folder}-objects", "--build-lib"]
    try:
        run = subprocess.run(
            [sys.executable, *command, str(folder)],
            cwd=ROOT,
            env={**os.environ, "MPIMOMENTUM_CUDA": "1"},
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
    except subprocess.TimeoutExpired:
        return f"the build was not finished in {LIMIT_S} s"
    if run.returncode or not (folder / EXTENSION).exists():
        return f"the build failed:\n{run.stdout}{run.stderr}"
    (folder / EXTENSION).replace(ROOT / EXTENSION)
    return None


def beside_nvcc(tool: str) -> str | None:
    """Return where a tool of the CUDA toolkit is; None if it is not here."""
    nvcc = shutil.which("nvcc")
    homes = [str(Path(nvcc).resolve().parent)] if nvcc else []
    homes += [f"{os.environ.get('CUDA_HOME', '/usr/local/cuda')}/bin", os.environ.get("PATH", "")]
    return shutil.which(tool, path=os.pathsep.join(homes))
