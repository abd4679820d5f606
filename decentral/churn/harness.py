"""A run of peers, a schedule of faults, and an audit of what came of it.

form ── calm: measured undisturbed ── faults, by the schedule ── heal ── whole again? ── leave
                                          └── audit every few seconds: the first violation ends it
"""

from __future__ import annotations

import heapq
import itertools
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decentral.bench.sleep_peer import PROGRAM
from decentral.churn import cgroup
from decentral.churn.audit import Auditor
from decentral.churn.crew import Crew, can_mount
from decentral.churn.faults import Injector, Later
from decentral.churn.places import Network, Pair, open_network, why_no_network
from decentral.churn.schedule import Planned, Schedule
from decentral.churn.timeline import Timeline
from decentral.cli.fork_server import ForkServer
from decentral.errors import ConfigError, DecentralError

GUESTS = 16
"""Places beyond the run's own, for newcomers."""
NEWCOMERS = ("join", "join-storm", "entry")
TICK_S = 0.02
SAMPLE_S = 1.0
AUDIT_S = 3.0
FORM_S = 90.0
WHOLE_S = 30.0
"""After the last fault all must be one view with one state within so long."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Of a churn run; validated by `check`."""

    folder: Path
    compute: str = "sleep"
    """"sleep": peers whose inner steps are naps; "recipe": `decentral peer --recipe …`."""
    recipe: str = "gpt"
    step_s: float = 0.1
    sync_every: int = 4
    state_kib: int = 64
    calm_s: float = 15.0
    network: str = "auto"
    """"auto": namespaces where they can be had; "loopback": never; "namespaces": or an error."""
    gap_limit_s: float = 10.0
    """While a healthy quorum is there, a commit within so long (I3)."""
    witness: int = 16
    stop_at_first: bool = True
    """End the run when the audit finds the first violation."""


def abilities(options: Options) -> set[str]:
    """What this system has of `Kind.needs`."""
    has = set()
    why = why_no_network()
    if options.network == "namespaces" and why:
        raise ConfigError(why, phase="churn")
    if options.network != "loopback" and not why:
        has.add("network")
    if can_mount(options.folder):
        has.add("tmpfs")
    if os.geteuid() == 0 and not cgroup.why_not():
        has.add("cgroup")
    return has


