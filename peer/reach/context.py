"""What all parts of the reach machine share: time, neighbours, what is known of ourselves."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from random import Random

from decentral.peer.joinword import MAX_ADDRESSES
from decentral.peer.reach import talk
from decentral.peer.reach.actions import Action, Connect, Say
from decentral.peer.reach.nat import Nat
from decentral.peer.reach.ways import FEW, Kind, Punch, Way
from decentral.types import PeerId

PUNCH_S = 3.0
"""A punch that has not met the other end's by then will not."""
BIRTHDAYS_AT_ONCE = 4
PRIVATE = tuple(
    ip_network(net)
    for net in (
        *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16"),
        *("fc00::/7", "fe80::/10"),
    )
)


@dataclass(slots=True)
class Neighbour:
    """A linked peer."""

    way: Way
    dialled: str
    """Where it answered when we dialled it; "": it came to us, or by another way."""
    remote: str = ""
    """The address at the connection's other end."""
    card: talk.Card | None = None
    skew_s: float | None = None
    """How far its clock is ahead of ours, give or take the delay."""
    passes: int = 0
    """Signals that it had us carry since `passes_from`."""
    passes_from: float = 0.0
    knocks: int = 0
    """Those under way for it."""


class Context:
    def __init__(self, me: PeerId, rng: Random, relays: str) -> None:
        self.me, self.rng, self._relays = me, rng, relays
        self.now = self.clock_s = 0.0
        self.out: list[Action] = []
        self.neighbours: dict[PeerId, Neighbour] = {}
        self.nat = Nat()
        self.mapped = ""
        """Outer address of a port that the router maps to ours."""
        self.let_in = False
        """A stranger has got in."""
        self.addresses: tuple[str, ...] = ()
        self.networks: tuple[str, ...] = ()
        self._attempts = 0
        self._births: list[float] = []
        """When birthdays began."""

    # ------------------------------------------------------------------------ about us

    @property
    def volunteers(self) -> bool:
        """Whether this peer relays for others."""
        if self._relays != "auto":
            return self._relays == "on"
        return self.nat.open or bool(self.mapped) or self.let_in

    def card(self) -> talk.Card:
        found = [self.mapped, *self._abroad()]
        if not self.nat.symmetric:
            # Strangers may get in there; nobody waits long for an answer.
            found.append(self.nat.address)
        addresses = tuple(dict.fromkeys(one for one in found if one))[:MAX_ADDRESSES]
        return talk.Card(addresses, self.mapped, self.nat, self.volunteers, self.clock_s)

    def _abroad(self) -> list[str]:
        """Our addresses that mean something elsewhere."""
        here = [one for one in self.addresses if not is_loopback(one)]
        return here or list(self.addresses)

    def only_here(self) -> bool:
        """Whether we can be dialled from this machine alone, as can whoever we dial on it."""
        return bool(self.addresses) and all(map(is_loopback, self.addresses))

    def near(self, address: str) -> bool:
        """Whether it is in a network that one of our interfaces is in."""
        try:
            host = ip_address(address.rpartition(":")[0].strip("[]"))
        except ValueError:
            return False
        return host.is_loopback or any(host in ip_network(net) for net in self.networks)

    def hopeful(self, address: str) -> bool:
        """Whether a dial may get there: somebody else's private network is out of reach."""
        try:
            host = ip_address(address.rpartition(":")[0].strip("[]"))
        except ValueError:
            return True
        return self.near(address) or not any(host in net for net in PRIVATE)

    # ------------------------------------------------------------------------ to others

    def nonce(self) -> bytes:
        return self.rng.randbytes(talk.NONCE_BYTES)

    def say(self, peer: PeerId, message: talk.Message) -> None:
        self.out.append(Say(peer, talk.pack(message)))

    def signal(self, peer: PeerId, via: PeerId, message: talk.Signal) -> None:
        """To a peer, through a neighbour or over our own link."""
        if via == peer:
            self.say(peer, message)
        else:
            self.say(via, talk.Pass(peer, self.me, talk.pack(message)))

    def tell_all(self) -> None:
        for peer in sorted(self.neighbours):
            self.say(peer, self.card())

    def reachable_relays(self) -> tuple[tuple[PeerId, str], ...]:
        """Volunteers that we have dialled, and where."""
        found = [
            (peer, one.dialled)
            for peer, one in sorted(self.neighbours.items())
            if one.dialled and one.card is not None and one.card.relays
        ]
        return tuple(self.rng.sample(found, min(len(found), talk.MAX_RELAYS)))

    # ------------------------------------------------------------------------ ways

    def may_celebrate(self, part: Punch) -> bool:
        """Whether we can afford this punch now: birthdays take hundreds of sockets each."""
        if max(part.sockets, part.spray) <= FEW:
            return True
        self._births = [at for at in self._births if at > self.now - PUNCH_S]
        if len(self._births) >= BIRTHDAYS_AT_ONCE:
            return False
        self._births.append(self.now)
        return True

    def connect(self, peer: PeerId, way: Way) -> int:
        """Try it; the number is the attempt's."""
        self._attempts += 1
        self.out.append(Connect(peer, way, self._attempts))
        return self._attempts


def is_loopback(address: str) -> bool:
    return address.startswith(("127.", "[::1]"))


def direct(card: talk.Card, address: str, how: str) -> Way:
    kind: Kind = "mapped" if address == card.mapped else "direct"
    return Way(kind=kind, how=how, address=address)


def punched(card: talk.Card, part: Punch) -> Way:
    how = "simultaneous open"
    if part.sockets > 1 or part.spray:
        how = f"birthday, {max(part.sockets, part.spray)} tries"
    return Way(
        kind="punched",
        how=how,
        address=card.nat.address,
        role="by-id",
        from_listening_port=part.from_listening_port,
        carrier=True,
        sockets=part.sockets,
        spray=part.spray,
        timeout_s=PUNCH_S,
    )


def relayed(relay: PeerId, name: str, address: str, token: bytes, side: int) -> Way:
    """`side`: 0 for who asked the relay, which is the TLS client."""
    return Way(
        kind="relayed",
        how=f"through {name}",
        address=address,
        role="server" if side else "client",
        carrier=True,
        relay=relay,
        relay_token=token,
        relay_side=side,
    )
