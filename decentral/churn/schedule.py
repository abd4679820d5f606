"""When what happens to whom: drawn from a seed before the run, kept as JSON, and replayed.

Peers are named by their seats. Which process sits there when the time comes, and whether it is
alive, only the run can say; a fault then takes the next seat that it can hit.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from decentral.churn.kinds import ALL, KINDS
from decentral.errors import ConfigError
from decentral.peer.files import disk_errors

BACK_S = 3.0
"""Who was hit counts as missing for so long after the fault is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """One fault."""

    at_s: float
    """Since the end of the undisturbed measurement."""
    kind: str
    seats: tuple[int, ...] = ()
    """Whom it shall hit, from 0."""
    for_s: float = 0.0
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    seed: int
    peers: int
    """Seats that are there from the beginning (`spawn` may fill more)."""
    seconds: float
    faults: tuple[Planned, ...]

    def save(self, path: Path) -> None:
        with disk_errors("write", path):
            path.write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def load(cls, path: Path) -> Schedule:
        """ConfigError says what in the file is wrong."""
        with disk_errors("read", path):
            text = path.read_text()
        try:
            return _parse(json.loads(text))
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"{path} is no schedule: {error}", phase="schedule") from error


def _parse(value: Mapping[str, Any]) -> Schedule:
    faults = [Planned(**{**one, "seats": tuple(one["seats"])}) for one in value["faults"]]
    for one in faults:
        if one.kind not in KINDS:
            raise ValueError(f"there is no fault {one.kind!r}; there are {', '.join(KINDS)}")
        if one.at_s < 0 or one.for_s < 0:
            raise ValueError(f"{one.kind} at {one.at_s} s for {one.for_s} s")
    return Schedule(
        seed=int(value["seed"]),
        peers=int(value["peers"]),
        seconds=float(value["seconds"]),
        faults=tuple(sorted(faults, key=lambda one: one.at_s)),
    )


def check_kinds(words: str) -> tuple[str, ...]:
    """``all``, or names with commas between them. ConfigError for what is none."""
    if words == "all":
        return ALL
    kinds = tuple(word for word in words.split(",") if word)
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        says = (
            f"{', '.join(unknown) or 'nothing'} is no kind of fault: there are {', '.join(KINDS)}"
        )
        raise ConfigError(says, phase="schedule")
    return kinds


def plan(
    *, seed: int, peers: int, seconds: float, rate: float, kinds: Sequence[str], even: bool = False
) -> Schedule:
    """Faults at random moments, `rate` a second on average (`even`: exactly so far apart)."""
    return _Planner(seed, peers, kinds).plan(seconds, rate, even)


class _Planner:
    """Deals kinds from a shuffled deck, so that a short run has the rare ones as well, and keeps
    so many seats untouched that a majority is left most of the time."""

    def __init__(self, seed: int, peers: int, kinds: Sequence[str]) -> None:
        self.seed, self.peers = seed, peers
        self.kinds = [kind for kind in kinds for _ in range(max(1, KINDS[kind].weight))]
        self.chance = random.Random(seed)
        self.deck: list[str] = []
        self.out_until = [0.0] * peers
        self.most_out = max(1, (peers - 1) // 2 - 1)

    def plan(self, seconds: float, rate: float, even: bool) -> Schedule:
        faults: list[Planned] = []
        at_s = 0.0
        while True:
            at_s += 1 / rate if even else self.chance.expovariate(rate)
            if at_s >= seconds:
                break
            fault = self._fault(round(at_s, 3))
            faults.append(fault)
            at_s += KINDS[fault.kind].alone_s
        return Schedule(seed=self.seed, peers=self.peers, seconds=seconds, faults=tuple(faults))

    def _fault(self, at_s: float) -> Planned:
        free = [seat for seat in range(self.peers) if self.out_until[seat] <= at_s]
        may_go = self.most_out - (self.peers - len(free))
        name = self._deal(may_go)
        kind = KINDS[name]
        for_s = round(self.chance.uniform(*kind.for_s), 3)
        count = self.chance.randint(*kind.seats)
        if kind.takes_out:
            count = max(1, min(count, may_go)) if kind.seats[0] < kind.seats[1] else count
        self.chance.shuffle(free)
        seats = tuple(free[:count]) or (self.chance.randrange(self.peers),)
        if kind.takes_out:
            for seat in seats:
                self.out_until[seat] = at_s + for_s + BACK_S
        return Planned(at_s=at_s, kind=name, seats=seats, for_s=for_s, detail=self._detail(name))

    def _deal(self, may_go: int) -> str:
        """The next card; one that takes out more peers than may go now waits for its turn."""
        for _ in range(2):
            for place, name in enumerate(self.deck):
                kind = KINDS[name]
                if not kind.takes_out or kind.alone_s or kind.seats[0] <= may_go:
                    return self.deck.pop(place)
            fresh = list(self.kinds)
            self.chance.shuffle(fresh)
            self.deck += fresh
        return self.deck.pop(0)

    def _detail(self, name: str) -> dict[str, Any]:
        if name == "delay":
            return {"delay_ms": round(self.chance.uniform(50, 200), 1)}
        if name == "clock":
            return {"step_s": round(self.chance.uniform(5, 60), 1)}
        if name == "corrupt":
            return {"probability": round(self.chance.uniform(0.001, 0.02), 4)}
        return {}


def like_pccl(*, seed: int, seconds: float, most: int = 10) -> Schedule:
    """PCCL's stress test: 2 to 10 peers, one spawned (60 %) or killed each 0.5 to 2 s."""
    chance = random.Random(seed)
    up = set(range(2))
    faults: list[Planned] = []
    at_s = 0.0
    while (at_s := at_s + chance.uniform(0.5, 2.0)) < seconds:
        vacant = sorted(set(range(most)) - up)
        if len(up) <= 2 or (vacant and chance.random() < 0.6):
            seat = chance.choice(vacant)
            up.add(seat)
            faults.append(Planned(at_s=round(at_s, 3), kind="spawn", seats=(seat,)))
        else:
            seat = chance.choice(sorted(up))
            up.remove(seat)
            faults.append(Planned(at_s=round(at_s, 3), kind="remove", seats=(seat,)))
    return Schedule(seed=seed, peers=2, seconds=seconds, faults=tuple(faults))


def turnover(*, seed: int, peers: int, count: int, every_s: float) -> Schedule:
    """`count` newcomers, one after another, each of whom stays for a few rounds."""
    chance = random.Random(seed)
    faults = [
        Planned(at_s=round((n + 1) * every_s, 3), kind="join", seats=(0,),
                for_s=round(chance.uniform(1.5, 3.0), 3))
        for n in range(count)
    ]  # fmt: skip
    return Schedule(seed=seed, peers=peers, seconds=(count + 1) * every_s + 5, faults=tuple(faults))
