"""What nvcc made of csrc/*.cu: no spills, no fused multiply-adds, for every GPU that is promised.

Reads the extension that is built; a toolkit without cuobjdump cannot. Where nvcc builds, CI makes
ptxas refuse spills itself (NVCC_APPEND_FLAGS in .ci/run), so nothing is compiled for this.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mpimomentum.codecs import extension

ARCHITECTURES = {"sm_80", "sm_90"}
KERNELS = ("Average", "Exchange", "Mix", "HeavyBall", "ServerStep", "vote_words", "decode_tiles")


def cuobjdump(option: str) -> str:
    """Return what cuobjdump says of the extension; skip where there is none of the two."""
    if not extension.cuda():
        pytest.skip("not looked at: the extension has no CUDA kernels (built without nvcc)")
    nvcc = shutil.which("nvcc")
    beside = [str(Path(nvcc).resolve().parent)] if nvcc else []
    places = [*beside, f"{os.environ.get('CUDA_HOME', '/usr/local/cuda')}/bin", os.environ["PATH"]]
    tool = shutil.which("cuobjdump", path=os.pathsep.join(places))
    if tool is None:
        pytest.skip("not looked at: no cuobjdump beside nvcc or on PATH")
    file = extension.built()
    assert file is not None
    return subprocess.run([tool, option, file], capture_output=True, text=True, check=True).stdout


def test_no_kernel_spills_on_any_architecture() -> None:
    parts = re.split(r"^arch = ", cuobjdump("--dump-resource-usage"), flags=re.MULTILINE)[1:]
    found: dict[str, dict[str, str]] = {}
    for part in parts:
        kernels = re.findall(r"^ Function (\S+):\n\s+(.*)$", part, re.MULTILINE)
        found.setdefault(part.split()[0], {}).update(kernels)
    assert set(found) >= ARCHITECTURES
    for architecture in ARCHITECTURES:
        kernels = found[architecture]
        assert all(any(name in kernel for kernel in kernels) for name in KERNELS)
        spilt = {k: u for k, u in kernels.items() if "STACK:0 " not in u or "LOCAL:0 " not in u}
        assert not spilt, f"{architecture}: {spilt}"


def test_no_product_is_fused_with_a_sum() -> None:
    """But where a quotient is rounded: that is made of them, from an estimated reciprocal."""
    functions = re.split(r"Function : (\S+)", cuobjdump("-sass"))[1:]
    code = dict(zip(functions[::2], functions[1::2], strict=True))
    assert any(re.search(r"\bFMUL\b", c) and re.search(r"\bFADD\b", c) for c in code.values())
    fused = {k for k, c in code.items() if re.search(r"\b[DF]FMA\b", c)}  # HFMA2: a constant
    divides = {k for k, c in code.items() if "MUFU.RCP" in c}
    assert fused <= divides
    assert not [k for k in fused if any(name in k for name in KERNELS)]
