"""A resumed run's histograms, times and record files are those of one run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

import mpimomentum as mm
from mpimomentum.measures import Tally
from mpimomentum.runtime import checkpoint_files as files
from mpimomentum.runtime.agreement import told
from mpimomentum.runtime.records import RecordStream, path_of
from mpimomentum.transport import MPIWorker

pytestmark = pytest.mark.mpi


@pytest.mark.parametrize("algorithm", [mm.AllReduceSGD(lr=0.05), mm.ADPSGD(lr=0.05)], ids=repr)
def test_a_resumed_run_counts_on(
    make_worker: Callable[..., MPIWorker], tmp_path: Path, algorithm: Any
) -> None:
    w = make_worker()
    out = Path(told(w, str(tmp_path))[0])

    def run(steps: int, resume: str, crash: bool = False) -> mm.Run:
        stream = RecordStream(path_of(out, w.rank))
        checkpoints = mm.Checkpoints(out, every=5, resume=resume, parts={"records": stream})
        found = mm.run(
            algorithm,
            lambda rank, size: mm.Quadratic(b=torch.full((10,), float(rank))),
            steps=steps,
            worker=w,
            take_record=stream.put,
            checkpoints=checkpoints,
        )
        if crash:
            stream.put({"rank": w.rank, "step": steps, "time_s": 1e9, "tau": 77})
        stream.close()
        return found

    run(8, "never", crash=True)
    newest = files.committed(out / "checkpoints")[0]
    at_checkpoint = files.read_part(newest, files.read_manifest(newest).files[w.rank])
    second = run(12, "auto")
    lines = path_of(out, w.rank).read_text().splitlines()
    own = [json.loads(line) for line in lines]
    assert [r["step"] for r in own] == list(range(12))
    times = [r["time_s"] for r in own]
    assert times == sorted(times)
    said, recounted = w.tally.state_dict(), Tally()
    for row in own:
        recounted.count(row)
    assert said == recounted.state_dict()
    saved = at_checkpoint["worker"]
    mine = asdict(second.time_split[w.rank])
    assert all(mine[part] >= seconds for part, seconds in saved["time_split"].items())
    assert mine["compute"] > saved["time_split"]["compute"]
    mine.pop("gossip_hidden")
    assert saved["elapsed_s"] < sum(mine.values()) <= second.time_s + 0.01
