"""A small run of real processes, attacked from outside and from inside while its rounds go on.

calm ─▶ outsiders ─▶ guests (invited, admitted) ─▶ a hostile member ─▶ calm
  └──────────── same members, same view ─────────┘
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import psutil

from decentral.bench.fleet import Fleet, until
from decentral.churn.hostile.insiders import Guest, attempt
from decentral.churn.hostile.middleman import Middleman, tampers
from decentral.churn.hostile.outsiders import Outsider, TamperedGuest
from decentral.churn.hostile.wire import Papers
from decentral.cli.processes import PeerProcess
from decentral.peer.joinword import JoinWord

INSIDER = ("decentral.churn.hostile.insider_peer",)
PEER_ARGS = ("--step-s", "0.02", "--sync-every", "4", "--state-kib", "64")
LONGEST_GAP_S = 10.0
"""I3: whatever an insider does, rounds go on once it is found out."""
GROWTH_KIB = 32 << 10
SPARE_FDS = 2
WARM_S = 3.0
QUIET_S = 7.0
"""Above the time that a stranger's connection may live."""
OUTSIDERS, DRIBBLERS, TAMPERERS, GUESTS = 8, 3, 6, 4
STOPS_S = 30.0
MARKS_OF_A_CRASH = ("Traceback", "Exception in callback", "Exception ignored", "terminate called")


def run(folder: Path, seconds: float = 30.0, seed: int = 1, *, peers: int = 3) -> dict[str, Any]:
    """Attack for `seconds` on real sockets."""
    notes: list[str] = []
    return {**Siege(folder, peers, seed, notes).run(seconds), "notes": notes}


