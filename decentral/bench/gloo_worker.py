"""One rank of torch's gloo all-reduce: ``python -m decentral.bench.gloo_worker``."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from decentral.bench.values import max_abs_error, values
from decentral.bench.workers import cpu_seconds, die_with_parent, hear, say, sleep_until


def main() -> None:
    die_with_parent()
    parser = argparse.ArgumentParser()
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--peers", type=int, required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--interface", required=True)
    parser.add_argument("--size-bytes", type=int, required=True)
    args = parser.parse_args()

    os.environ["GLOO_SOCKET_IFNAME"] = args.interface
    torch.set_num_threads(1)
    folder = tempfile.mkdtemp(prefix="decentral-gloo-") if args.rank == 0 else ""
    say(address=folder)
    folder = hear()["addresses"][0]
    store = Path(folder) / "store"
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=args.rank,
        world_size=args.peers,
        timeout=timedelta(seconds=300),
    )
    source = torch.from_numpy(values(args.rank, args.size_bytes // 4))
    dist.barrier()
    if args.rank == 0:
        store.unlink()
        store.parent.rmdir()
    result = source.clone()
    say(ready=True)
    while True:
        start_at = hear()["start_at"]
        sleep_until(start_at)
        cpu = cpu_seconds()
        dist.all_reduce(result)
        seconds = time.monotonic() - start_at
        cpu = cpu_seconds() - cpu
        error = max_abs_error(result.numpy() / args.peers, range(args.peers))
        result.copy_(source)  # before the answer: then it is another system's turn
        say(seconds=seconds, cpu_seconds=cpu, bytes_sent=None, max_abs_error=error)


if __name__ == "__main__":
    main()
