"""`decentral simulate crowd` and `detection`: runs of a size that is worth a wait of minutes."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict

from decentral.errors import ConfigError
from decentral.simulator.command import FIELDS
from decentral.simulator.crowd import crowd
from decentral.simulator.detection import detect

MOST_PEERS = 4096
INFORMED_WITHIN_S = 8.0
STALLING = 0.08
FEWER = 100
"""With Lifeguard, so many times fewer of the living are called dead when peers stall."""
DEATHS = 8


def crowd_command(args: argparse.Namespace) -> int:
    """Exit status 0 only without violations."""
    _check(args.peers)
    began = time.monotonic()
    say = (lambda line: None) if args.json else (lambda line: print(f"  {line}", flush=True))
    report = crowd(args.seed, args.peers, args.joiners, say=say)
    if args.json:
        row = asdict(report)
        print(json.dumps({name: row[name] for name in FIELDS}))
    else:
        verdict = f"{len(report.violations)} violations" if report.violations else "ok"
        print(
            f"seed {report.seed}: {verdict}; {args.peers} peers and {args.joiners} joiners, "
            f"{report.simulated_s:.0f} s, {report.events} events, {report.rounds} rounds, "
            f"in {time.monotonic() - began:.0f} s"
        )
        for one in report.violations[:20]:
            print(f"  {one}", file=sys.stderr)
    return 1 if report.violations else 0


def detection_command(args: argparse.Namespace) -> int:
    """Exit status 0 only if all three bars hold."""
    _check(args.peers)
    deaths = detect(args.seed, args.peers, deaths=DEATHS)
    calm = detect(args.seed + 1, args.peers, seconds=3600 * args.peer_hours / args.peers)
    guarded = detect(args.seed + 2, args.peers, stalling=STALLING)
    plain = detect(args.seed + 2, args.peers, stalling=STALLING, lifeguard=False)
    numbers = {
        "peers": args.peers,
        "informed_99_s": deaths.informed_within_s(0.99),
        "informed_50_s": deaths.informed_within_s(0.5),
        "peer_hours": round(calm.peer_hours, 2),
        "false_evictions": calm.false_evictions,
        "stalling_false_evictions": guarded.false_evictions,
        "stalling_without_lifeguard": plain.false_evictions,
    }
    print(json.dumps(numbers))
    held = (
        deaths.informed_within_s(0.99) <= INFORMED_WITHIN_S
        and not calm.false_evictions
        and plain.false_evictions >= FEWER * max(1, guarded.false_evictions)
    )
    return 0 if held else 1


def _check(peers: int) -> None:
    if not 2 <= peers <= MOST_PEERS:
        raise ConfigError(f"--peers is between 2 and {MOST_PEERS}, not {peers}")
