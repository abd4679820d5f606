"""How this peer's NAT behaves, in the terms of RFC 4787: learned from what other peers observe.

    probe A from the listening port          our address as A sees it; ours: no NAT at all
    probe B, another host                    the same address: independent mapping
    B, before that, and so a stranger,       gets in: independent filtering
      knocks at the address that A saw
    A knocks, from another port              gets in: filtering by address, else by port too

One observer gives an address, two classify (RFC 5780 needs a server with two addresses for this).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, get_args

from decentral.types import PeerId

Mapping: TypeAlias = Literal["unknown", "none", "independent", "dependent"]
Filtering: TypeAlias = Literal["unknown", "independent", "address", "port"]
MAPPINGS: tuple[Mapping, ...] = get_args(Mapping)
FILTERINGS: tuple[Filtering, ...] = get_args(Filtering)


@dataclass(frozen=True, slots=True, kw_only=True)
class Nat:
    """What is known so far."""

    mapping: Mapping = "unknown"
    """Does the outer address depend on whom we talk to? "none": it is our own."""
    filtering: Filtering = "unknown"
    """Whose packets come in at that address: anybody's, those of addresses that we have sent to,
    or of addresses and ports."""
    address: str = ""
    """Our listening port as an observer sees it, ``IP:PORT``; "": nobody has said."""

    remapped: bool = False
    """The outer port is another than ours. Most NATs that keep a mapping keep the port, too."""

    @property
    def symmetric(self) -> bool:
        """Where one observer alone cannot tell, this is the safer guess: what is done about
        symmetric NATs works with others, too."""
        return self.mapping == "dependent" or (self.mapping == "unknown" and self.remapped)

    @property
    def open(self) -> bool:
        """Strangers get in."""
        return self.filtering == "independent" and self.mapping in ("none", "independent")

    def called(self) -> str:
        """The name that people know it by."""
        if self.mapping == "unknown":
            return "unknown"
        if self.mapping == "none":
            return {"independent": "public", "unknown": "public?"}.get(self.filtering, "firewall")
        if self.mapping == "dependent":
            return "symmetric"
        names = {"independent": "full cone", "address": "address-restricted cone"}
        return names.get(self.filtering, "port-restricted cone")


@dataclass(frozen=True, slots=True)
class Observe:
    """Send a reflexive probe to this observer from the listening port."""

    peer: PeerId
    address: str


@dataclass(frozen=True, slots=True)
class AskKnock:
    """Have this observer try a connection to our outer address."""

    peer: PeerId
    address: str


Step: TypeAlias = Observe | AskKnock


class NatStudy:
    """One look at the NAT: asks for steps, takes what they gave, ends with a `Nat`.

    Observers are peers that we have dialled ourselves, by the addresses that answered; of one host
    only the first counts, because a second address is what tells mappings apart. A stranger is an
    observer whom our port has never contacted. It has to knock before it is probed, so where it is
    the only second observer the knocks hold up the second probe.
    """

    def __init__(
        self,
        own: Iterable[str],
        observers: Iterable[tuple[PeerId, str]],
        contacted: Collection[str] = (),
    ) -> None:
        """`own`: this machine's addresses, ``IP:PORT``; `contacted`: hosts that our port has
        contacted before."""
        self.nat = Nat()
        self._own = frozenset(own)
        by_host: dict[str, tuple[PeerId, str]] = {}
        for peer, address in observers:
            by_host.setdefault(host_of(address), (peer, address))
        known = [one for host, one in by_host.items() if host in contacted]
        fresh = [one for host, one in by_host.items() if host not in contacted]
        self._observers, self._fresh = known + fresh, frozenset(fresh)
        self._stranger: tuple[PeerId, str] | None = None
        self._probing = ""
        self._knocks: dict[PeerId, bool | None] = {}
        """By who was asked to knock: did it get in? None: it has not said yet."""

    @property
    def done(self) -> bool:
        return not self._probing and not self.knocking

    @property
    def knocking(self) -> bool:
        return None in self._knocks.values()

    @property
    def knocks_hold_up(self) -> bool:
        """The second probe waits for them."""
        return self.nat.mapping == "unknown" and self.can_classify and not self._probing

    @property
    def can_classify(self) -> bool:
        """There is a second observer, so the mapping will be known."""
        return len(self._observers) > 1

    def begin(self) -> list[Step]:
        return self._observe(self._observers[0]) if self._observers else []

    def _observe(self, observer: tuple[PeerId, str]) -> list[Step]:
        self._probing = observer[1]
        return [Observe(*observer)]

    def observed(self, observer: str, address: str) -> list[Step]:
        """What the observer at an address has answered ("": nothing)."""
        if observer != self._probing:
            return []
        self._probing = ""
        if not self.nat.address:
            return self._first(address)
        if address:
            same = address == self.nat.address
            self.nat = replace(self.nat, mapping="independent" if same else "dependent")
            return []
        self._observers = [one for one in self._observers if one[1] != observer]
        return self._second()

    def _first(self, address: str) -> list[Step]:
        if not address:
            self._observers.pop(0)
            return self.begin()
        self.nat = Nat(
            mapping="none" if address in self._own else "unknown",
            address=address,
            remapped=all(port_of(address) != port_of(one) for one in self._own),
        )
        first, *others = self._observers
        self._stranger = next((one for one in others if one in self._fresh), None)
        steps = self._ask(first[0])
        if self._stranger is not None:
            steps += self._ask(self._stranger[0])
        return steps + self._second()

    def _ask(self, peer: PeerId) -> list[Step]:
        self._knocks[peer] = None
        return [AskKnock(peer, self.nat.address)]

    def another(self, observer: tuple[PeerId, str]) -> list[Step]:
        """One more, of a host that our port has never contacted."""
        if self.done or host_of(observer[1]) in {host_of(at) for _, at in self._observers}:
            return []
        self._observers.append(observer)
        self._fresh |= {observer}
        if not self.nat.address or self._stranger is not None:
            return self._second() if self.nat.address else []
        self._stranger = observer
        return self._ask(observer[0]) + self._second()

    def _second(self) -> list[Step]:
        """The probe that tells the mapping, if its time has come."""
        if self.nat.mapping != "unknown" or self._probing:
            return []
        others = [one for one in self._observers[1:] if one != self._stranger]
        if not self.knocking and self._stranger in self._observers:
            others.append(self._stranger)
        return self._observe(others[0]) if others else []

    def knocked(self, peer: PeerId, got_in: bool) -> list[Step]:
        """What became of a knock."""
        if self._knocks.get(peer, False) is not None:
            return []
        self._knocks[peer] = got_in
        return self._conclude()

    def knocks_over(self) -> list[Step]:
        """Who has not got in by now will not."""
        self._knocks = {peer: bool(got_in) for peer, got_in in self._knocks.items()}
        return self._conclude()

    def _conclude(self) -> list[Step]:
        if self.knocking:
            return []
        known, *stranger = self._knocks.values()  # the order in which they were asked
        if any(stranger):
            self.nat = replace(self.nat, filtering="independent")
        elif not known:
            self.nat = replace(self.nat, filtering="port")
        elif stranger:  # else nobody else has tried: that a known one gets in says little
            self.nat = replace(self.nat, filtering="address")
        return self._second()


def port_of(address: str) -> str:
    return address.rpartition(":")[2]


def host_of(address: str) -> str:
    return address.rpartition(":")[0]
