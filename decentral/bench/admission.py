"""What strangers cost a run: crowds that dribble, announce huge frames, replay, sit in the middle.

decentral bench admission                      three peers, a thousand connections of each kind
decentral bench admission --connections 200 --seconds 5 --json

calm ─ dribble ─ calm ─ huge ─ calm ─ replay ─ calm ─ middle ─ calm ─▶ a newcomer among dribblers

All of it is aimed at one member, the coordinator; besiegers and besieged share this machine. A
round's time under attack is compared with the calm before and after it, and so is the processor
time that the target takes, in cores: what else runs on the machine disturbs that less.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import psutil

from decentral.bench import machine
from decentral.bench.dribblers import Dribblers
from decentral.bench.fleet import Fleet, folder
from decentral.churn.hostile import wire
from decentral.churn.hostile.middleman import Middleman
from decentral.churn.hostile.outsiders import Outsider, TamperedGuest
from decentral.churn.hostile.wire import Frame, Papers
from decentral.cli.processes import PeerProcess
from decentral.errors import DecentralError
from decentral.peer.joinword import JoinWord

PEER_ARGS = ("--step-s", "0.05", "--sync-every", "4")
GROWTH_LIMIT_BYTES = 32 << 20
SLOWER_LIMIT = 1.10
WARM_S = 3.0
SAMPLE_S = 0.1
THREADS = 16
JOIN_S = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--peers", type=int, default=3)
    parser.add_argument("--connections", type=int, default=1000, help="of each kind")
    parser.add_argument("--seconds", type=float, default=20.0, help="per kind, and per calm")
    parser.add_argument("--state-kib", type=int, default=4096)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="keep the homes there")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    with folder(args.keep) as place:
        return _Siege(args, place).run()


class _Siege:
    def __init__(self, args: argparse.Namespace, place: Path) -> None:
        self._count, self._connections = args.peers, args.connections
        self._seconds, self._state_kib = args.seconds, args.state_kib
        self._place, self._rng = place, Random(args.seed)
        self._lock = threading.Lock()
        self._recorded: list[bytes] = []

    def run(self) -> dict[str, Any]:
        more = ("--state-kib", str(self._state_kib))
        with Fleet(self._place / "peers", *PEER_ARGS, *more) as fleet:
            peers = fleet.found(self._count - 1)
            peers.append(self._recorded_join(fleet, peers))
            self._target, self._word = peers[0], peers[0].invite()
            self._address = JoinWord.parse(self._word).addresses[0]
            time.sleep(WARM_S)
            members = {peer.peer_id for peer in peers}
            kinds: dict[str, Callable[[float], dict[str, int]]] = {
                "dribble": self._dribble,
                "huge": self._huge,
                "replay": self._replay,
                "middle": self._middle,
            }
            calm = [self._phase(self._idle)]
            besieged = []
            for attack in kinds.values():
                besieged.append(self._phase(attack))
                calm.append(self._phase(self._idle))
            results = [
                self._result(name, phase, calm[number], calm[number + 1])
                for number, (name, phase) in enumerate(zip(kinds, besieged, strict=True))
            ]
            links = self._target.status()["links"]
            inside = {link["peer"] for link in links if link["class"] != "failed"}
            views = [
                event["reason"]
                for peer in peers
                for event in peer.events("view")
                if event["seen_at"] > calm[0]["begun"]
            ]
            strangers = sorted(inside - members)
            newcomer = self._newcomers(fleet)
            violations = fleet.violations()
        return {
            "bench": "admission",
            "machine": machine.about(),
            "peers": self._count,
            "connections": self._connections,
            "results": results,
            "nobody_got_in": not strangers and not views,
            "views": views,
            "newcomer_joined_s": newcomer,
            "violations": violations,
            "held": not (strangers or views or violations)
            and all(one["held"] for one in results)
            and None not in newcomer.values(),
            "notes": [f"a round may be slower by {SLOWER_LIMIT - 1:.0%}, on a quiet machine"],
        }

    # ------------------------------------------------------------------------------ phases

    def _phase(self, attack: Callable[[float], dict[str, int]]) -> dict[str, Any]:
        """Attack for the time of a phase, and watch the target's memory and its rounds."""
        process = psutil.Process(self._target.process.pid)
        before, cpu_s = process.memory_info().rss, _cpu_s(process)
        most, begun = before, time.monotonic()
        done: list[dict[str, int]] = []
        thread = threading.Thread(target=lambda: done.append(attack(begun + self._seconds)))
        thread.start()
        while thread.is_alive() or time.monotonic() < begun + self._seconds:
            most = max(most, process.memory_info().rss)
            time.sleep(SAMPLE_S)
        ended = begun + self._seconds
        at = [float(e["seen_at"]) for e in self._target.events("round")]
        inside = [one for one in at if begun <= one <= ended]
        return {
            "begun": begun,
            "rounds": [later - earlier for earlier, later in itertools.pairwise(inside)],
            "grew_bytes": most - before,
            "cpu": (_cpu_s(process) - cpu_s) / (time.monotonic() - begun),
            **(done[0] if done else {}),
        }

    def _result(
        self, name: str, phase: dict[str, Any], before: dict[str, Any], after: dict[str, Any]
    ) -> dict[str, Any]:
        quiet = [*before["rounds"], *after["rounds"]]
        slower = statistics.median(phase["rounds"]) / statistics.median(quiet)
        grew = phase["grew_bytes"]
        return {
            "attack": name,
            "tried": phase.get("tried", 0),
            "ended_by_peer": phase.get("ended", 0),
            "round_s_median": round(statistics.median(phase["rounds"]), 4),
            "round_s_calm": round(statistics.median(quiet), 4),
            "slower": round(slower, 3),
            "target_cores": round(phase["cpu"], 3),
            "target_cores_calm": round((before["cpu"] + after["cpu"]) / 2, 3),
            "grew_mib": round(grew / 2**20, 2),
            "held": grew < GROWTH_LIMIT_BYTES
            and slower < SLOWER_LIMIT
            and phase.get("tried", 0) == phase.get("ended", 0),
        }

    @staticmethod
    def _idle(until: float) -> dict[str, int]:
        time.sleep(max(0.0, until - time.monotonic()))
        return {}

    # ----------------------------------------------------------------------------- attacks

    def _dribble(self, until: float) -> dict[str, int]:
        with Dribblers(self._address, self._connections) as crowd:
            self._idle(until)
            tried = crowd.opened
            still = crowd.older_than_s(wire_limit_s())
        return {"tried": tried, "ended": tried - still}

    def _huge(self, until: float) -> dict[str, int]:
        outsider = Outsider(self._place, self._address, Random(self._rng.random()))
        raw = [
            b"\x16\x03\x01\xff\xff" + bytes(64),
            Frame(type=wire.BULK_HELLO, payload=b"x", length=0xFFFFFFFF).encode(),
        ]
        attempts = itertools.cycle(
            [
                outsider.huge,
                lambda: outsider.raw(raw[0]),
                outsider.huge,
                lambda: outsider.raw(raw[1]),
            ]
        )
        return self._in_threads(attempts, self._connections, until)

    def _replay(self, until: float) -> dict[str, int]:
        outsider = Outsider(self._place, self._address, Random(self._rng.random()))
        outsider.recorded = self._recorded
        return self._in_threads(itertools.repeat(outsider.replayed), self._connections // 10, until)

    def _middle(self, until: float) -> dict[str, int]:
        """Guests with good papers whose records are flipped, dropped, reordered, repeated."""
        guests = [
            TamperedGuest(Papers(self._place, self._word), self._address, Random(number))
            for number in range(THREADS)
        ]
        free = list(guests)

        def attempt() -> bool:
            with self._lock:
                guest = free.pop()
            try:
                return guest.attempt()[1]
            finally:
                with self._lock:
                    free.append(guest)

        try:
            return self._in_threads(itertools.repeat(attempt), self._connections // 10, until)
        finally:
            for guest in guests:
                guest.close()

    def _in_threads(
        self, attempts: Iterator[Callable[[], bool]], count: int, until: float
    ) -> dict[str, int]:
        """`count` attempts, spread over the phase; a slow machine may take twice its time."""
        begun = time.monotonic()
        pause_s = max(0.0, (until - begun) / max(1, count))
        told = {"tried": 0, "ended": 0}

        def work() -> None:
            while True:
                with self._lock:
                    number = told["tried"]
                    if number >= count or time.monotonic() > 2 * until - begun:
                        return
                    told["tried"] += 1
                    attempt = next(attempts)
                time.sleep(max(0.0, begun + number * pause_s - time.monotonic()))
                ended = True
                with contextlib.suppress(OSError, DecentralError):
                    ended = attempt()
                with self._lock:
                    told["ended"] += ended

        threads = [threading.Thread(target=work) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return told

    # ---------------------------------------------------------------------------- the others

    def _recorded_join(self, fleet: Fleet, peers: list[PeerProcess]) -> PeerProcess:
        """The last peer comes in through a proxy that keeps what it says, for a replay."""
        word = JoinWord.parse(peers[0].invite())
        between = Middleman(word.addresses[0])
        last = fleet.start(self._count - 1, "--join", word.at(between.address).text)
        fleet.complete([*peers, last], time.monotonic())
        self._recorded = [record for up, _ in between.recorded for record in up]
        return last

    def _newcomers(self, fleet: Fleet) -> dict[str, float | None]:
        """How long one that may come in takes for it: on a calm day, and among dribblers."""
        found: dict[str, float | None] = {"calm": self._join(fleet, self._count)}
        with Dribblers(self._address, self._connections):
            time.sleep(1.0)
            found["besieged"] = self._join(fleet, self._count + 1)
        return found

    def _join(self, fleet: Fleet, number: int) -> float | None:
        peer = fleet.start(number, "--join", self._word)
        try:
            begun = float(peer.wait_for("listening", timeout_s=JOIN_S)["seen_at"])
            return round(float(peer.wait_for("joined", timeout_s=JOIN_S)["seen_at"]) - begun, 3)
        except DecentralError:
            return None


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def wire_limit_s() -> float:
    """How long a stranger's connection may live, and some time for a busy machine."""
    return 5.0 + 2.0
