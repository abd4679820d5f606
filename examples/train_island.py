"""Learn a sine with islands of two processes each, sharded by FSDP2: half a minute of training.

torchrun --standalone --nproc-per-node=2 examples/train_island.py                    # founds a run
torchrun --standalone --nproc-per-node=2 examples/train_island.py 127.0.0.1:4242#…   # joins it
"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

import decentral

dist.init_process_group("gloo")  # "nccl" on GPUs
torch.set_num_threads(1)
x = torch.linspace(-3, 3, 10_000).unsqueeze(1)
points = torch.utils.data.TensorDataset(x, x.sin())
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(1, 512), nn.Tanh(), nn.Linear(512, 1))
fully_shard(model)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
strategy = decentral.DiLoCo(sync_every=250, outer_momentum=0.6)
word = sys.argv[1] if len(sys.argv) > 1 else None

run = decentral.island(model, optimizer, strategy, word, rounds=20, listen="127.0.0.1:0")
if dist.get_rank() == 0 and word is None:
    print("other islands join with:", run.join_word, flush=True)

with run:
    for xs, ys in run.data(points, batch_size=16):
        loss = (model(xs) - ys).square().mean()
        loss.backward()
        run.step(loss)
    saved = run.save("sine-island")
    print(
        f"rank {dist.get_rank()}: round {run.round}, {run.tokens} samples, loss {loss.item():.6f}"
    )
    print(f"rank {dist.get_rank()}: shard {run.state_hash[:16]}, model in {saved}")
dist.destroy_process_group()
