"""Build script; the metadata are in pyproject.toml. Builds the C++ extension, with CUDA if it can.

MPIMOMENTUM_CUDA=1 asks for the CUDA kernels (no nvcc is an error then), 0 leaves them out;
"emulate" compiles them for the CPU, as instruction set "cuda-on-cpu", to test them without a GPU.
MPIMOMENTUM_SANITIZE=address,undefined builds for those sanitizers (scripts/sanitize.sh).
"""

import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from pathlib import Path

import nanobind
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).parent
NANOBIND = Path(nanobind.source_dir())

# Bit-exactness: no product is fused with a sum, whatever the instruction set could do.
EXACT = ["-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden"]
WARNINGS = ["-Wall", "-Wextra"]
# csrc/dispatch.h has the same names.
INSTRUCTION_SETS = {"baseline": []}
if platform.machine() in ("x86_64", "AMD64"):
    INSTRUCTION_SETS |= {
        "avx2": ["-mavx2", "-mf16c", "-mbmi2"],
        "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mbmi2"],
    }
# Compiled once for each of them.
CPU_KERNELS = ("sign.cpp", "error_feedback.cpp", "vote.cpp", "mix.cpp", "wire.cpp")
CUDA_KERNELS = ("sign.cu", "feedback.cu", "rows.cu", "mix.cu", "wire.cu")
EMULATION = [
    *("-x", "c++", f"-I{HERE / 'tests' / 'cuda_on_cpu'}", "-fno-strict-aliasing"),
    *("-Wno-unknown-pragmas", "-Wno-uninitialized"),
]
NVCC_FLAGS = [
    *("-std=c++17", "-O3", "-fmad=false", "--threads=2", "--cudart=static"),
    "-Xfatbin=-compress-all",  # a quarter of the size
    *("-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_90,code=sm_90"),
    "-gencode=arch=compute_90,code=compute_90",  # PTX, for what comes later
    "-Xcompiler=-fPIC,-fvisibility=hidden",
]


def find_nvcc() -> Path | None:
    """Return nvcc, from CUDA_HOME, PATH or its usual place; None if CUDA is not wanted or not here.

    Raises
    ------
    SystemExit
        If MPIMOMENTUM_CUDA=1 and there is none.
    """
    wanted = os.environ.get("MPIMOMENTUM_CUDA", "auto")
    if wanted not in ("0", "1", "emulate", "auto", ""):
        raise SystemExit(f"MPIMOMENTUM_CUDA={wanted!r}: choose 0 or 1, or leave it out")
    if wanted in ("0", "emulate"):
        print(f"CUDA kernels: left out, MPIMOMENTUM_CUDA={wanted}")
        return None
    home = os.environ.get("CUDA_HOME")
    found = shutil.which("nvcc", path=f"{home}/bin") if home else shutil.which("nvcc")
    found = found or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if found is None and wanted == "1":
        raise SystemExit("MPIMOMENTUM_CUDA=1, but there is no nvcc: set CUDA_HOME, or leave it out")
    print(f"CUDA kernels: {found or 'left out, there is no nvcc; the build is for CPUs only'}")
    return None if found is None else Path(found).resolve()


