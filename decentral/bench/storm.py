"""``decentral bench storm``: many peers join a running run at once.

    members  ─ round ─ round ─┬─ round ─ round ─ …            how many rounds are late
    joiners                   └ launch ─ listen ─ member ─ first common round

Measured from the launch of the first process. Processes are forked from one that has imported
everything, else half a second of a core for each interpreter is most of what is seen (`--start
exec` has it so). `cpu_s` is what all had of the cores until everybody was in.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from decentral.bench import machine
from decentral.bench.fleet import Fleet, folder, percentiles
from decentral.bench.sleep_peer import PROGRAM
from decentral.cli.fork_server import ForkServer
from decentral.cli.processes import PeerProcess

LIMIT_S = 20.0
LATE = 1.5
"""A round that takes so many times the undisturbed median is late."""
CALM_ROUNDS = 6
PATIENCE_S = 120.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--joiners", type=int, default=48)
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--step-s", type=float, default=0.25)
    parser.add_argument("--sync-every", type=int, default=4)
    parser.add_argument("--state-kib", type=int, default=64)
    parser.add_argument("--start", choices=("fork", "exec"), default="fork")
    parser.add_argument("--limit-s", type=float, default=LIMIT_S)
    parser.add_argument("--keep", type=Path, help="keep the peers' homes in this folder")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    how = [
        *("--step-s", str(args.step_s), "--sync-every", str(args.sync_every)),
        *("--state-kib", str(args.state_kib)),
    ]
    with (
        ForkServer(PROGRAM[0]) if args.start == "fork" else contextlib.nullcontext() as server,
        folder(args.keep) as home,
        Fleet(home, *how, launch=server.launch if server is not None else None) as fleet,
    ):
        members = fleet.found(args.members)
        members[0].wait_round(members[0].round + CALM_ROUNDS, timeout_s=PATIENCE_S)
        word = members[0].invite()
        usual_s = statistics.median(
            e["seconds"] for e in members[0].events("round")[-CALM_ROUNDS + 1 :]
        )
        launched_at, cpu_before_s = time.monotonic(), _cpu_s(members)
        views_before = len(members[0].events("view"))
        joiners = [fleet.start(args.members + n, "--join", word) for n in range(args.joiners)]
        spawned_s = time.monotonic() - launched_at
        crew = [*members, *joiners]
        all_in_at = fleet.complete(crew, launched_at, PATIENCE_S)
        cpu_s = _cpu_s(crew) - cpu_before_s
        members[0].wait_round(members[0].round + CALM_ROUNDS, timeout_s=PATIENCE_S)
        violations = fleet.violations()
        entries = _entries(members[0].events("view"), views_before)
        rounds = _periods(members, launched_at, all_in_at)
        kib = [_resident_kib(peer) for peer in joiners]
    late = [one for one in rounds if one > LATE * usual_s]
    result = {
        "joiners": args.joiners,
        "members": args.members,
        "spawned_s": round(spawned_s, 2),
        "listening_s": _since(joiners, "listening", launched_at),
        "joined_s": _since(joiners, "joined", launched_at),
        "first_round_s": _since(joiners, "round", launched_at),
        "all_in_s": round(all_in_at - launched_at, 2),
        "cpu_s": round(cpu_s, 2),
        "usual_s": round(usual_s, 3),
        "rounds_meanwhile": len(rounds),
        "slowest_round_s": round(max(rounds), 3),
        "late_rounds": len(late),
        "entries": len(entries),
        "resident_mib": percentiles([one / 1024 for one in kib]),
        "violations": len(violations),
    }
    held = all_in_at - launched_at <= args.limit_s and len(late) <= 1 and not violations
    return {
        "bench": "storm",
        "held": held,
        "machine": machine.about(),
        "results": [result],
        "notes": violations[:20],
        "seconds": [round(one, 3) for one in rounds],
    }


def _entries(views: list[dict[str, Any]], first: int) -> list[int]:
    """How many entered with each view that let somebody in."""
    sizes = [view["members"] for view in views]
    grown = [now - before for before, now in pairwise(sizes[first - 1 :])]
    return [by for by in grown if by > 0]


def _since(peers: list[PeerProcess], kind: str, launched_at: float) -> dict[str, float]:
    return percentiles([peer.events(kind)[0]["seen_at"] - launched_at for peer in peers])


def _periods(members: list[PeerProcess], from_s: float, to_s: float) -> list[float]:
    """Of the rounds that ended in that time, each by the member that took longest for it."""
    slowest: dict[int, float] = {}
    for peer in members:
        for event in peer.events("round"):
            if from_s < event["seen_at"] <= to_s:
                number = event["round"]
                slowest[number] = max(slowest.get(number, 0.0), event["seconds"])
    return [slowest[number] for number in sorted(slowest)]


def _cpu_s(peers: list[PeerProcess]) -> float:
    """What they have had of all cores so far."""
    ticks = 0
    for peer in peers:
        fields = Path(f"/proc/{peer.process.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _resident_kib(peer: PeerProcess) -> float:
    text = Path(f"/proc/{peer.process.pid}/status").read_text()
    return float(text.partition("VmRSS:")[2].split()[0])
