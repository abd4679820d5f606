"""A peer is killed, stopped or cut off in the middle of an all-reduce: what the others get.

decentral bench faults --kind kill --instants 20 --size-mib 256 --peers 4 --json
decentral bench faults --kind cut --json                  needs root: it pulls a lab's cable
decentral bench faults --aborts 500 --json                what is left behind by many aborts
"""

from __future__ import annotations

import argparse
import random
import signal
import statistics
import time
from typing import Any

from decentral.bench import machine
from decentral.bench.aborts import AbortsBench
from decentral.bench.crew import Crew
from decentral.bench.lab import Lab
from decentral.bench.net import add_arguments as add_net_arguments
from decentral.bench.net import from_arguments, open_net
from decentral.bench.workers import sleep_until
from decentral.errors import ConfigError

SAYS = "a peer is killed, stopped or cut off in the middle of an all-reduce, many times"
KINDS = ("kill", "stop", "cut")
KILL_LIMIT_S = 1.0
SILENCE_SLACK_S = 0.5
"""Silence is only noticed once the limit has passed, and by a clock that ticks."""
TYPED = {"PeerFailedError", "AbortedError"}
RIGHT_SUM = {"fp32": 1e-5, "bf16": 0.02, "fp16": 0.01}
"""How far a retry's result may be from the exact mean of standard normal values, at worst."""
RIGHT_SUM_QUANTIZED = 0.6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kind", choices=KINDS, default="kill")
    parser.add_argument("--instants", type=int, default=20)
    parser.add_argument("--size-mib", type=float, default=256)
    parser.add_argument("--peers", type=int, default=4)
    parser.add_argument("--codec", default="fp32")
    parser.add_argument("--schedule", default="auto")
    parser.add_argument("--encrypt", choices=("on", "off"), default="on")
    parser.add_argument("--silence-limit-s", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--aborts", type=int, default=0, help="abort so often instead, and count")
    parser.add_argument("--abort-size-mib", type=float, default=16)
    parser.add_argument("--kill-every", type=int, default=10, help="every n-th abort is a death")
    add_net_arguments(parser)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    if args.peers < 3 or args.instants < 1:
        raise ConfigError("bench faults needs three peers and one instant at least")
    if args.aborts:
        return AbortsBench(
            aborts=args.aborts,
            peers=args.peers,
            size_bytes=int(args.abort_size_mib * 2**20),
            kill_every=args.kill_every,
            encrypt=args.encrypt == "on",
            seed=args.seed,
        ).run()
    if args.kind == "cut" and args.net is None and not args.rates_mbit:
        args.net = "shaped"
    net = from_arguments(args)
    if args.kind == "cut" and net.kind == "loopback":
        raise ConfigError("loopback has no cable to pull: use --net shaped or wan")
    chance = random.Random(args.seed)
    rows: list[dict[str, Any]] = []
    too_late = 0
    with open_net(net, args.peers) as site:
        crew = Crew(
            site.places,
            encrypt=args.encrypt == "on",
            congestion=net.congestion,
            silence_limit_s=args.silence_limit_s,
        )
        how = {"schedule": args.schedule, "codec": args.codec}
        try:
            crew.prepare(int(args.size_mib * 2**20))
            crew.measure()
            usual_s = statistics.median(
                max(answer["seconds"] for answer in crew.reduce(**how)) for _ in range(3)
            )
            while len(rows) < args.instants and too_late <= args.instants:
                after_s = chance.uniform(0.05, 0.85) * usual_s
                row = _once(crew, site.lab, args.kind, chance.randrange(args.peers), after_s, how)
                crew.workers.ask([row["victim"]], do="prepare", count=int(args.size_mib * 2**18))
                if row["completed"] == args.peers - 1:
                    too_late += 1  # all were done already: no fault has happened to them
                else:
                    rows.append(row)
        finally:
            crew.close()
    limit_s = KILL_LIMIT_S if args.kind == "kill" else args.silence_limit_s + SILENCE_SLACK_S
    return {
        "bench": "faults",
        "kind": args.kind,
        "machine": machine.about(),
        "net": net.report(args.peers),
        "size_bytes": int(args.size_mib * 2**20),
        "seed": args.seed,
        "usual_seconds": round(usual_s, 4),
        **_summary(rows, limit_s, args.instants, RIGHT_SUM.get(args.codec, RIGHT_SUM_QUANTIZED)),
        "came_too_late": too_late,
        "instants": rows,
    }


def _once(
    crew: Crew, lab: Lab | None, kind: str, victim: int, after_s: float, how: dict[str, Any]
) -> dict[str, Any]:
    """One fault, the survivors' answers, their retry, and a new peer in the victim's place."""
    start_at = crew.begin(**how)
    sleep_until(start_at + after_s)
    struck_at = time.monotonic()
    if kind == "cut":
        assert lab is not None
        lab.cut(victim)
    else:
        crew.workers.all[victim].signal(signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
    survivors = [rank for rank in crew.ranks if rank != victim]
    victim_id = crew.workers.addresses[victim]["peer"]
    answers = crew.end(survivors)
    failed = [answer for answer in answers if not answer["ok"]]
    crew.without(victim)
    retry = crew.reduce(**how)
    if kind == "cut" and lab is not None:
        lab.heal(victim)
    crew.replace(victim)
    return {
        "victim": victim,
        "after_s": round(after_s, 4),
        "completed": len(answers) - len(failed),
        "seconds_to_error": [round(answer["at"] - struck_at, 4) for answer in failed],
        "errors": sorted({answer["error"] for answer in failed}),
        "names_the_victim": sum(answer["peer"] == victim_id for answer in failed),
        "src_intact": all(answer["src_intact"] for answer in failed),
        "retry_seconds": round(max(answer["seconds"] for answer in retry), 4),
        "retry_max_abs_error": max(answer["max_abs_error"] for answer in retry),
    }


def _summary(
    rows: list[dict[str, Any]], limit_s: float, asked: int, right_sum: float
) -> dict[str, Any]:
    """What the report's reader wants first; `held` is what the exit status says."""
    delays = [delay for row in rows for delay in row["seconds_to_error"]] or [0.0]
    typed = all(set(row["errors"]) <= TYPED for row in rows)
    worst_error = max((row["retry_max_abs_error"] for row in rows), default=0.0)
    result = {
        "faults": len(rows),
        "to_error_s_median": round(statistics.median(delays), 4),
        "to_error_s_max": round(max(delays), 4),
        "limit_s": limit_s,
        "typed": typed,
        "src_intact": all(row["src_intact"] for row in rows),
        "retry_max_abs_error": worst_error,
    }
    held = (
        len(rows) == asked
        and max(delays) <= limit_s
        and typed
        and bool(result["src_intact"])
        and worst_error <= right_sum
    )
    return {"held": held, "results": [result]}