class Harness:
    """One run. `say` gets a line for people now and then."""

    def __init__(
        self, options: Options, schedule: Schedule, has: set[str], say: Callable[[str], None]
    ) -> None:
        self.options, self.schedule, self.say = options, schedule, say
        self.timeline = Timeline(options.folder)
        self.has = has
        self.skipped: dict[str, int] = {}
        self.begun: dict[str, int] = {}
        self._heap: list[tuple[float, int, Later]] = []
        self._order = itertools.count()
        self._due = {"sample": 0.0, "audit": 0.0}
        self.violations: list[str] = []
        self._over = False

    # ------------------------------------------------------------------ its parts

    def run(self) -> None:
        options, schedule = self.options, self.schedule
        places = max([schedule.peers - 1, *(s for f in schedule.faults for s in f.seats)]) + 1
        guests = GUESTS if any(fault.kind in NEWCOMERS for fault in schedule.faults) else 0
        network: Network | None = None
        server: ForkServer | None = None
        self.auditor = Auditor(options.folder)
        try:
            if options.compute == "sleep":
                server = ForkServer(PROGRAM[0])
            if "network" in self.has:
                network = open_network(places + guests, schedule.seed, self._note_cut)
                hosts = [(host.netns, host.address) for host in network.lab.hosts]
            else:
                hosts = [("", "127.0.0.1")] * (places + guests)
            self.crew = Crew(
                options.folder,
                self.timeline,
                hosts,
                program=PROGRAM if options.compute == "sleep" else ("decentral", "peer"),
                server=server,
                args=self._args(),
                disks="tmpfs" in self.has,
            )
            try:
                self._live(network)
            finally:
                self.crew.close()
        finally:
            if server is not None:
                server.close()
            if network is not None:
                network.lab.close()
            self.timeline.close()

    def _args(self) -> list[str]:
        options = self.options
        witness = ["--witness", str(options.witness)]
        if options.compute != "sleep":
            return ["--recipe", options.recipe, *witness]
        return [
            *witness,
            *("--step-s", str(options.step_s), "--sync-every", str(options.sync_every)),
            *("--state-kib", str(options.state_kib)),
        ]

    def _live(self, network: Network | None) -> None:
        self._form()
        calm = self._calm()
        self.timeline.note(
            "run",
            seed=self.schedule.seed,
            peers=self.schedule.peers,
            period_s=calm["period_s"],
            options={
                "outer_lr": 0.7,
                "outer_momentum": 0.6 if self.options.compute == "sleep" else None,
                "codec": "fp32",
                "compute": self.options.compute,
                "gap_limit_s": self.options.gap_limit_s,
                "seconds": self.schedule.seconds,
            },
        )
        self.timeline.note("calm", **calm)
        injector = Injector(self.crew, network, self.later, naps=self.options.compute == "sleep")
        began_at = time.monotonic()
        for fault in self.schedule.faults:
            self._at(began_at + fault.at_s, lambda fault=fault: self._strike(injector, fault))  # type: ignore[misc]
        self._until(began_at + self.schedule.seconds)
        self._finish_what_is_on()
        if network is not None:
            network.heal()
        self._make_whole()
        self.timeline.note("end")
        self._part()

    # ------------------------------------------------------------------ phases

    def _form(self) -> None:
        first = self.crew.sit(0, [])
        assert first.process is not None
        word = str(first.process.wait_for("listening", timeout_s=FORM_S)["join"])
        for number in range(1, self.schedule.peers):
            self.crew.sit(number, ["--join", word])
        self._wait_whole(FORM_S)
        self.say(f"{self.schedule.peers} peers train together")

    def _calm(self) -> dict[str, float]:
        """Undisturbed: what a round takes, and what all of them get done in a second."""
        began_at = time.monotonic()
        self._until(began_at + self.options.calm_s)
        first = self.crew.seats[0].process
        assert first is not None
        rounds = [e for e in first.events("round") if e["seen_at"] > began_at]
        if len(rounds) < 3:
            says = f"only {len(rounds)} rounds in {self.options.calm_s:.0f} undisturbed seconds"
            raise DecentralError(says, phase="calm")
        span_s = rounds[-1]["seen_at"] - rounds[0]["seen_at"]
        return {
            "period_s": round(statistics.median(e["seconds"] for e in rounds), 4),
            "samples_per_s": (rounds[-1]["tokens"] - rounds[0]["tokens"]) / span_s,
        }

    def _strike(self, injector: Injector, fault: Planned) -> None:
        if self._over:
            return
        begun = injector.begin(fault)
        if begun is None:
            self.skipped[fault.kind] = self.skipped.get(fault.kind, 0) + 1
            return
        self.begun[fault.kind] = self.begun.get(fault.kind, 0) + 1
        number = self.timeline.fault(
            fault.kind, [seat.name for seat in begun.hit], for_s=fault.for_s, **begun.detail
        )
        for seat in begun.hit:
            seat.faults.add(fault.kind)
        heal = begun.heal

        def over() -> None:
            if heal is not None:
                heal()
            for seat in begun.hit:
                seat.faults.discard(fault.kind)
            self.timeline.note("healed", id=number)

        self.later(fault.for_s, over)

    def _finish_what_is_on(self) -> None:
        """Faults that outlast the schedule end with it."""
        self._over = True
        while self._heap:
            _, _, action = heapq.heappop(self._heap)
            action()
            self.crew.tick()

    def _make_whole(self) -> None:
        began_at = time.monotonic()
        for seat in self.crew.seats.values():
            seat.not_before = 0.0
        try:
            self._wait_whole(WHOLE_S)
            self.say(f"whole again after {time.monotonic() - began_at:.1f} s")
        except DecentralError as error:
            self._found("I3", error.says)

    def _wait_whole(self, timeout_s: float) -> None:
        """Until a round that all contributed to is committed everywhere, with one hash."""
        began_at = time.monotonic()
        last = 0
        while time.monotonic() < began_at + timeout_s:
            self._turn()
            seats = [seat for seat in self.crew.seats.values() if seat.wanted]
            if any(seat not in seats for seat in self.crew.seats.values()):
                continue
            said = [seat.process.last("round") if seat.process else None for seat in seats]
            if said and all(e is not None and e["seen_at"] > began_at for e in said):
                rounds = [e for e in said if e is not None]
                last = min(e["participants"] for e in rounds)
                if last == len(seats) and len({e["lineage"] for e in rounds}) == 1:
                    return
        here = sum(seat.well for seat in self.crew.seats.values())
        missing = [
            seat.name for seat in self.crew.seats.values() if not self._since(seat, began_at)
        ]
        raise DecentralError(
            f"after {timeout_s:.0f} s {here} of {len(self.crew.seats)} peers are up and their last "
            f"common round had {last}; without a round since: {', '.join(missing) or 'nobody'}",
            phase="converge",
        )

    @staticmethod
    def _since(seat: Any, at: float) -> bool:
        last = seat.process.last("round") if seat.process else None
        return last is not None and last["seen_at"] > at

    def _part(self) -> None:
        """Everybody leaves cleanly, one after another."""
        for seat in list(self.crew.seats.values()):
            self.crew.dismiss(seat)
        deadline = time.monotonic() + 30
        while self.crew.seats and time.monotonic() < deadline:
            self._turn()
        for seat in self.crew.seats.values():
            self._found("I4", "it did not end within 30 s of its SIGTERM", seat.name)

    def _found(self, invariant: str, says: str, peer: str | None = None) -> None:
        """What only the driver can see; the audit reads it."""
        self.timeline.note("violation", invariant=invariant, says=says, peer=peer)
        self.violations.append(f"{invariant}: {says}")

    # ------------------------------------------------------------------ time

    def later(self, delay_s: float, action: Later) -> None:
        self._at(time.monotonic() + delay_s, action)

    def _at(self, at_s: float, action: Later) -> None:
        heapq.heappush(self._heap, (at_s, next(self._order), action))

    def _until(self, end_s: float) -> None:
        while time.monotonic() < end_s and not (self.violations and self.options.stop_at_first):
            self._turn()

    def _turn(self) -> None:
        """What is due now, and a short wait."""
        now = time.monotonic()
        while self._heap and self._heap[0][0] <= now:
            heapq.heappop(self._heap)[2]()
        self.crew.tick()
        if now >= self._due["sample"]:
            self._due["sample"] = now + SAMPLE_S
            self.crew.sample()
        if now >= self._due["audit"]:
            self._due["audit"] = now + AUDIT_S
            for violation in self.auditor.poll():
                self.violations.append(str(violation))
                self.say(f"VIOLATION {violation}")
        next_s = self._heap[0][0] - time.monotonic() if self._heap else TICK_S
        time.sleep(max(0.0, min(TICK_S, next_s)))

    def _note_cut(self, pairs: Sequence[Pair]) -> None:
        names = {seat.number: seat.name for seat in self.crew.seats.values()}
        self.timeline.note(
            "cut", pairs=[[names[a], names[b]] for a, b in pairs if a in names and b in names]
        )
