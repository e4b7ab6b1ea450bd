"""The script single_process.py on any number of ranks: mpirun -n 4 python examples/own_loop.py."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import mpimomentum as mm
from mpimomentum.data import load

worker = mm.init()
digits = load("digits")
train = TensorDataset(digits.inputs(digits.train_x), digits.train_y)
loader = mm.shard(DataLoader(train, batch_size=16, shuffle=True), worker)

torch.manual_seed(0)
model = nn.Sequential(
    nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10)
)
optimizer = mm.DistributedOptimizer(model, mm.ADPSGD(lr=0.05, mu=0.9), worker)

for epoch in range(15):
    loader.set_epoch(epoch)
    for x, y in loader:
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()

optimizer.consensus()  # the average of all ranks' models
model.eval()
with torch.no_grad():
    correct = model(digits.inputs(digits.test_x)).argmax(dim=1) == digits.test_y
if worker.rank == 0:
    print(f"test accuracy {correct.float().mean():.1%}")
