"""The build: that it is there, and that module, stub and fallback have the same functions."""

from __future__ import annotations

import ast
import inspect
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from mpimomentum.codecs import extension, fallback

STUB = Path(fallback.__file__).with_name("_csrc.pyi")
ABOUT = {"cuda", "instruction_set", "instruction_sets", "use_instruction_set"}
ATOMICS = {"atomic_load", "atomic_compare_and_swap", "atomic_fetch_add"}  # torch has none


def stub() -> dict[str, list[str]]:
    """Return the stub's functions with the names of their arguments."""
    functions = [f for f in ast.parse(STUB.read_text()).body if isinstance(f, ast.FunctionDef)]
    return {f.name: [a.arg for a in f.args.args] for f in functions}


def test_the_extension_is_built() -> None:
    assert extension.built(), f"a broken build falls back silently: {extension.problem}"


def test_stub_and_fallback_have_the_extensions_functions() -> None:
    ours = {n: f for n, f in vars(extension.kernels).items() if not n.startswith("_")}
    memory = {n for n in ours if n.startswith(("device_", "host_"))}
    assert bool(memory) == extension.cuda()  # is CUDA's: the stub is of every build
    native = {n: f for n, f in ours.items() if n not in memory}
    assert set(native) == set(stub())
    for name, arguments in stub().items():
        (signature, *_), *_ = native[name].__nb_signature__
        assert re.findall(r"[(,] ?(\w+):", signature) == arguments
        if name not in ABOUT | ATOMICS:
            assert list(inspect.signature(getattr(fallback, name)).parameters) == arguments


@pytest.mark.parametrize("face", ["mix", "sign", "wire"])
def test_the_faces_are_there_whatever_was_imported_before(face: str) -> None:
    code = f"import mpimomentum as mm; assert mm.{face}.__name__.endswith('.{face}')"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("isa", extension.kernels.instruction_sets() if extension.built() else [])
def test_the_environment_chooses_the_instruction_set(isa: str) -> None:
    said = subprocess.run(
        [sys.executable, "-c", "import _csrc; print(_csrc.instruction_set())"],
        env={
            **os.environ,
            "MPIMOMENTUM_ISA": isa,
            "PYTHONPATH": str(Path(extension.built()).parent),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.strip() == isa


@pytest.mark.parametrize("cuda", ["0", "1"])
def test_a_build_that_fails_leaves_no_older_one(tmp_path: Path, cuda: str) -> None:
    """No compiler is an error only where CUDA was asked for."""
    pytest.importorskip("nanobind", reason="what setup.py builds with")
    shutil.copy(Path(__file__).parents[3] / "setup.py", tmp_path)
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\nexit 1\n")
    nvcc.chmod(0o755)
    module = f"mpimomentum/codecs/_csrc{sysconfig.get_config_var('EXT_SUFFIX')}"
    older = [tmp_path / module, tmp_path / "lib" / module]
    for file in older:
        file.parent.mkdir(parents=True)
        file.touch()
    environment = {"CXX": "false", "MPIMOMENTUM_CUDA": cuda, "CUDA_HOME": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace", "--build-lib=lib"],
        cwd=tmp_path,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert (run.returncode != 0) == (cuda == "1"), run.stderr
    assert not any(file.exists() for file in older)


@pytest.mark.skipif(extension.built() is None, reason="the extension is not built")
def test_an_extension_of_older_sources_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fallback, "exchange_twice", _of_newer_sources, raising=False)
    with pytest.raises(ImportError, match="built from older sources, without exchange_twice"):
        extension._loaded()


def _of_newer_sources() -> None: ...


_of_newer_sources.__module__, _of_newer_sources.__name__ = fallback.__name__, "exchange_twice"


def test_one_place_says_what_becomes_of_a_status_of_cuda() -> None:
    sources = Path(__file__).parents[3] / "csrc"
    found = [p.name for p in sources.iterdir() if "void check(cudaError_t" in p.read_text()]
    assert found == ["cuda_check.h"]
