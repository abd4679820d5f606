"""A fleet that is struck at one failpoint after the other, and is whole again after each."""

from __future__ import annotations

import argparse
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from decentral.bench.fleet import Fleet, until
from decentral.cli.processes import Launch, PeerProcess
from decentral.control_client import ask
from decentral.errors import DecentralError
from decentral.failpoints import ENVIRONMENT, REGISTRY

COORDINATOR = {"propose", "commit-tell"}
JOINER = {"handshake-dial", "hello", "enter", "joined", "fetch-manifest", "fetch-chunk"}
HOST = {"handshake-accept", "admission", "serve-chunk"}
LEAVER = {"leave"}
ENDED_BY_ERROR = {"inner-step", "vote-write", "vote-written", "joined", "adopt", "adopted", "leave"}
"""Whoever gets an error there can take part no longer: its process ends with a sentence."""

PATIENCE_S = 30.0
PASS_S = 20.0
GUESTS = 8
MOST_DEATHS = 3
"""In a row and soon after it came in: the next one would have to wait outside (quarantine)."""


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    kind: str


class Crew:
    """`peers` processes of one run, by number; a dead one is replaced by a new life of its home."""

    def __init__(self, args: argparse.Namespace, place: Path, seed: int, launch: Launch) -> None:
        self._args, self._chance = args, random.Random(seed)
        self._fleet = Fleet(
            place,
            *("--step-s", str(args.step_s), "--sync-every", str(args.sync_every)),
            *("--state-kib", str(args.state_kib), "--codec", args.codec),
            *("--on-quorum-loss", "pause"),
            launch=launch,
        )
        self._crew: dict[int, PeerProcess] = {}
        self._deaths: Counter[int] = Counter()  # since it last left cleanly
        self._printed: list[tuple[str, int, str]] = []  # (name, round, hash) of the dead

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._fleet.close()

    def found(self) -> None:
        self._crew = dict(enumerate(self._fleet.found(self._args.peers)))

    @property
    def worn(self) -> bool:
        """One more death of some peer would keep it outside for a while."""
        return max(self._deaths.values(), default=0) >= MOST_DEATHS

    def strike(self, case: Case) -> dict[str, Any]:
        """One case, until all are there again. `failed` says what did not happen."""
        row: dict[str, Any] = {"name": case.name, "kind": case.kind, "victim": None, "ended": None}
        try:
            self._strike(case, row)
        except DecentralError as error:
            row["failed"] = error.says
        return row

    def _strike(self, case: Case, row: dict[str, Any]) -> None:
        stall = f":{self._args.stall_s:g}" if case.kind == "stall" else ""
        arming = f"{case.name}={case.kind}{stall}"
        number = self._choose(case)
        victim = self._crew[number]
        row["victim"] = victim.name
        before = victim.stderr().count(_line(case))
        if case.name in JOINER:
            self._leave(number)
            victim = self._crew[number] = self._fleet.start(number, env={ENVIRONMENT: arming})
        elif case.name in HOST:
            self._arm(number, arming)
            self._bring_guests(number, lambda: victim.stderr().count(_line(case)) > before)
        else:
            self._arm(number, arming)
            if case.name in LEAVER:
                home = self._crew[number].home
                until(
                    lambda: case.name in ask(home, "failpoint")["armed"],
                    timeout_s=PASS_S, says=f"{case.name} is armed",
                )  # fmt: skip
                self._crew[number].send(signal.SIGTERM)
        until(
            lambda: victim.stderr().count(_line(case)) > before,
            timeout_s=PASS_S, says=f"{victim.name} passes {case.name}",
        )  # fmt: skip
        struck_at = time.monotonic()
        self._ends(case, victim, row)
        if row["ended"] is not None:
            self._buried(number)
        living = [peer for n, peer in self._crew.items() if n != number or row["ended"] is None]
        row["recovered_s"] = self._fleet.complete(living, struck_at, PATIENCE_S) - struck_at
        back_at = time.monotonic()
        if row["ended"] is not None:
            self._crew[number] = self._fleet.start(number)
            self._fleet.complete(list(self._crew.values()), back_at, PATIENCE_S)
        row["whole_s"] = time.monotonic() - struck_at

    # ------------------------------------------------------------------ parts of it

    def _choose(self, case: Case) -> int:
        """Who has died least often; who comes back after leaving is whoever has most often."""
        if case.name in COORDINATOR:
            return self._coordinator()
        numbers = list(self._crew)
        self._chance.shuffle(numbers)
        choose = max if case.name in JOINER else min
        return choose(numbers, key=lambda n: self._deaths[n])

    def _coordinator(self) -> int:
        names = {peer.peer_id: number for number, peer in self._crew.items()}

        def agreed() -> tuple[int] | None:
            said = {peer.status()["coordinator"] for peer in self._crew.values()}
            return (names[said.pop()],) if len(said) == 1 and said <= set(names) else None

        (number,) = until(agreed, timeout_s=PATIENCE_S, says="all name one coordinator")
        return int(number)

    def _arm(self, number: int, arming: str) -> None:
        ask(self._crew[number].home, "failpoint", arm=arming)

    def _bring_guests(self, host: int, passed: Callable[[], bool]) -> None:
        """Until one has made the host pass: none need ask every member for a chunk."""
        for _ in range(GUESTS):
            guest = max((n for n in self._crew if n != host), key=lambda n: self._deaths[n])
            self._leave(guest)
            came = self._crew[guest] = self._fleet.start(guest)
            until(
                partial(self._passed_or_in, passed, came),
                timeout_s=PATIENCE_S, says="a guest comes",
            )  # fmt: skip
            if passed():
                return

    def _passed_or_in(self, passed: Callable[[], bool], guest: PeerProcess) -> bool:
        said = guest.last("round")
        return passed() or bool(said and said["participants"] == len(self._crew))

    def _leave(self, number: int) -> None:
        """Cleanly, which is forgiven; the others go on."""
        left_at = time.monotonic()
        if self._crew[number].stop() != 0:
            raise DecentralError(f"peer-{number + 1} did not leave cleanly")
        self._deaths[number] = 0
        self._buried(number)
        others = [peer for n, peer in self._crew.items() if n != number]
        self._fleet.complete(others, left_at, PATIENCE_S)

    def _ends(self, case: Case, victim: PeerProcess, row: dict[str, Any]) -> None:
        """Whether the process ends is known beforehand; how, is to be seen."""
        leaves = case.name in LEAVER
        if not (
            case.kind == "crash" or leaves or (case.name in ENDED_BY_ERROR and case.kind == "error")
        ):
            return
        until(
            lambda: victim.exit_status() is not None,
            timeout_s=PATIENCE_S, says=f"the process of {victim.name} ends",
        )  # fmt: skip
        row["ended"] = victim.exit_status()
        expected = {"crash": -signal.SIGKILL, "error": 1, "stall": 0}[case.kind]
        if row["ended"] != expected:
            raise DecentralError(f"it ended with {row['ended']}, not {expected}")
        if case.kind == "error" and not victim.last_words().startswith("sleep_peer: "):
            raise DecentralError(f"its last words are no sentence: {victim.last_words()}")
        if case.kind == "crash":
            self._deaths[int(victim.name.rpartition("-")[2]) - 1] += 1

    # ------------------------------------------------------------------ I1 and I2

    def _buried(self, number: int) -> None:
        """What it had acknowledged must be somebody else's (I2)."""
        peer = self._crew[number]
        peer.close()
        for event in peer.events("round"):
            if event["participants"] >= self._args.peers - 1:  # not before the others had come
                self._printed.append((peer.name, event["round"], event["state_hash"]))

    def violations(self) -> list[str]:
        held: dict[tuple[int, str], set[str]] = {}
        for peer in self._fleet.all:
            for event in peer.events("round"):
                held.setdefault((event["round"], event["state_hash"]), set()).add(peer.name)
        lost = sorted(
            {
                f"round {number}, printed by {name}, is nobody else's"
                for name, number, state_hash in self._printed
                if held[number, state_hash] <= {name}
            }
        )
        return [*self._fleet.violations(), *lost]


def _line(case: Case) -> str:
    """What a peer says on stderr when it passes."""
    assert case.name in REGISTRY
    return f"failpoint {case.name}: {case.kind}\n"
