"""``decentral bench failover``: the coordinator dies, stops or is cut off, again and again.

    coordinator  ─ round ─ round ─╳ at a random instant              ┌─ back, resynced ─
    the others   ─ round ─ round ─ … ─ view without it ─ round ─ round ─ round ─
                                  └─ re-formed ┘
                                  └─ a successor commits ──┘

Real processes that sleep instead of training. Whatever anybody printed must be what all hold.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from decentral.bench import machine
from decentral.bench.fleet import Fleet, first_event, folder, percentiles, period_s, until
from decentral.bench.lab import Lab, Lines, open_lab
from decentral.cli.processes import PeerProcess
from decentral.errors import ConfigError, DecentralError

KINDS = ("kill", "stop", "drop")
COMMIT_LIMIT_S = {"kill": 5.0, "stop": 12.0, "drop": 12.0}
"""In every single case; the silent ones are first given up after the silence limit."""
COMMIT_P99_S = {"kill": 2.0}
REFORMED_P99_S = {"kill": 1.0, "stop": 7.0, "drop": 7.0}
"""Beyond an undisturbed round's period."""
PATIENCE_S = 60.0
CALM_ROUNDS = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kind", choices=KINDS, default="kill")
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--peers", type=int, default=5)
    parser.add_argument("--step-s", type=float, default=0.04)
    parser.add_argument("--sync-every", type=int, default=4)
    parser.add_argument("--state-kib", type=int, default=256)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="keep the peers' homes in this folder")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    if args.peers < 3 or args.times < 1:
        raise ConfigError("bench failover needs three peers and one time at least")
    chance = random.Random(args.seed)
    rows: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        home = stack.enter_context(folder(args.keep))
        lab, places = None, []
        if args.kind == "drop":
            lab = stack.enter_context(open_lab(Lines(rates_mbit=(0,) * args.peers)))
            places = [(host.prefix, host.address) for host in lab.hosts]
        fleet = stack.enter_context(
            Fleet(
                home,
                *("--step-s", str(args.step_s), "--sync-every", str(args.sync_every)),
                *("--state-kib", str(args.state_kib), "--on-quorum-loss", "pause"),
                places=places,
            )
        )
        crew = dict(enumerate(fleet.found(args.peers)))
        for _ in range(args.times):
            rows.append(_once(fleet, crew, args.kind, lab, chance))
        violations = fleet.violations() + _lost(fleet, rows)
    return _report(args, rows, violations)


def _once(
    fleet: Fleet,
    crew: dict[int, PeerProcess],
    kind: str,
    lab: Lab | None,
    chance: random.Random,
) -> dict[str, Any]:
    any_one = crew[min(crew)]
    calm = any_one.round + CALM_ROUNDS
    until(lambda: any_one.round >= calm, timeout_s=PATIENCE_S, says="rounds go on")
    usual_s = period_s(any_one)
    number = _coordinator(crew)
    victim = crew[number]
    survivors = [peer for other, peer in crew.items() if other != number]
    start = victim.round
    victim.wait_round(start + 1, timeout_s=PATIENCE_S)
    wait_s = chance.uniform(0, 1) * usual_s
    time.sleep(wait_s)
    epoch = max(peer.last("round")["epoch"] for peer in survivors)  # type: ignore[index]
    struck_at = time.monotonic()
    _strike(victim, kind, lab, number)

    def seen(event: str, where: Callable[[dict[str, Any]], bool]) -> list[float] | None:
        times = [first_event(peer, event, struck_at, where) for peer in survivors]
        return [at for at in times if at is not None] if None not in times else None

    row: dict[str, Any] = {
        "victim": victim.name,
        "after_s": round(wait_s, 4),
        "usual_s": round(usual_s, 4),
        "round": start + 1,
        "printed": {
            e["round"]: e["state_hash"]
            for e in victim.events("round")
            if e["participants"] >= len(survivors)  # not those before the others had come
        },
    }
    try:
        said = until(
            lambda: seen("view", lambda e: e["members"] == len(survivors)),
            timeout_s=PATIENCE_S, says="the survivors have a view of their own",
        )  # fmt: skip
        row["reformed_s"] = max(said) - struck_at
        said = until(
            lambda: seen("round", lambda e: e["epoch"] > epoch),
            timeout_s=PATIENCE_S, says="the survivors commit a round",
        )  # fmt: skip
        row["commit_s"] = min(said) - struck_at
        row["all_committed_s"] = max(said) - struck_at
    except DecentralError as error:
        row["failed"] = error.says
    back_at = time.monotonic()
    crew[number] = _bring_back(fleet, victim, kind, lab, number)
    row["back_s"] = fleet.complete(list(crew.values()), back_at, PATIENCE_S) - back_at
    return row


