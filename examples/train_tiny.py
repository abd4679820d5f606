"""Learn a sine with whoever joins: half a minute of training.

python examples/train_tiny.py                      # founds a run and prints its join word
python examples/train_tiny.py 127.0.0.1:4242#…     # in other terminals, with that word
"""

from __future__ import annotations

import sys

import torch
from torch import nn

import decentral

x = torch.linspace(-3, 3, 10_000).unsqueeze(1)
points = torch.utils.data.TensorDataset(x, x.sin())
model = nn.Sequential(nn.Linear(1, 512), nn.Tanh(), nn.Linear(512, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
strategy = decentral.DiLoCo(sync_every=500, outer_momentum=0.6)

if len(sys.argv) > 1:
    run = decentral.join(sys.argv[1], model, optimizer, strategy)
else:
    run = decentral.start(model, optimizer, strategy, rounds=40, listen="127.0.0.1:0")
    print("others join with:", run.join_word, flush=True)

with run:
    for xs, ys in run.data(points, batch_size=32):
        loss = (model(xs) - ys).square().mean()
        loss.backward()
        run.step(loss)
    print(f"round {run.round}, {run.tokens} samples, loss {loss.item():.6f}")
    print(f"state {run.state_hash[:16]}, saved in {run.save('sine')}")
