"""One rank of PCCL's all-reduce: ``python -m decentral.bench.pccl_worker``.

Rank 0 also runs the master that PCCL needs. Written against pypccl 1.0.0, whose wheel wants
Python 3.12 or later and libcuda.so.1.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import threading
import time
from typing import Any

import numpy as np
import pccl  # type: ignore[import-not-found,unused-ignore]

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

    master: Any = None
    address = ""
    if args.rank == 0:
        with contextlib.closing(socket.socket()) as probe:
            probe.bind((args.host, 0))
            address = f"{args.host}:{probe.getsockname()[1]}"
        master = pccl.MasterNode(listen_address=address)
        threading.Thread(target=master.run, daemon=True).start()
    say(address=address)
    communicator = pccl.Communicator(hear()["addresses"][0], 0)
    communicator.connect(n_attempts=15)
    while communicator.get_attribute(pccl.Attribute.GLOBAL_WORLD_SIZE) < args.peers:
        if communicator.are_peers_pending():
            communicator.update_topology()
        time.sleep(0.05)
    source = values(args.rank, args.size_bytes // 4)
    result = np.empty_like(source)
    say(ready=True)
    while True:
        start_at = hear()["start_at"]
        sleep_until(start_at)
        cpu = cpu_seconds()
        info = communicator.all_reduce(source, result, op=pccl.ReduceOp.SUM)
        seconds = time.monotonic() - start_at
        cpu = cpu_seconds() - cpu
        error = max_abs_error(result / args.peers, range(args.peers))
        say(seconds=seconds, cpu_seconds=cpu, bytes_sent=info.tx_bytes, max_abs_error=error)


if __name__ == "__main__":
    main()
