"""Moving to a better link: nothing lost, nothing overtaken, whatever dies and when.

Two real link tables talk over pretended links; a seed decides what arrives next. Where a link dies,
what was on its way in it is lost, and each end hears of that when its turn comes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import pytest

from decentral.peer import packing
from decentral.peer.admission import Admitted
from decentral.peer.reach.ways import Way
from decentral.peer.runtime import moves as moves_module
from decentral.peer.runtime.link import Link
from decentral.peer.runtime.links import LinkTable
from decentral.peer.runtime.moves import MOVE, MOVED
from decentral.types import PeerId, peer_id, raw_id

LOW, HIGH = sorted(peer_id(bytes([n]) * 32) for n in (1, 2))
RELAYED = Way(kind="relayed", how="through x", address="192.0.2.1:1", carrier=True)
PUNCHED = Way(kind="punched", how="simultaneous open", address="192.0.2.2:1", carrier=True)
ADMITTED = Admitted(
    peer=LOW,
    name="n",
    role="train",
    run=cast(Any, None),
    addresses=(),
    fingerprint=b"",
    observed="",
)


@dataclass
class End:
    """A peer: its table, its endpoint, and what its user has seen."""

    me: PeerId
    other: PeerId
    net: Net
    table: LinkTable = field(init=False)
    inbox: dict[int, deque[Any]] = field(default_factory=dict)
    """By link, events that are on their way here, in order."""
    events: list[Any] = field(default_factory=list)
    dials: int = 0
    said: int = 0
    session: int = 0
    sent: dict[int, int] = field(default_factory=dict)
    """By message, the session in which it was said."""
    seen: list[tuple[str, int]] = field(default_factory=list)
    """up | down | moved | message, and its number."""
    downs: int = 0

    def __post_init__(self) -> None:
        self.table = LinkTable(self, self.me, self, self.later)  # type: ignore[arg-type]
        self.table.ways = self

    # ------------------------------------------------------------------ as its endpoint

    def dial(self, *where: Any, **how: Any) -> int:
        self.dials += 1
        return self.dials

    def send(self, link: int, payload: bytes, priority: int) -> None:
        self.net.carry(self, link, SimpleNamespace(type="message", link=link, data=payload))

    def close_link(self, link: int, says: str) -> None:
        self.net.cut(link)

    refuse = close_link

    def admit(self, link: int) -> None: ...

    def take_events(self) -> list[Any]:
        events, self.events = self.events, []
        return events

    def later(self, delay_s: float, what: Callable[[], None]) -> None:
        self.net.timers.append(what)

    # ------------------------------------------------------------------ as its user

    def admission(self, peer: PeerId, inbound: bool, exporter: bytes) -> Any:
        return SimpleNamespace(inbound=inbound, verdict=ADMITTED, start=list)

    def link_up(self, link: Link, admitted: Admitted) -> None:
        self.seen.append(("up", link.id))

    def link_down(self, peer: PeerId, closed: bool, error: Exception) -> None:
        self.seen.append(("down", 0))
        self.session += 1

    def link_moved(self, link: Link) -> None:
        self.seen.append(("moved", link.id))

    def better_link(self, link: Link) -> None: ...
    def way_failed(self, attempt: int, error: Exception) -> None: ...
    def relay_ended(self, token: bytes) -> None: ...
    def dial_failed(self, peer: PeerId | None, failures: list[Any]) -> None: ...

    def message(self, peer: PeerId, payload: bytes) -> None:
        self.seen.append(("message", packing.unpack(payload, max_bytes=100)))

    # ------------------------------------------------------------------ what it does

    def say(self) -> None:
        if self.table.send(self.other, packing.pack(self.said + 1)):
            self.said += 1
            self.sent[self.said] = self.session

    def up(self, link: int, way: Way) -> None:
        self.table.try_way(self.other, way, 1)
        self.inbox[link].append(
            SimpleNamespace(
                type="link-up",
                link=link,
                dial=self.dials,
                peer=raw_id(self.other),
                inbound=self.me == HIGH,
                exporter=b"",
                address=way.address,
                error=None,
            )
        )

    def pump(self) -> None:
        self.table.pump()

    @property
    def messages(self) -> list[int]:
        return [number for what, number in self.seen if what == "message"]


class Net:
    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.timers: list[Callable[[], None]] = []
        self.dead: set[int] = set()
        self.begun = False
        self.low, self.high = End(LOW, HIGH, self), End(HIGH, LOW, self)
        self.ends = (self.low, self.high)

    def link(self, number: int, way: Way) -> None:
        """A connection stands; each end hears of it when its turn comes."""
        for end in self.ends:
            end.inbox[number] = deque()
            end.up(number, way)

    def carry(self, sender: End, link: int, event: Any) -> None:
        if link not in self.dead:
            (self.high if sender is self.low else self.low).inbox[link].append(event)

    def cut(self, link: int) -> None:
        """Each end may still get some of what was on its way."""
        if link in self.dead:
            return
        self.dead.add(link)
        for end in self.ends:
            queue = end.inbox[link]
            for _ in range(self.rng.randrange(len(queue) + 1)):
                if queue[-1].type == "message":
                    queue.pop()
            queue.append(SimpleNamespace(type="link-down", link=link, dial=0, error=None, peer=b""))

    def step(self) -> bool:
        """Something arrives somewhere, or a timer fires."""
        waiting = [(end, link) for end in self.ends for link in end.inbox if end.inbox[link]]
        if not waiting:
            timers, self.timers = self.timers, []
            for what in timers:
                what()
            return bool(timers) or self.grow_quiet()
        if self.rng.random() < 0.2:
            self.grow_quiet()
        end, link = self.rng.choice(waiting)
        for _ in range(self.rng.choice([1, 1, 1, 5])):
            if end.inbox[link]:
                end.events.append(end.inbox[link].popleft())
        end.pump()
        return True

    def begin(self) -> None:
        """Nothing but words is under way between the two from now on."""
        self.begun = True
        self.low.table.moves.quiet(HIGH)

    def grow_quiet(self) -> bool:
        """Whether that led to anything."""
        for end in self.ends if self.begun else ():
            end.table.moves.quiet(end.other)
        return any(end.inbox[link] for end in self.ends for link in end.inbox)

    def settle(self) -> None:
        for _ in range(10_000):
            if not self.step():
                return
        raise AssertionError("it never ends")

    def chat(self, steps: int) -> None:
        for _ in range(steps):
            self.rng.choice(self.ends).say()
            if self.rng.random() < 0.6:
                self.step()

    # ------------------------------------------------------------------ what must hold

    def check(self) -> None:
        for sender, receiver in (self.ends, self.ends[::-1]):
            got = receiver.messages
            assert got == sorted(set(got)), "something was overtaken, or came twice"
            last, downs = 0, 0
            for what, number in [*receiver.seen, ("message", sender.said + 1)]:
                downs += what == "down"
                if what == "message":
                    lost = range(last + 1, number)
                    assert not lost or downs, (
                        f"{list(lost)} missing, and {receiver.me} sees nothing"
                    )
                    assert all(sender.sent[one] < sender.session for one in lost)
                    last, downs = number, 0
            up = False
            for what, _ in receiver.seen:
                assert up == (what != "up"), receiver.seen
                up = what != "down"

    def in_use(self) -> set[int | None]:
        links = [end.table.get(end.other) for end in self.ends]
        return {link.id if link is not None else None for link in links}


def standing(seed: int) -> Net:
    """A relayed link in use, and a punched one that stands by, or is about to."""
    net = Net(seed)
    net.link(1, RELAYED)
    net.settle()
    net.chat(net.rng.randrange(10))
    net.link(2, PUNCHED)
    return net


@pytest.mark.parametrize("seeds", [range(at, at + 50) for at in range(0, 300, 50)], ids=str)
def test_a_move_loses_nothing_and_overtakes_nothing(seeds: range) -> None:
    for seed in seeds:
        print("seed", seed)
        move(seed)


def move(seed: int) -> None:
    net = standing(seed)
    while net.low.table.moves.get(HIGH) is None:  # the other end may not have it yet
        net.chat(1)
        net.step()
    net.chat(net.rng.randrange(10))
    net.begin()
    net.chat(30)
    net.settle()
    net.check()
    for end in net.ends:
        assert len(end.messages) == (net.high if end is net.low else net.low).said
        assert [what for what, _ in end.seen if what != "message"] == ["up", "moved"]
    assert net.in_use() == {2} and net.dead == {1}
    assert not net.low.table.moves.get(HIGH) and not net.high.table.moves.get(LOW)


@pytest.mark.parametrize("which", [1, 2])
@pytest.mark.parametrize("moving", [True, False])
def test_a_link_that_dies_is_seen_wherever_something_is_missing(which: int, moving: bool) -> None:
    outcomes = set()
    for seed in range(400):
        print("seed", seed)
        net = standing(seed)
        begin_at, cut_at = net.rng.randrange(25), net.rng.randrange(40)
        for at in range(50):
            if at == begin_at and moving:
                net.begin()
            if at == cut_at:
                net.cut(which)
            net.chat(1)
        net.settle()
        net.check()
        assert len(net.in_use()) == 1, net.in_use()  # both ends use the same, or none
        outcomes |= net.in_use()
        for end in net.ends:
            end.say()
        net.settle()
        net.check()
    assert outcomes == ({2} if which == 1 else {1}) | ({None} if moving else set())


@pytest.mark.parametrize("seeds", [range(at, at + 50) for at in range(0, 200, 50)], ids=str)
def test_a_third_link_in_the_middle_of_a_move_harms_nothing(seeds: range) -> None:
    for seed in seeds:
        print("seed", seed)
        third(seed)


def third(seed: int) -> None:
    net = standing(seed)
    direct = Way(kind="direct", how="dialled", address="192.0.2.3:1")
    begin_at, third_at, cut_at = (net.rng.randrange(30) for _ in range(3))
    for at in range(40):
        if at == begin_at:
            net.begin()
        if at == third_at:
            net.link(3, direct)
        if at == cut_at and seed % 2:
            net.cut(net.rng.choice([one for one in (1, 2, 3) if one in net.low.inbox]))
        net.chat(1)
    net.settle()
    net.check()


def test_only_the_lower_id_begins() -> None:
    net = standing(0)
    net.settle()
    net.high.table.moves.quiet(LOW)
    net.settle()
    assert net.in_use() == {1}
    net.begin()
    net.begin()
    net.settle()
    assert net.in_use() == {2}
    net.check()


def test_what_comes_early_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moves_module, "MAX_EARLY_BYTES", 10)
    net = standing(0)
    net.settle()
    standby = net.high.table.moves.get(LOW)
    assert standby is not None
    for _ in range(30):
        net.low.send(2, b"x", 1)
    net.settle()
    assert net.dead == {2} and not standby.early
    assert net.in_use() == {1}


def test_words_about_moves_never_reach_the_user() -> None:
    net = standing(0)
    for end in net.ends:
        for payload in (MOVE, MOVED):
            end.send(1, payload, 1)
    net.settle()
    assert not [one for end in net.ends for one in end.messages if not isinstance(one, int)]


def test_a_better_link_is_used_at_once_where_the_old_one_has_just_died(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was being admitted when the old one went down: it must not stand by for that."""
    net = Net(0)
    net.link(1, RELAYED)
    net.settle()
    papers = SimpleNamespace(inbound=False, verdict=None, start=list)

    def receive(payload: bytes) -> list[bytes]:
        papers.verdict = ADMITTED
        return []

    papers.receive = receive
    low = net.low
    monkeypatch.setattr(low, "admission", lambda *_: papers)
    low.inbox[2] = deque()
    low.up(2, PUNCHED)
    net.settle()
    net.cut(1)
    while low.inbox[1]:
        low.events.append(low.inbox[1].popleft())
    low.pump()
    low.events.append(SimpleNamespace(type="message", link=2, dial=0, data=b""))
    low.pump()
    assert [what for what, _ in low.seen] == ["up", "down", "up"]
    link = low.table.get(HIGH)
    assert link is not None and link.id == 2 and low.table.moves.get(HIGH) is None
    for later in net.timers:  # the grace for a link that lost its twin ends, too
        later()
    assert low.table.get(HIGH) is link and low.seen[-1][0] == "up"
