"""One identity, one process: what an older, a copied or a former one may not do, and what it leaves
behind for the next."""

from __future__ import annotations

from decentral.peer import messages as m
from decentral.peer.core import PeerCore
from decentral.peer.protocol import (
    Action,
    CoreConfig,
    Fenced,
    LinkDown,
    LinkUp,
    Received,
    StateHeld,
    Tick,
)
from decentral.simulator.world import peer_id

ME, OTHER = peer_id(0), peer_id(1)
CONFIG = CoreConfig(run=bytes(32), fingerprint=b"f")


def member() -> PeerCore:
    core = PeerCore(CONFIG, ME, "me", "h:1", b"b" * 16, None, 1)
    core.start(0.0, found=True)
    core.handle(StateHeld(0, bytes(32)), 0.1)
    core.handle(LinkUp(OTHER, "x", "h:2"), 1.0)
    return core


def hello(boot_seq: int, boot: bytes) -> Received:
    greeting = m.Hello(
        bytes(32), b"f", boot * 16, boot_seq, "x", "h:2", False, "f" * 16, 0, 0, 0, ()
    )
    return Received(OTHER, m.pack(greeting))


def refusals(actions: list[Action]) -> list[m.Refuse]:
    sent = [m.unpack(one.payload) for one in actions if type(one).__name__ == "Send"]
    return [one for one in sent if isinstance(one, m.Refuse)]


def test_an_older_process_is_told_that_it_is_fenced() -> None:
    core = member()
    assert not refusals(core.handle(hello(3, b"n"), 1.1))
    (refused,) = refusals(core.handle(hello(2, b"o"), 1.2))
    assert refused.fences == b"o" * 16


def test_of_two_copies_of_a_home_the_one_met_first_stays() -> None:
    core = member()
    assert not refusals(core.handle(hello(3, b"n"), 1.1))
    core.handle(LinkDown(OTHER, True, "closed"), 1.2)
    core.handle(LinkUp(OTHER, "x", "h:2"), 1.3)
    (refused,) = refusals(core.handle(hello(3, b"o"), 1.4))
    assert refused.fences == b"o" * 16
    core.handle(LinkUp(OTHER, "x", "h:2"), 1.5)
    assert not refusals(core.handle(hello(3, b"n"), 1.6))
    core.handle(LinkDown(OTHER, True, "closed"), 1.7)
    core.handle(LinkUp(OTHER, "x", "h:2"), 1.8)
    assert not refusals(core.handle(hello(4, b"p"), 1.9)), "a restart is no copy"


def test_the_fenced_says_nothing_more() -> None:
    core = member()
    core.handle(hello(3, b"n"), 1.1)
    twins = m.pack(m.Refuse("another process", b"of a twin"))
    assert not [a for a in core.handle(Received(OTHER, twins), 1.2) if isinstance(a, Fenced)]
    actions = core.handle(Received(OTHER, m.pack(m.Refuse("another process", core.ctx.boot))), 1.2)
    assert isinstance(actions[-1], Fenced) and "identity" in actions[-1].says
    assert core.fenced
    assert core.handle(Tick(), 9.0) == []
    assert core.handle(hello(4, b"q"), 9.1) == []


def test_a_refusal_that_is_no_fence_does_not_end_a_member() -> None:
    core = member()
    core.handle(hello(3, b"n"), 1.1)
    actions = core.handle(Received(OTHER, m.pack(m.Refuse("another recipe", b""))), 1.2)
    assert not [one for one in actions if isinstance(one, Fenced)]
    assert core.replica.member
