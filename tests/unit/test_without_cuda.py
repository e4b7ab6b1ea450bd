"""On a machine without a GPU nothing of CUDA is imported, loaded or initialised."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mpimomentum.runtime import refusal

ROOT = Path(__file__).parents[2]

AFTER_A_RUN = """
import json, sys
import torch
before = {line.split()[-1] for line in open('/proc/self/maps')}
from mpimomentum import cli
import mpimomentum as mm
mm.sign.pack(torch.ones(9)); mm.mix.average(torch.ones(9), torch.zeros(9))
cli.app(sys.argv[1:], exit_on_error=False)
maps = {line.split()[-1] for line in open('/proc/self/maps')}
print(json.dumps({
    'modules': [m for m in sys.modules if m.partition('.')[0] in ('cupy', 'numba', 'pynvml')],
    'initialised': torch.cuda.is_initialized(),
    'libraries': sorted(p for p in maps - before if 'cuda' in p.lower() or 'nvidia' in p.lower()),
    'probes': [m for m in sys.modules if m.endswith('cuda_probe')],
}), file=sys.stderr)
"""


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is a GPU")
def test_a_run_touches_nothing_of_cuda(tmp_path: Path) -> None:
    train = ("train", "--steps", "3", "--model", "mlp", "--out", str(tmp_path / "run"))
    kept = {k: v for k, v in os.environ.items() if k not in refusal.RANK_VARIABLES}
    run = subprocess.run(
        [sys.executable, "-c", AFTER_A_RUN, *train],
        env=kept | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stderr.splitlines()[-1])
    assert found == {"modules": [], "initialised": False, "libraries": [], "probes": []}
    assert (tmp_path / "run" / "summary.json").exists()
