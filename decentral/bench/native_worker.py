"""One rank of decentral's own all-reduce: ``python -m decentral.bench.native_worker``."""

from __future__ import annotations

import argparse
import secrets
import select
import time

import numpy as np

from decentral import _native
from decentral.bench.workers import cpu_seconds, hear, say
from decentral.collectives import Group
from decentral.types import View, peer_id, raw_id


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--peers", type=int, required=True)
    parser.add_argument("--size-bytes", type=int, required=True)
    parser.add_argument("--codec", required=True)
    parser.add_argument("--encrypt", choices=("on", "off"), required=True)
    parser.add_argument("--streams", type=int, required=True)
    args = parser.parse_args()

    endpoint = _native.Endpoint(
        secrets.token_bytes(32), bulk_streams=args.streams, encrypt_bulk=args.encrypt == "on"
    )
    port = endpoint.listen("127.0.0.1", 0)
    say(address={"peer": peer_id(endpoint.id), "port": port})
    others = hear()["addresses"]
    members = tuple(sorted(other["peer"] for other in others))
    me = peer_id(endpoint.id)
    for other in others[: args.rank]:
        endpoint.dial("127.0.0.1", other["port"], expected=raw_id(other["peer"]))
    links = 0
    while links < args.peers - 1:
        select.select([endpoint.event_fd], [], [], 10)
        for event in endpoint.take_events():
            assert event.type == "link-up", (event.type, event.error)
            endpoint.admit(event.link)
            links += 1
    group = Group(endpoint, View(lineage="00" * 8, epoch=1, members=members), me)

    count = args.size_bytes // 4
    source = _values(args.rank, count)
    result = np.empty_like(source)
    exact = sum(_values(rank, count).astype(np.float64) for rank in range(args.peers)) / args.peers
    nothing = np.zeros(1, np.float32)
    say(ready=True)
    number = 0
    while hear():
        number += 1
        group.all_reduce(nothing, np.empty_like(nothing), round=number, attempt=1, tag=1).wait()
        cpu = cpu_seconds()
        start_s = time.perf_counter()
        work = group.all_reduce(source, result, codec=args.codec, round=number, attempt=1, tag=2)
        work.wait()
        seconds = time.perf_counter() - start_s
        cpu = cpu_seconds() - cpu
        say(
            seconds=seconds,
            cpu_seconds=cpu,
            bytes_sent=work.stats.bytes_sent,
            max_abs_error=float(np.max(np.abs(result - exact), initial=0.0)),
        )


def _values(rank: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.random.default_rng(rank).standard_normal(count, dtype=np.float32)


if __name__ == "__main__":
    main()
