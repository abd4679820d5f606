"""One rank of torch's gloo all-reduce: ``python -m decentral.bench.gloo_worker``."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from decentral.bench.native_worker import _values
from decentral.bench.workers import cpu_seconds, hear, say


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--peers", type=int, required=True)
    parser.add_argument("--size-bytes", type=int, required=True)
    args = parser.parse_args()

    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    folder = tempfile.mkdtemp(prefix="decentral-gloo-") if args.rank == 0 else ""
    say(address=folder)
    folder = hear()["addresses"][0]
    dist.init_process_group(
        "gloo",
        init_method=f"file://{Path(folder) / 'store'}",
        rank=args.rank,
        world_size=args.peers,
        timeout=timedelta(seconds=120),
    )
    count = args.size_bytes // 4
    source = torch.from_numpy(_values(args.rank, count))
    exact = sum(_values(rank, count).astype(np.float64) for rank in range(args.peers))
    say(ready=True)
    while hear():
        result = source.clone()
        dist.all_reduce(torch.zeros(1))
        cpu = cpu_seconds()
        start_s = time.perf_counter()
        dist.all_reduce(result)
        seconds = time.perf_counter() - start_s
        cpu = cpu_seconds() - cpu
        error = float(np.max(np.abs(result.numpy() - exact), initial=0.0)) / args.peers
        say(seconds=seconds, cpu_seconds=cpu, bytes_sent=None, max_abs_error=error)


if __name__ == "__main__":
    main()
