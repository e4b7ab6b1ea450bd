"""A loop of one's own with warm-up, cosine decay, clipping and the average model every few epochs.

mpirun -n 4 python examples/schedule_and_clipping.py
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from torch.utils.data import DataLoader, TensorDataset

import mpimomentum as mm
from mpimomentum.data import load

EPOCHS = 12

worker = mm.init(topology="exponential")
digits = load("digits")
train = TensorDataset(digits.inputs(digits.train_x), digits.train_y)
loader = mm.shard(DataLoader(train, batch_size=16, shuffle=True), worker)
test_x = digits.inputs(digits.test_x)

torch.manual_seed(0)
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
weights = [p for name, p in model.named_parameters() if name.endswith("weight")]
groups = [{"params": weights, "weight_decay": 1e-4}, {"params": biases}]

with mm.DistributedOptimizer(model, mm.DPSGD(lr=0.2), worker, param_groups=groups) as optimizer:
    warm_up = LinearLR(optimizer, 0.1, total_iters=len(loader))
    cosine = CosineAnnealingLR(optimizer, (EPOCHS - 1) * len(loader))
    schedule = SequentialLR(optimizer, [warm_up, cosine], [len(loader)])
    for epoch in range(EPOCHS):
        loader.set_epoch(epoch)
        for x, y in loader:
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        if epoch % 4 == 3:
            with optimizer.consensus() as average, torch.no_grad():  # then this rank's own again
                accuracy = (model(test_x).argmax(dim=1) == digits.test_y).float().mean()
            if worker.rank == 0:
                lr = optimizer.param_groups[0]["lr"]
                print(f"epoch {epoch + 1}: {accuracy:.1%} averaged, lr {lr:.4f}, ", end="")
                print(f"ranks {average.distance:.3f} from their average")
