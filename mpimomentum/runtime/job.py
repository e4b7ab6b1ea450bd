"""What a configuration comes to on so many ranks: checked before a run, evaluated after it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from mpimomentum import data, models
from mpimomentum import topology as topologies
from mpimomentum.data import Dataset
from mpimomentum.runtime import finite_sum, records, telemetry, tensorboard
from mpimomentum.runtime.config import TrainConfig
from mpimomentum.runtime.decay import decoupled
from mpimomentum.runtime.errors import BadInput
from mpimomentum.runtime.export import MODEL, save_model
from mpimomentum.runtime.finite_sum import samples_per_step
from mpimomentum.runtime.guarded import checked
from mpimomentum.runtime.host_copies import CPU
from mpimomentum.runtime.loop import Stop, check, roles, wire_of
from mpimomentum.runtime.objective import TorchObjective
from mpimomentum.runtime.run import Run
from mpimomentum.runtime.schedule import LRSchedule
from mpimomentum.topology import Topology
from mpimomentum.worker import Algorithm


@dataclass(frozen=True)
class Job:
    """What a configuration comes to on `size` ranks; made and checked before anything starts."""

    config: TrainConfig
    topology: Topology
    algorithm: Algorithm[Any]
    workers: int
    dim: int
    dataset: Dataset
    parts: list[NDArray[np.int64]]  # of the training data, one a worker
    stop: Stop
    schedule: LRSchedule
    device: torch.device = CPU

    @classmethod
    def prepare(
        cls,
        config: TrainConfig,
        topology: Topology,
        algorithm: Algorithm[Any],
        dataset: Dataset,
        device: torch.device = CPU,
    ) -> Job:
        """Check what the data and the ranks allow; the same on all ranks.

        Raises
        ------
        ValueError, OSError
            Whatever does not fit, with the remedy.
        """
        task = config.task
        workers = len(roles(algorithm, topology.size)[0])
        parts = data.shards(dataset.train_y, workers, task.partition, config.seed, task.alpha)
        batch_size, smallest, largest = task.batch_size, len(parts[-1]), len(parts[0])
        timing_only = getattr(config, "timing_only", False)  # of a simulation: no samples are drawn
        if batch_size > smallest and not timing_only:
            raise BadInput(
                f"batch_size={batch_size}: each of {workers} workers has {smallest} samples of "
                f"{task.data}; use a smaller batch_size, or fewer ranks"
            )
        model = models.build(task.model, dataset.shape, dataset.classes, device="meta")  # or refuse
        dim = sum(p.numel() for p in model.parameters() if p.requires_grad)
        finite_sum.check_model(algorithm, model)
        per_step = samples_per_step(algorithm, batch_size, largest)
        stop = config.length.stop(largest, per_step)
        schedule = config.schedule.build(stop, workers, batch_size, largest, per_step)
        return cls(
            config, topology, algorithm, workers, dim, dataset, parts, stop, schedule, device
        )

    @property
    def samples_per_step(self) -> float:
        """How many samples' gradients a worker computes in a step, on average."""
        samples = len(self.dataset.train_y) / self.workers
        return samples_per_step(self.algorithm, self.config.task.batch_size, samples)

    def beginning(self) -> dict[str, Any]:
        """Return what ``run.json`` says."""
        return {
            "ranks": self.size,
            "workers": self.workers,
            "steps": self.stop.steps,
            "duration_s": self.stop.duration_s,
            "samples_per_step": self.samples_per_step,
            "began": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self.topology.size

    def objective(self, index: int, workers: int) -> TorchObjective:
        """Make the objective of worker `index`: the model on its part of the data."""
        assert workers == self.workers
        return self._objective(torch.from_numpy(self.parts[index]))

    def whole(self) -> TorchObjective:
        """Make the model on all training data."""
        return self._objective(part=None)

    def _objective(self, part: torch.Tensor | None) -> TorchObjective:
        task, d = self.config.task, self.dataset
        # made on the CPU, so that all begin with the same bits everywhere
        return TorchObjective(
            models.build(task.model, d.shape, d.classes, self.config.seed).to(self.device),
            cross_entropy,
            d.train_x,
            d.train_y,
            task.batch_size,
            weight_decay=0.0 if decoupled(self.algorithm) else self.config.schedule.weight_decay,
            prepare=d.inputs,
            augment=None if task.augment is False else d.augment,
            part=part,
            amp=self.config.computing.amp == "bf16",
        )

    def finish(
        self, run: Run, out: Path, merged: bool, written: int, **known: Any
    ) -> dict[str, Any]:
        """Evaluate the averaged model and write ``summary.json``. On one rank.

        Parameters
        ----------
        run : Run
        out : Path
            The run directory.
        merged : bool
            Whether ``metrics.jsonl`` holds the records.
        written : int
            Records on disk.
        **known
            Further keys of the summary; train_loss and test_accuracy of a run without a model.
        """
        whole = None if "train_loss" in known else self.whole()
        if whole is not None:
            whole.load_statistics(run.statistics)  # the model came with BatchNorm's initial ones
            known["train_loss"] = whole.loss(run.mean)
            test_x, test_y = self.dataset.test_x, self.dataset.test_y
            known["test_accuracy"] = whole.accuracy(run.mean, test_x, test_y)
        results = telemetry.summary(
            run,
            samples_per_step=self.samples_per_step,
            train_samples=len(self.dataset.train_y),
            algorithm=self.algorithm.name,
            parameters={k: v for k, v in asdict(self.algorithm).items() if v is not None},  # type: ignore[call-overload]
            wire=wire_of(self.algorithm),
            model=self.config.task.model,
            data=self.config.task.data,
            amp=self.config.computing.amp,
            seed=self.config.seed,
            topology=self.topology.name,
            spectral_gap=self.topology.spectral_gap,
            records=written,
            records_lost=sum(tally.records for tally in run.tallies) - written,
            records_in=telemetry.METRICS if merged else records.DIRECTORY,
            **known,
        )
        if whole is not None:
            save_model(out / MODEL, whole.model)  # as it was evaluated
        telemetry.write_summary(out, results)
        return results


def plan_of(config: TrainConfig, size: int) -> tuple[Topology, Algorithm[Any]]:
    """Return graph and algorithm, which can be refused before any data are read."""
    topology = topologies.build(config.topology, size, lazy=config.lazy)
    algorithm = config.build(size)
    check(algorithm, topology)
    config.pace.check(size)
    checked(config.non_finite, algorithm)
    if config.task.augment and finite_sum.needs_finite_sum(algorithm):
        raise BadInput(
            f"augment={config.task.augment}: {algorithm.name} computes gradients of the same "
            "samples again and again, as they are; leave augment out"
        )
    if config.output.tensorboard:
        tensorboard.require()
    return topology, algorithm
