"""An ordinary training script: one process, torch alone. own_loop.py is the same on any number."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from mpimomentum.data import load

digits = load("digits")
train = TensorDataset(digits.inputs(digits.train_x), digits.train_y)
loader = DataLoader(train, batch_size=16, shuffle=True)

torch.manual_seed(0)
model = nn.Sequential(
    nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10)
)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

for _ in range(15):
    for x, y in loader:
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()

model.eval()
with torch.no_grad():
    correct = model(digits.inputs(digits.test_x)).argmax(dim=1) == digits.test_y
print(f"test accuracy {correct.float().mean():.1%}")