def _coordinator(crew: dict[int, PeerProcess]) -> int:
    """Whom the others follow; its own word may be old."""
    names = {peer.peer_id: number for number, peer in crew.items()}

    def agreed() -> int | None:
        said = {peer.status()["coordinator"] for peer in crew.values()}
        return names.get(said.pop()) if len(said) == 1 else None

    found = until(
        lambda: (one,) if (one := agreed()) is not None else None,
        timeout_s=PATIENCE_S, says="all name one coordinator",
    )  # fmt: skip
    return int(found[0])


def _strike(victim: PeerProcess, kind: str, lab: Lab | None, number: int) -> None:
    if kind == "drop":
        assert lab is not None
        lab.cut(number)
    else:
        victim.send(signal.SIGKILL if kind == "kill" else signal.SIGSTOP)


def _bring_back(
    fleet: Fleet, victim: PeerProcess, kind: str, lab: Lab | None, number: int
) -> PeerProcess:
    """The same identity and home again: a new process, or the one that was away."""
    if kind == "kill":
        victim.process.wait()
        return fleet.start(number)
    if kind == "stop":
        victim.send(signal.SIGCONT)
    else:
        assert lab is not None
        lab.heal(number)
    return victim


def _lost(fleet: Fleet, rows: list[dict[str, Any]]) -> list[str]:
    """Rounds that the victim had acknowledged and nobody else has with the same bits (I2)."""
    lost: dict[int, str] = {}
    for row in rows:
        others = [peer for peer in fleet.all if peer.name != row["victim"]]
        held = {(e["round"], e["state_hash"]) for peer in others for e in peer.events("round")}
        for number, state_hash in row.pop("printed").items():
            if (number, state_hash) not in held:
                lost[number] = f"round {number}, printed by {row['victim']}, is nobody else's"
    return list(lost.values())


def _report(
    args: argparse.Namespace, rows: list[dict[str, Any]], violations: list[str]
) -> dict[str, Any]:
    done = [row for row in rows if "failed" not in row]
    commit = percentiles([row["commit_s"] for row in done])
    beyond = percentiles([row["reformed_s"] - row["usual_s"] for row in done])
    held = (
        len(done) == args.times
        and not violations
        and commit["max"] <= COMMIT_LIMIT_S[args.kind]
        and commit["p99"] <= COMMIT_P99_S.get(args.kind, COMMIT_LIMIT_S[args.kind])
        and beyond["p99"] <= REFORMED_P99_S[args.kind]
    )
    result = {
        "kind": args.kind,
        "times": len(rows),
        "peers": args.peers,
        "usual_s": round(sorted(row["usual_s"] for row in rows)[len(rows) // 2], 4),
        "successor_commits_s": commit,
        "all_committed_s": percentiles([row["all_committed_s"] for row in done]),
        "reformed_s": percentiles([row["reformed_s"] for row in done]),
        "reformed_beyond_a_round_s": beyond,
        "back_s": percentiles([row["back_s"] for row in rows]),
        "violations": len(violations),
    }
    return {
        "bench": "failover",
        "held": held,
        "machine": machine.about(),
        "seed": args.seed,
        "results": [result],
        "notes": violations[:20] + [row["failed"] for row in rows if "failed" in row],
        "instants": [
            {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows
        ],
    }
