"""Two peers on loopback, linked in every way there is, against a bare TLS loop in the same run.

    direct   peer ═══ 2 connections ═══ peer          each is TLS 1.3, AES-128-GCM, in all rows
    carrier  peer ═══ 1 connection ════ peer          streams share it, as after a hole punch
    relayed  peer ═══ relay ═══════════ peer          three processes; the relay sees ciphertext
    tls      two blocking loops, one each way         what OpenSSL does on these cores, no more

Every system moves the same bytes, both ways at once in the rows that are compared with the loop,
one way in the others. The receiver's bytes are hashed and compared after each run.
"""

from __future__ import annotations

import argparse
import secrets
import statistics
from collections.abc import Callable
from typing import Any

from decentral.bench import machine
from decentral.bench.systems import Flows
from decentral.bench.workers import Place, Workers, soon
from decentral.errors import DecentralError

LEAST_OF_TLS = 0.9
MOST_CPU_OF_TLS = 1.2
LEAST_RELAYED_MIB_S = 300.0

CITED = (
    {"system": "hivemind 1.1.12 P2P stream", "mib_s": [77, 201], "cpu_s_per_gib": [6.3, 7.1]},
    {"system": "hivemind 1.1.12, relayed", "mib_s": [54, 154], "cpu_s_per_gib": None},
    {"system": "iroh 1.x QUIC", "mib_s": [57, 89], "cpu_s_per_gib": [7.3, 9.4]},
)
"""Measured once on the same kind of machine (256 MiB, one stream, loopback): not in this run."""

FIRST, SECOND, RELAY = 0, 1, 2


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """`--size-mib` each way, `--runs` times, the ways taking turns."""
    size_bytes = int(args.size_mib * 2**20)
    places = [Place()] * 2
    crew = _Ends(args.link_streams)
    flows = None
    try:
        crew.prepare(size_bytes)
        flows = Flows("tls", places, size_bytes)
        rows: dict[str, Callable[[], list[dict[str, Any]]]] = {
            "tls loop, both ways": flows.run_once,
            "direct, both ways": lambda: crew.move("direct", both_ways=True),
            "direct": lambda: crew.move("direct"),
            "carrier": lambda: crew.move("carrier"),
            "relayed": lambda: crew.move("relayed"),
        }
        answers: dict[str, list[list[dict[str, Any]]]] = {name: [] for name in rows}
        for run in range(args.runs + 1):
            for name, once in rows.items():
                answer = once()
                if run:  # the first opens what each needs
                    answers[name].append(answer)
    finally:
        crew.close()
        if flows:
            flows.close()
    results = [_row(name, size_bytes, runs) for name, runs in answers.items()]
    return _report(results, size_bytes, args.link_streams)


def _row(name: str, size_bytes: int, runs: list[list[dict[str, Any]]]) -> dict[str, Any]:
    moved_bytes = size_bytes * (2 if "both ways" in name else 1)
    seconds = [max(one["seconds"] for one in run) for run in runs]
    cpu_s = [sum(one["cpu_seconds"] for one in run) for run in runs]
    return {
        "system": name,
        "processes": len(runs[0]),
        "seconds": [round(one, 4) for one in seconds],
        "mib_s": round(moved_bytes / 2**20 / statistics.median(seconds), 1),
        "cpu_s_per_gib": round(statistics.median(cpu_s) / (moved_bytes / 2**30), 3),
    }


def _report(results: list[dict[str, Any]], size_bytes: int, streams: int) -> dict[str, Any]:
    of = {result["system"]: result for result in results}
    loop, direct = of["tls loop, both ways"], of["direct, both ways"]
    throughput = direct["mib_s"] / loop["mib_s"]
    cpu = direct["cpu_s_per_gib"] / loop["cpu_s_per_gib"]
    checks = {
        f"direct at least {LEAST_OF_TLS} of the TLS loop": throughput >= LEAST_OF_TLS,
        f"CPU at most {MOST_CPU_OF_TLS} of the TLS loop's": cpu <= MOST_CPU_OF_TLS,
        f"relayed at least {LEAST_RELAYED_MIB_S:.0f} MiB/s": of["relayed"]["mib_s"]
        >= LEAST_RELAYED_MIB_S,
    }
    return {
        "bench": "link",
        "machine": machine.about(),
        "size_bytes": size_bytes,
        "streams": streams,
        "results": results,
        "ratios": {
            "direct/tls throughput": round(throughput, 3),
            "direct/tls CPU": round(cpu, 3),
            "relayed/direct throughput": round(of["relayed"]["mib_s"] / of["direct"]["mib_s"], 3),
        },
        "cited": list(CITED),
        "checks": checks,
        "held": all(checks.values()),
    }


class _Ends:
    """Two peers and a relay, each a process; one link at a time."""

    def __init__(self, streams: int) -> None:
        self._workers = Workers(
            "decentral.bench.link_worker", [Place()] * 3, ["--streams", str(streams)]
        )
        self._digests: list[str] = []
        self._way = ""

    def prepare(self, size_bytes: int) -> None:
        answers = self._workers.ask([FIRST, SECOND], do="prepare", size_bytes=size_bytes)
        self._digests = [answer["sha256"] for answer in answers]

    def move(self, way: str, *, both_ways: bool = False) -> list[dict[str, Any]]:
        """From the first to the second, or both ways at once; an answer per process."""
        self._link(way)
        receivers = [FIRST, SECOND] if both_ways else [SECOND]
        senders = [FIRST, SECOND] if both_ways else [FIRST]
        self._workers.ask(receivers, do="expect")
        relay_cpu = self._relay_cpu_s()
        start_at = soon(2)
        for rank in (FIRST, SECOND):
            self._workers.tell(
                [rank], do="transfer", start_at=start_at,
                sends=rank in senders, receives=rank in receivers,
            )  # fmt: skip
        answers = self._workers.hear([FIRST, SECOND])
        if way == "relayed":
            answers.append({"seconds": 0.0, "cpu_seconds": self._relay_cpu_s() - relay_cpu})
        arrived = self._workers.ask(receivers, do="received")
        for rank, answer in zip(receivers, arrived, strict=True):
            if answer["sha256"] != self._digests[1 - rank]:
                raise DecentralError(f"{way}: what arrived is not what was sent", phase="bench")
        return answers

    def close(self) -> None:
        self._workers.close()

    def _relay_cpu_s(self) -> float:
        return float(self._workers.ask([RELAY], do="cpu")[0]["cpu_seconds"])

    def _link(self, way: str) -> None:
        if self._way == way:
            return
        if self._way:
            self._workers.ask([FIRST, SECOND], do="unlink")
        self._way = way
        first, second, relay = self._workers.addresses
        if way == "relayed":
            token = secrets.token_hex(32)
            self._workers.ask([RELAY], do="offer", token=token)
            for rank, other in ((FIRST, second), (SECOND, first)):
                self._workers.ask(
                    [rank], do="dial", at=relay, peer=other["peer"], role="by-id", carrier=True,
                    token=token, relay_side=rank,
                )  # fmt: skip
        else:
            self._workers.ask(
                [SECOND], do="dial", at=first, peer=first["peer"], carrier=way == "carrier"
            )
        self._workers.ask([FIRST, SECOND], do="linked")