class Siege:
    """One fleet of honest peers, and its besiegers' counts."""

    def __init__(self, folder: Path, peers: int, seed: int, notes: list[str]) -> None:
        self._folder, self._count, self._seed, self._notes = folder, peers, seed, notes
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._tried: Counter[str] = Counter()
        self._ended: Counter[str] = Counter()
        self._frames: Counter[str] = Counter()

    def run(self, seconds: float) -> dict[str, Any]:
        with Fleet(self._folder / "peers", *PEER_ARGS) as fleet, contextlib.ExitStack() as stack:
            honest = fleet.found(self._count - 1)
            flip = threading.Event()
            between = stack.enter_context(
                Middleman(JoinWord.parse(honest[0].invite()).addresses[0], _flips_when(flip))
            )
            honest.append(self._through(between, fleet, honest))
            self._recorded = [record for up, _ in between.recorded for record in up]
            words = [peer.invite() for peer in honest]
            time.sleep(WARM_S)
            before = {peer.name: _footprint(peer) for peer in honest}
            begun = time.monotonic()
            phases: dict[str, Any] = {}
            for name, attack in (("outsiders", self._outsiders), ("guests", self._guests)):
                with self._same_members(name, honest, phases):
                    attack(words, seconds / 3)
            flip.set()
            phases["member"] = self._member(fleet, words[0], honest, seconds / 3)
            ended = time.monotonic()
            time.sleep(QUIET_S)
            after = {peer.name: _footprint(peer) for peer in honest}
            gap_s = max(_longest_gap_s(peer, begun, ended) for peer in honest)
            self._judge(fleet, honest, gap_s, before, after)
            return {
                "seconds": round(ended - begun, 1),
                "phases": phases,
                "attempts": dict(sorted(self._tried.items())),
                "connections_ended": dict(sorted(self._ended.items())),
                "frames_and_messages_sent": dict(sorted(self._frames.items())),
                "rounds": min(peer.round for peer in honest),
                "longest_gap_s": round(gap_s, 2),
                "footprint": {
                    name: {"before": before[name], "after": after[name]} for name in before
                },
            }

    def _through(self, between: Middleman, fleet: Fleet, honest: list[PeerProcess]) -> PeerProcess:
        """A peer whose way in leads through a proxy: a real session to be recorded."""
        word = JoinWord.parse(honest[0].invite()).at(between.address).text
        last = fleet.start(self._count - 1, "--join", word)
        fleet.complete([*honest, last], time.monotonic(), timeout_s=60)
        return last

    # -------------------------------------------------------------- the besiegers

    def _outsiders(self, words: Sequence[str], seconds: float) -> None:
        crews: list[Callable[[Random], Callable[[], None]]] = []
        crews += [lambda rng: self._outsider(words, rng)] * OUTSIDERS
        crews += [lambda rng: self._dribbler(words, rng)] * DRIBBLERS
        with contextlib.ExitStack() as stack:
            crews += [lambda rng: self._tamperer(words, rng, stack)] * TAMPERERS
            self._all_at_once(crews, seconds)

    def _guests(self, words: Sequence[str], seconds: float) -> None:
        self._all_at_once([lambda rng: self._guest(words, rng)] * GUESTS, seconds)

    def _outsider(self, words: Sequence[str], rng: Random) -> Callable[[], None]:
        outsider = Outsider(self._folder, _address(rng.choice(words)), rng)
        outsider.recorded = self._recorded
        attempts = list(outsider.attempts().items())

        def once() -> None:
            name, function = rng.choice(attempts)
            self._count_attempt(name, function(), must_end=True)

        return once

    def _dribbler(self, words: Sequence[str], rng: Random) -> Callable[[], None]:
        outsider = Outsider(self._folder, _address(rng.choice(words)), rng)
        return lambda: self._count_attempt("slow dribble", outsider.dribble(), must_end=True)

    def _tamperer(
        self, words: Sequence[str], rng: Random, stack: contextlib.ExitStack
    ) -> Callable[[], None]:
        word = rng.choice(words)
        guest = TamperedGuest(Papers(self._folder, word), _address(word), rng)
        stack.callback(guest.close)

        def once() -> None:
            name, ended = guest.attempt()
            self._count_attempt(f"man in the middle: {name}", ended, must_end=True)

        return once

    def _guest(self, words: Sequence[str], rng: Random) -> Callable[[], None]:
        word = rng.choice(words)
        guest = Guest(Papers(self._folder, word), _address(word), rng)
        sessions = list(guest.sessions().items())

        def once() -> None:
            name, session = rng.choice(sessions)
            told = attempt(session)
            self._count_attempt(
                f"guest: {name}",
                told is None or told.ended,
                must_end=name.startswith("malformed"),
                frames=0 if told is None else told.sent,
            )

        return once

    def _count_attempt(self, name: str, ended: bool, *, must_end: bool, frames: int = 1) -> None:
        with self._lock:
            self._tried[name] += 1
            self._ended[name] += ended
            self._frames[name] += frames
            if must_end and not ended:
                self._notes.append(f"{name}: the peer put up with it")

    def _all_at_once(
        self, crews: Sequence[Callable[[Random], Callable[[], None]]], seconds: float
    ) -> None:
        """Each in a thread of its own, again and again until the time is over."""
        deadline = time.monotonic() + seconds
        self._seed += 1

        def loop(make: Callable[[Random], Callable[[], None]], seed: int) -> None:
            try:
                once = make(Random(seed))
                while time.monotonic() < deadline:
                    once()
            except Exception as error:
                with self._lock:
                    self._notes.append(f"a besieger ended: {type(error).__name__}: {error}")

        threads = [
            threading.Thread(target=loop, args=(make, 1000 * self._seed + number))
            for number, make in enumerate(crews)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _member(
        self, fleet: Fleet, word: str, honest: Sequence[PeerProcess], seconds: float
    ) -> dict[str, Any]:
        """One that trains and votes, replays, and talks nonsense; then it leaves as one should."""
        env = {"DECENTRAL_HOSTILE_SEED": str(self._seed), "OPENBLAS_NUM_THREADS": "1"}
        home = self._folder / "peers" / "insider"
        insider = PeerProcess(
            "insider", home, [*PEER_ARGS, "--join", word], program=INSIDER, env=env
        )
        fleet.all.append(insider)
        insider.wait_for(
            "round", timeout_s=30, where=lambda e: e["participants"] == len(honest) + 1
        )
        time.sleep(seconds)
        said = insider.last("hostile") or {}
        status = insider.stop(STOPS_S)
        if status != 0:
            self._notes.append(f"the insider ended with status {status}: {insider.last_words()}")
        for name in ("replayed", "malformed"):
            self._frames[f"member: {name}"] += said.get(name, 0)
        seen = honest[0].round
        until(
            lambda: all(peer.round > seen for peer in honest), timeout_s=STOPS_S,
            says="rounds go on without the insider",
        )  # fmt: skip
        return {name: said.get(name, 0) for name in ("replayed", "malformed")}

    # -------------------------------------------------------------- what must hold

    @contextlib.contextmanager
    def _same_members(
        self, phase: str, honest: Sequence[PeerProcess], phases: dict[str, Any]
    ) -> Iterator[None]:
        """Nobody of these may change who is in, or hold up a round for long."""
        begun = time.monotonic()
        yield
        now = time.monotonic()
        rounds = 0
        for peer in honest:
            views = [e for e in peer.events("view") if e["seen_at"] > begun]
            if views:
                self._notes.append(f"{phase}: {peer.name} has a new view: {views[0]['reason']}")
            events = [e for e in peer.events("round") if e["seen_at"] > begun]
            rounds = max(rounds, len(events))
            if any(event["participants"] != len(honest) for event in events):
                self._notes.append(f"{phase}: {peer.name} counted others than the members")
        gap_s = max(_longest_gap_s(peer, begun, now) for peer in honest)
        phases[phase] = {
            "seconds": round(now - begun, 1),
            "rounds": rounds,
            "gap_s": round(gap_s, 2),
        }

    def _judge(
        self,
        fleet: Fleet,
        honest: Sequence[PeerProcess],
        gap_s: float,
        before: dict[str, dict[str, int]],
        after: dict[str, dict[str, int]],
    ) -> None:
        self._notes += fleet.violations()
        if gap_s > LONGEST_GAP_S:
            self._notes.append(f"no round for {gap_s:.1f} s")
        for peer in honest:
            if peer.exit_status() is not None:
                self._notes.append(f"{peer.name} ended: {peer.last_words()}")
            for mark in MARKS_OF_A_CRASH:
                if mark in peer.stderr():
                    self._notes.append(f"{peer.name} printed {mark!r}: {peer.last_words()}")
            was, now = before[peer.name], after[peer.name]
            if now["rss_kib"] - was["rss_kib"] > GROWTH_KIB:
                self._notes.append(f"{peer.name} grew from {was} to {now}")
            if now["fds"] > was["fds"] + SPARE_FDS or now["threads"] > was["threads"]:
                self._notes.append(f"{peer.name} holds more than before: {was}, {now}")


def _address(word: str) -> str:
    return JoinWord.parse(word).addresses[0]


def _flips_when(event: threading.Event) -> Callable[[list[bytes]], list[bytes]]:
    """Between two honest peers: one bit, once, when it is time."""
    flip = tampers(Random(1))["flip"]
    done: list[bool] = []

    def tamper(records: list[bytes]) -> list[bytes]:
        if event.is_set() and not done:
            done.append(True)
            return flip(records)
        return records[-1:]

    return tamper


def _footprint(peer: PeerProcess) -> dict[str, int]:
    process = psutil.Process(peer.process.pid)
    with process.oneshot():
        return {
            "fds": process.num_fds(),
            "threads": process.num_threads(),
            "rss_kib": process.memory_info().rss >> 10,
        }


def _longest_gap_s(peer: PeerProcess, begun: float, ended: float) -> float:
    """Between rounds, and from the last one to the end."""
    at = [float(e["seen_at"]) for e in peer.events("round") if begun < e["seen_at"] < ended]
    moments = [begun, *at, ended]
    return max(later - earlier for earlier, later in itertools.pairwise(moments))
