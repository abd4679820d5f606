"""Train a line through points with whoever joins.

python examples/train_tiny.py                      # founds a run and prints its join word
python examples/train_tiny.py 127.0.0.1:4242#…     # in other terminals, with that word
"""

from __future__ import annotations

import sys

import torch

import decentral

x = torch.rand(10_000, 1)
points = torch.utils.data.TensorDataset(x, 3 * x + 1)
model = torch.nn.Linear(1, 1)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
strategy = decentral.DiLoCo(sync_every=20, outer_momentum=0.6)

if len(sys.argv) > 1:
    run = decentral.join(sys.argv[1], model, optimizer, strategy)
else:
    run = decentral.start(model, optimizer, strategy, rounds=30, listen="127.0.0.1:0")
    print("others join with:", run.join_word)

with run:
    for xs, ys in run.data(points, batch_size=32):
        loss = (model(xs) - ys).square().mean()
        loss.backward()
        run.step(loss)
    print(f"round {run.round}: y = {model.weight.item():.2f} x + {model.bias.item():.2f}")
    print("saved", run.save("line"))
