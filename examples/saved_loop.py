"""own_loop.py, saved as it goes: started again after a kill or a SIGTERM, it goes on.

mpirun -n 4 python examples/saved_loop.py
PROGRAM='python examples/saved_loop.py' sbatch slurm/train.sbatch
"""

import os
import sys

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

import mpimomentum as mm
from mpimomentum.data import load

STEPS, BATCH = 300, 16

stop = mm.stop_on_signal()  # SIGTERM, SIGUSR1: from here on
worker = mm.init()
digits = load("digits")
part = mm.shard(TensorDataset(digits.inputs(digits.train_x), digits.train_y), worker)

torch.manual_seed(0)
model = nn.Sequential(
    nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10)
)
optimizer = mm.DistributedOptimizer(model, mm.ADPSGD(lr=0.05, mu=0.9), worker)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=100, gamma=0.5)
out = os.environ.get("OUT", "runs/saved-loop")
parts = {"scheduler": scheduler}
checkpoints = mm.Checkpoints(out, every=50, resume="auto", stop=stop, parts=parts)


def batch(step):
    """Return the mini-batch of a step: the same whenever the step is made."""
    epoch, place = divmod(step, len(part) // BATCH)
    part.set_epoch(epoch)
    order = list(part.sampler)
    inputs, targets = zip(*(part[i] for i in order[place * BATCH :][:BATCH]), strict=True)
    return torch.stack(inputs), torch.stack(targets)


for step in mm.saved_steps(optimizer, STEPS, checkpoints):
    x, y = batch(step)
    optimizer.zero_grad()
    cross_entropy(model(x), y).backward()
    optimizer.step()
    scheduler.step()

optimizer.consensus()
optimizer.close()
if checkpoints.stopped:
    sys.exit(85)  # to a batch script: start me again
model.eval()
with torch.no_grad():
    correct = model(digits.inputs(digits.test_x)).argmax(dim=1) == digits.test_y
if worker.rank == 0:
    print(f"test accuracy {correct.float().mean():.1%}")
