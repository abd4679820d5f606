"""One rank of an island under torchrun: a small model, FSDP2 on gloo, one JSON object a line.

torchrun --nproc-per-node=2 island_script.py '{"rounds": 4}'
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

import decentral

options: dict[str, Any] = {
    "rounds": 4, "word": None, "home": None, "step_s": 0.0, "save": None, "sync_every": 4,
    "fail_at": 0, "eval": False, "gate": None, "kind": "fsdp",
    **json.loads(sys.argv[1]),
}  # fmt: skip


def say(event: str, **fields: Any) -> None:
    line = json.dumps({"event": event, "rank": dist.get_rank(), **fields})
    os.write(1, f"{line}\n".encode())  # in one piece: torchrun's ranks share a pipe


def local(parameter: torch.Tensor) -> torch.Tensor:
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter


def single(model: Any, optimizer: Any, strategy: Any, word: str, **more: Any) -> Any:
    """No island: a single peer."""
    return decentral.join(word, model, optimizer, strategy, **more)


def main() -> None:
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    # 5 rows over 2 ranks are 3 and 2; the last layer's single row is rank 0's alone.
    model = nn.Sequential(nn.Linear(1, 5), nn.Tanh(), nn.Linear(5, 1))
    whole = model
    if options["kind"] == "ddp":
        model = nn.parallel.DistributedDataParallel(model)
    elif options["kind"] == "fsdp":
        for layer in model:
            if isinstance(layer, nn.Linear):
                fully_shard(layer)
        fully_shard(model)
    x = torch.linspace(-3, 3, 1000).unsqueeze(1)
    points = torch.utils.data.TensorDataset(x, x.sin())
    enter = decentral.island if options["kind"] != "alone" else single
    run = enter(
        model,
        torch.optim.AdamW(model.parameters(), lr=3e-3),
        decentral.DiLoCo(sync_every=options["sync_every"], outer_momentum=0.6),
        options["word"],
        rounds=options["rounds"],
        home=options["home"],
        listen="127.0.0.1:0",
        clip_norm=1.0,
    )

    def look(run: decentral.Run) -> dict[str, Any]:
        say("eval", round=run.round, value=float(model(x[:8]).square().mean()))
        return {}

    if options["eval"]:
        run.each_round(look)
    say("word", word=run.join_word, pid=os.getpid())
    seen = -1
    with run:
        steps = 0
        for xs, ys in run.data(points, batch_size=4):
            if not steps:
                say("in")
                while options["gate"] and not Path(options["gate"]).exists():
                    time.sleep(0.02)
            loss = (model(xs) - ys).square().mean()
            loss.backward()
            run.step(loss)
            steps += 1
            time.sleep(options["step_s"])
            if options["fail_at"] == steps and dist.get_rank() == 1:
                raise ValueError("this rank fails on purpose")
            if run.round != seen:
                seen = run.round
                members = len(run.members) if isinstance(run, decentral.Run) else 0
                say("round", round=seen, hash=run.state_hash, members=members)
        where = str(run.save(options["save"])) if options["save"] else None
        say(
            "done", round=run.round, hash=run.state_hash, tokens=run.tokens, why=run.finished,
            steps=steps, saved=where,
            weights=[float(w) for p in whole.parameters() for w in local(p).flatten()],
        )  # fmt: skip
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
