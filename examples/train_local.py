"""Learn a sine as four peers on this machine: half a minute, one command.

python examples/train_local.py

The same loop as in train_tiny.py; `local` stands where `start` and `join` do there, and the loop
keeps its own optimizer.step().
"""

from __future__ import annotations

import torch
from torch import nn

import decentral

x = torch.linspace(-3, 3, 10_000).unsqueeze(1)
points = torch.utils.data.TensorDataset(x, x.sin())
model = nn.Sequential(nn.Linear(1, 512), nn.Tanh(), nn.Linear(512, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
strategy = decentral.DiLoCo(sync_every=250, outer_momentum=0.6)

with decentral.hooked(decentral.local(4, model, optimizer, strategy, rounds=20)) as run:
    for xs, ys in run.data(points, batch_size=32):
        optimizer.zero_grad()
        loss = (model(xs) - ys).square().mean()
        loss.backward()
        optimizer.step()
    print(f"round {run.round}, {run.tokens} samples, loss {loss.item():.6f}")
    print(f"state {run.state_hash[:16]}, saved in {run.save('sine')}")
