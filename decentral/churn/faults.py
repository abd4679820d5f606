"""What each kind of fault does to the crew, and how it is taken back.

One method per kind (`decentral.churn.kinds`); each says whom it hit and what is to be done when
the fault is over. Whoever cannot be hit as planned (dead already) is replaced by the next seat.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from decentral.churn import cgroup
from decentral.churn.crew import Crew, Seat
from decentral.churn.places import Effect, Network, between
from decentral.churn.schedule import Planned
from decentral.control_client import ask
from decentral.errors import DecentralError

Later = Callable[[], None]
T = TypeVar("T")
BEAT_S = 0.2
ROLLING_STEP_S = 0.8
ENTRY_DIES_S = 0.15
SLOW, QUICK = signal.SIGUSR1, signal.SIGUSR2


def _each(action: Callable[[T], None], ones: Sequence[T]) -> Later:
    def all_of_them() -> None:
        for one in ones:
            action(one)

    return all_of_them


@dataclass
class Begun:
    """A fault that has begun."""

    hit: list[Seat]
    detail: dict[str, Any]
    heal: Later | None = None
    """To be called when it is over; None: it is over at once, or heals by a restart."""


class Injector:
    """`later(delay_s, action)` has the harness do something after a while. `naps`: the peers are
    `decentral.bench.sleep_peer`, which can be told to be slow; others are held up."""

    def __init__(
        self,
        crew: Crew,
        network: Network | None,
        later: Callable[[float, Later], None],
        *,
        naps: bool,
    ) -> None:
        self.naps = naps
        self.crew, self.network, self.later = crew, network, later

    def begin(self, fault: Planned) -> Begun | None:
        """None: there is nobody whom it could hit now."""
        name = fault.kind.replace("-", "_")
        begun: Begun | None = getattr(self, f"_{name}")(fault)
        return begun

    # ------------------------------------------------------------------ whom

    def _targets(self, fault: Planned, *, running: bool = True) -> list[Seat]:
        """As many as planned, each the planned one or the next one that is well."""
        found: list[Seat] = []
        for wanted in fault.seats:
            for seat in self._from(wanted):
                if seat not in found and (seat.well or not running) and not seat.faults:
                    found.append(seat)
                    break
        return found

    def _from(self, first: int) -> Iterator[Seat]:
        numbers = sorted(self.crew.seats)
        yield from (self.crew.seats[n] for n in numbers if n >= first)
        yield from (self.crew.seats[n] for n in numbers if n < first)

    # ------------------------------------------------------------------ processes

    def _kill(self, fault: Planned) -> Begun | None:
        hit = self._targets(fault)
        for seat in hit:
            self.crew.kill(seat, fault.for_s)
        return Begun(hit, {}) if hit else None

    _restart_old = _kill

    def _stop(self, fault: Planned) -> Begun | None:
        hit = self._targets(fault)
        for seat in hit:
            self.crew.stop(seat)
        return Begun(hit, {}, _each(self.crew.let_go_on, hit)) if hit else None

    def _leave(self, fault: Planned) -> Begun | None:
        hit = self._targets(fault)
        for seat in hit:
            self.crew.leave(seat, fault.for_s)
        return Begun(hit, {}) if hit else None

    def _slow(self, fault: Planned) -> Begun | None:
        hit = self._targets(fault)[:1]
        if not hit:
            return None
        seat, process = hit[0], hit[0].process
        assert process is not None
        if not process.last("joined"):
            return None
        if self.naps:
            process.send(SLOW)
            return Begun(hit, {}, lambda: process.send(QUICK))
        over_at = time.monotonic() + fault.for_s

        def hold() -> None:
            if time.monotonic() < over_at and seat.process is process and seat.well:
                process.send(signal.SIGSTOP)
                self.later(0.9 * BEAT_S, lambda: process.send(signal.SIGCONT))
                self.later(BEAT_S, hold)

        hold()
        return Begun(hit, {})

    def _oom(self, fault: Planned) -> Begun | None:
        hit = self._targets(fault)[:1]
        if not hit:
            return None
        seat = hit[0]
        assert seat.process is not None
        process = seat.process
        seat.dying, seat.not_before = True, time.monotonic() + fault.for_s
        group = cgroup.starve(process.process.pid)

        def end() -> None:
            by_itself = process.exit_status() is None
            if by_itself:  # it never asked for a page
                process.send(signal.SIGKILL)
            cgroup.remove(group)

        self.later(fault.for_s + 2.0, end)
        return Begun(hit, {})

    def _coordinator(self, fault: Planned) -> Begun | None:
        seat = self._find_coordinator() or next(iter(self._targets(fault)), None)
        if seat is None or not seat.well:
            return None
        self.crew.kill(seat, fault.for_s)
        return Begun([seat], {})

    def _find_coordinator(self) -> Seat | None:
        for seat in self.crew.well():
            assert seat.process is not None
            if seat.process.last("joined") is None:
                continue
            try:
                found = ask(seat.process.home, "status")["coordinator"]
            except DecentralError:
                continue
            return self.crew.seat_of(str(found)) if found else None
        return None

    def _rolling(self, fault: Planned) -> Begun | None:
        hit = self.crew.well()

        def restart(seat: Seat) -> None:
            if seat.well:
                self.crew.leave(seat, 0.0)

        for number, seat in enumerate(hit):
            self.later(number * ROLLING_STEP_S, lambda seat=seat: restart(seat))  # type: ignore[misc]
        return Begun(hit, {"step_s": ROLLING_STEP_S})

    def _everybody(self, fault: Planned) -> Begun | None:
        hit = [seat for seat in self.crew.seats.values() if seat.up]
        for seat in hit:
            self.crew.kill(seat, fault.for_s)
        return Begun(hit, {})

    def _clock(self, fault: Planned) -> Begun | None:
        hit = self._targets(fault)[:1]
        if not hit or hit[0].process is None:
            return None
        try:
            ask(hit[0].process.home, "clock", step_s=fault.detail.get("step_s", 30.0))
        except DecentralError:
            return None  # it does not listen yet
        return Begun(hit, dict(fault.detail))

    def _disk_full(self, fault: Planned) -> Begun | None:
        hit = self._targets(fault)[:1]
        fillers = [self.crew.fill_disk(seat) for seat in hit]

        def empty() -> None:
            for path in fillers:
                path.unlink(missing_ok=True)

        return Begun(hit, {}, empty) if hit else None

    # ------------------------------------------------------------------ newcomers

    def _newcomer(self, for_s: float | None) -> Seat | None:
        number, words = self.crew.vacant(), self.crew.words()
        if number is None or not words:
            return None
        seat = self.crew.sit(number, words)
        if for_s is not None:
            self.later(for_s, lambda: self.crew.dismiss(seat))
        return seat

    def _join(self, fault: Planned) -> Begun | None:
        seat = self._newcomer(fault.for_s)
        return Begun([seat], {}) if seat is not None else None

    def _join_storm(self, fault: Planned) -> Begun | None:
        came = [self._newcomer(fault.for_s) for _ in fault.seats]
        hit = [seat for seat in came if seat is not None]
        return Begun(hit, {}) if hit else None

    def _entry(self, fault: Planned) -> Begun | None:
        """Whoever the newcomer comes in by dies while it does; its second word is another's."""
        seat = self._newcomer(fault.for_s + 5.0)
        if seat is None:
            return None
        word = seat.args[seat.args.index("--join") + 1]
        door = next(one for one in self.crew.well() if one.word == word)
        self.later(ENTRY_DIES_S, lambda: self._dies(door, fault.for_s))
        return Begun([seat, door], {})

    def _dies(self, seat: Seat, for_s: float) -> None:
        if seat.up:  # another fault may have come first
            self.crew.kill(seat, for_s)

    def _spawn(self, fault: Planned) -> Begun | None:
        if fault.seats[0] in self.crew.seats:
            return None
        words = self.crew.words()
        return Begun([self.crew.sit(fault.seats[0], words)], {}) if words else None

    def _remove(self, fault: Planned) -> Begun | None:
        seat = self.crew.seats.get(fault.seats[0])
        if seat is None or not seat.up:
            return None
        self.crew.dismiss(seat, signal.SIGKILL)
        return Begun([seat], {})

    # ------------------------------------------------------------------ the network

    def _effect(self, hit: list[Seat], *effects: Effect, **detail: Any) -> Begun | None:
        network = self.network
        assert network is not None, "the schedule has faults of the network, and there is none"
        tokens = [network.apply(one) for one in effects]
        return Begun(hit, detail, _each(network.undo, tokens))

    def _others(self, hit: list[Seat]) -> list[int]:
        assert self.network is not None
        away = {seat.number for seat in hit}
        return [host for host in self.network.hosts if host not in away]

    def _partition(self, fault: Planned) -> Begun | None:
        hit = self._targets(fault)
        if not hit:
            return None
        pairs = between((seat.number for seat in hit), self._others(hit))
        return self._effect(hit, Effect(pairs=pairs))

    def _one_way(self, fault: Planned) -> Begun | None:
        hit = self._targets(fault)
        if not hit:
            return None
        pairs = between((seat.number for seat in hit), self._others(hit), both=False)
        return self._effect(hit, Effect(pairs=pairs))

    def _non_transitive(self, fault: Planned) -> Begun | None:
        hit = self._targets(fault)
        if len(hit) < 2:
            return None
        return self._effect(hit, Effect(pairs=between([hit[0].number], [hit[1].number])))

    def _link_cut(self, fault: Planned) -> Begun | None:
        hit = self._targets(fault)[:1]
        if not hit:
            return None
        return self._effect(hit, Effect(pairs=between([hit[0].number], self._others(hit))))

    def _half_open(self, fault: Planned) -> Begun | None:
        """The others never hear that the process has ended."""
        begun = self._link_cut(fault)
        if begun is not None:
            self.crew.kill(begun.hit[0], fault.for_s + 0.5)
        return begun

    def _line(self, fault: Planned, **what: Any) -> Begun | None:
        hit = self._targets(fault)[:1]
        if not hit:
            return None
        return self._effect(hit, Effect(host=hit[0].number, **what), **what)

    def _loss_5(self, fault: Planned) -> Begun | None:
        return self._line(fault, loss=0.05)

    def _loss_20(self, fault: Planned) -> Begun | None:
        return self._line(fault, loss=0.2)

    def _bandwidth(self, fault: Planned) -> Begun | None:
        return self._line(fault, rate_share=0.01)

    def _delay(self, fault: Planned) -> Begun | None:
        return self._line(fault, delay_ms=fault.detail.get("delay_ms", 100.0))

    def _corrupt(self, fault: Planned) -> Begun | None:
        return self._line(fault, corruption=fault.detail.get("probability", 0.01))