class Build(build_ext):
    """Compiles some sources several times, and .cu files by nvcc."""

    def finalize_options(self) -> None:
        """Never keep an object of another configuration."""
        super().finalize_options()
        self.force = True

    def run(self) -> None:
        """Leave no extension of an earlier build beside the sources either."""
        if self.inplace:
            for ext in self.extensions:
                Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)
        super().run()

    def build_extension(self, ext: Extension) -> None:
        """Compile everything in parallel, then link."""
        sanitize = os.environ.get("MPIMOMENTUM_SANITIZE")
        self.checks = [f"-fsanitize={sanitize}", "-fno-sanitize-recover=all", "-g", "-O1"]
        self.checks = self.checks if sanitize else []
        # a build that fails leaves none behind, and is an error where CUDA was asked for
        ext.optional = os.environ.get("MPIMOMENTUM_CUDA") != "1"
        target = Path(self.get_ext_fullpath(ext.name))
        target.unlink(missing_ok=True)
        nvcc = find_nvcc()
        jobs = [
            (self.compile, name, isa, [*flags, f"-DMM_ISA={isa}"])
            for name in CPU_KERNELS
            for isa, flags in INSTRUCTION_SETS.items()
        ]
        emulate = os.environ.get("MPIMOMENTUM_CUDA") == "emulate"
        cuda = ["-DMM_CUDA"] if nvcc else ["-DMM_CUDA_EMULATED"] if emulate else []
        jobs += [
            (self.compile, name, "host", cuda)
            for name in ("dispatch.cpp", "arguments.cpp", "bindings.cpp")
        ]
        jobs.append((self.compile_nanobind, "nb_combined.cpp", "nanobind", []))
        if nvcc:
            sources = ("cuda_device.cu", "cuda_memory.cu", *CUDA_KERNELS)
            jobs += [(self.compile_cuda, name, "cuda", [str(nvcc)]) for name in sources]
        if emulate:
            jobs += [(self.compile, name, "emulated", EMULATION) for name in CUDA_KERNELS]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = [f.result() for f in [pool.submit(*job) for job in jobs]]
        target.parent.mkdir(parents=True, exist_ok=True)
        self.compiler.link_shared_object(
            objects,
            str(target),
            libraries=["cudart_static", "dl", "rt", "pthread"] if nvcc else [],
            library_dirs=_cuda_libraries(nvcc) if nvcc else [],
            extra_postargs=[*self.checks, *([] if self.checks else ["-Wl,-s"])],
            target_lang="c++",
        )

    def compile(self, name: str, kind: str, flags: list[str]) -> str:
        """Compile csrc/`name`; `kind` tells objects of one source apart."""
        includes = [f"{NANOBIND.parent / 'include'}"]
        return self._object(HERE / "csrc" / name, kind, [*EXACT, *WARNINGS, *flags], includes)

    def compile_nanobind(self, name: str, kind: str, flags: list[str]) -> str:
        """Compile nanobind itself, which comes as source."""
        includes = [str(NANOBIND.parent / p) for p in ("include", "ext/robin_map/include")]
        options = ["-std=c++17", "-Os", "-fvisibility=hidden", "-fno-strict-aliasing", *flags]
        return self._object(NANOBIND / name, kind, options, includes)

    def compile_cuda(self, name: str, kind: str, nvcc: list[str]) -> str:
        """Compile csrc/`name` by nvcc."""
        target = Path(self.build_temp) / kind / f"{name}.o"
        target.parent.mkdir(parents=True, exist_ok=True)
        self.spawn([*nvcc, "-c", str(HERE / "csrc" / name), "-o", str(target), *NVCC_FLAGS])
        return str(target)

    def _object(self, source: Path, kind: str, flags: list[str], includes: list[str]) -> str:
        python = self.include_dirs  # Python.h
        target = Path(self.build_temp) / kind / f"{source.name}.o"
        target.parent.mkdir(parents=True, exist_ok=True)
        command = self.compiler.compiler_cxx or self.compiler.compiler_so
        # without its options, but "ccache g++" is two words
        compiler = list(takewhile(lambda word: not word.startswith("-"), command))
        paths = [f"-I{p}" for p in (HERE / "csrc", *includes, *python)]
        options = ["-fPIC", "-DNDEBUG", *paths, *flags, *self.checks]
        self.spawn([*compiler, *options, "-c", str(source), "-o", str(target)])
        return str(target)


def _cuda_libraries(nvcc: Path) -> list[str]:
    """Return where cudart_static may be; nvcc says where it is installed (it may be a wrapper)."""
    dry_run = subprocess.run(
        [nvcc, "-dryrun", "-x", "cu", os.devnull], capture_output=True, text=True, check=True
    )
    home = next(
        Path(line.removeprefix("#$ TOP="))
        for line in dry_run.stderr.splitlines()
        if line.startswith("#$ TOP=")
    )
    return [str(p) for p in (home / "lib64", home / "lib", *home.glob("targets/*/lib"))]


setup(
    # optional: without a C++ compiler torch computes instead, and `mpimomentum doctor` says so; but
    # who demands CUDA gets it or an error
    ext_modules=[
        Extension(
            "mpimomentum.codecs._csrc",
            sources=[],
            optional=os.environ.get("MPIMOMENTUM_CUDA") != "1",
        )
    ],
    cmdclass={"build_ext": Build},
)
