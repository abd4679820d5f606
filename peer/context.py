"""What the small machines of one peer share: its identity, its links, its outbox.

membership ─┐
views ──────┤
forks ──────┼──▶ Context.out ──▶ the list of actions that `PeerCore.handle` returns
rounds ─────┤
join ───────┘
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from decentral.peer.messages import Hello, pack
from decentral.peer.protocol import Action, CoreConfig, Fault, Send
from decentral.types import PeerId, short


@dataclass(slots=True)
class Peering:
    """One live link, from its LinkUp to its LinkDown."""

    since: float
    hello: Hello | None = None
    hello_at: float = 0.0
    """When it last said something new about where it is a member."""
    told_slot: int = -1
    """The other end knows, or has been sent, everything below this slot of our lineage."""


@dataclass(slots=True)
class Context:
    config: CoreConfig
    me: PeerId
    name: str
    address: str
    boot: bytes
    rng: Random
    boot_seq: int = 1
    """How often this identity has started; a later process outranks an earlier one."""
    blank: bool = False
    """Started with nothing on disk: it cannot know how often it started before."""
    now: float = 0.0
    out: list[Action] = field(default_factory=list)
    links: dict[PeerId, Peering] = field(default_factory=dict)
    inside: dict[str, dict[PeerId, None]] = field(default_factory=dict)
    """Per lineage: the linked peers that say they are its members."""
    names: dict[PeerId, str] = field(default_factory=dict)
    loopback: deque[Any] = field(default_factory=deque)
    """Messages to oneself: handled before `handle` returns, like any other."""
    standings: int = 0
    """Grows whenever who is reachable may have changed."""
    acting: bool = False
    """We do the coordinator's work."""
    dirty: bool = True
    """Something changed that the coordinator's duties may depend on."""

    def changed(self) -> None:
        """Links, opinions or the log moved: look again at who is there and what is due."""
        self.standings += 1
        self.dirty = True

    def greeted(self, peer: PeerId, hello: Hello) -> None:
        """The other end of a link says how it stands now."""
        peering = self.links[peer]
        before, peering.hello = peering.hello, hello
        self._forget(peer, before)
        if before is None or (before.member, before.lineage) != (hello.member, hello.lineage):
            peering.hello_at = self.now
        if hello.member:
            self.inside.setdefault(hello.lineage, {})[peer] = None

    def unlinked(self, peer: PeerId) -> Peering | None:
        """The link is gone, and this was it; None if there was none."""
        peering = self.links.pop(peer, None)
        if peering is not None:
            self._forget(peer, peering.hello)
        return peering

    def _forget(self, peer: PeerId, hello: Hello | None) -> None:
        if hello is not None and hello.member:
            there = self.inside[hello.lineage]
            del there[peer]
            if not there:
                del self.inside[hello.lineage]

    def send(self, peer: PeerId, msg: object, *, urgent: bool = True) -> None:
        if peer == self.me:
            self.loopback.append(msg)
        elif peer in self.links:
            self.out.append(Send(peer, pack(msg), urgent))

    def send_all(self, peers: Iterable[PeerId], msg: object, *, urgent: bool = True) -> None:
        payload = b""
        for peer in peers:
            if peer == self.me:
                self.loopback.append(msg)
            elif peer in self.links:
                payload = payload or pack(msg)
                self.out.append(Send(peer, payload, urgent))

    def fault(self, kind: str, peer: PeerId | None, says: str) -> None:
        self.out.append(Fault(kind, peer, says))

    def called(self, peer: PeerId) -> str:
        """How a person knows this peer."""
        name = self.names.get(peer, "")
        return f"{name} ({short(peer)})" if name else short(peer)

    def jitter(self, seconds: float) -> float:
        """Spread, so that two peers that wait for the same thing do not act at the same time."""
        return seconds * (0.75 + 0.5 * self.rng.random())
