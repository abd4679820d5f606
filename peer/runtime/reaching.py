"""Does what the reach machine (`peer/reach/`) says: dials, probes, knocks, relays, and moves links.

core: Dial(peer) ─▶ links.dial ── fails, or takes too long ─▶ Reach ─▶ a way ─▶ links.try_way
this machine's addresses change ─▶ everybody is told; links that died with them are closed
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from random import Random
from typing import Any

from decentral import _native
from decentral.errors import DecentralError, ProtocolError
from decentral.peer.joinword import split_address
from decentral.peer.reach import actions
from decentral.peer.reach.reach import Reach
from decentral.peer.runtime.addresses import networks
from decentral.peer.runtime.events import EventLog
from decentral.peer.runtime.link import Link
from decentral.peer.runtime.links import LinkTable
from decentral.types import PeerId

LOOK_S = 0.05
"""Two looks at the bulk data that a link has carried tell whether it rests."""
SETTLE_S = 1.0
"""A better link is used once both ends surely have it."""
WATCH_S = 2.0
DEAF_S = 1.5
"""After an address of ours has gone, a link on which nothing is heard for so long went with it."""
LISTEN_S = 0.5
SILENT_S, CUT_OFF_S = 1.6, 2.5
"""Both ends of a link say something each second: where nobody of several is heard for so long, our
own network has changed, and all links are better made anew."""
MAX_SAID = 256
PROBE_S = 1.5
KNOCK_S = 1.5
OFFER_S = 12.0


class Reaching:
    """Lives on the loop's thread."""

    def __init__(
        self,
        endpoint: _native.Endpoint,
        links: LinkTable,
        events: EventLog,
        loop: asyncio.AbstractEventLoop,
        reach: Reach,
        *,
        addresses: Callable[[], tuple[str, ...]],
        busy: Callable[[], bool],
        moved: Callable[[], None],
    ) -> None:
        """`addresses()`: where this machine can be dialled now; `busy()`: a collective is under
        way; `moved()`: what others should dial has changed."""
        self.reach = reach
        self._endpoint, self._links, self._events, self._loop = endpoint, links, events, loop
        self._addresses, self._busy, self._moved = addresses, busy, moved
        self._timer: asyncio.TimerHandle | None = None
        self._looking: dict[PeerId, tuple[float, int]] = {}
        """Better links that stand by: since when, and the bytes that the old one had carried."""
        self._failed: dict[PeerId, tuple[tuple[str, str], ...]] = {}
        """What has been said of peers that no way leads to."""
        self._wanted: dict[PeerId, float] = {}
        """Since when a link to it is wanted and not there."""
        self._took: dict[int, float] = {}
        """By link: how long it took from then on, in seconds."""
        self._carried: dict[int, tuple[float, int, int]] = {}
        self._rates: dict[int, tuple[float, float]] = {}
        """By link: Mbit/s sent and received in the last `WATCH_S`."""
        self.mapping_says = ""
        """What has become of asking the router for a port."""
        self._closed = False
        links.ways = self
        self.own_addresses = addresses()
        """Of this machine."""
        self.feed(actions.Moved(self.own_addresses, networks()))
        self._heard: dict[int, tuple[int, float]] = {}
        """By link: bytes received, and when that number has changed last."""
        self._doubted: set[int] = set()
        self._listened_at = loop.time()
        links.silent = self._silent
        loop.call_later(WATCH_S, self._watch)
        loop.call_later(LISTEN_S, self._listen)

    # ------------------------------------------------------------------------ the machine

    def feed(self, event: actions.Event) -> None:
        if not self._closed:
            self._execute(self.reach.handle(event, self._loop.time(), time.time()))
            self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self.reach.next_timer()
        if due is not None:
            delay_s = max(0.0, due - self._loop.time())
            self._timer = self._loop.call_later(delay_s, self.feed, actions.Tick())

    def _execute(self, todo: list[actions.Action]) -> None:
        for action in todo:
            match action:
                case actions.Say(peer, payload):
                    self._links.send(peer, payload)
                case actions.Connect(peer, way, attempt):
                    self._events.record(
                        "reach", peer=peer, tries=way.kind, how=way.how, address=way.address
                    )
                    self._links.try_way(peer, way, attempt)
                case actions.Probe(observer):
                    self._probe(observer)
                case actions.KnockAt(asker, address):
                    self._knock(asker, address)
                case actions.OfferRelay(token, _):
                    self._endpoint.offer_relay(token, ttl_ms=int(OFFER_S * 1000))
                case actions.Unreached(peer, rungs):
                    self._say_failed(peer, rungs)
                case actions.NatLearned():
                    nat = self.reach.ctx.nat
                    self._events.record(
                        "nat", mapping=nat.mapping, filtering=nat.filtering, address=nat.address
                    )
                    self._moved()

    def _say_failed(self, peer: PeerId, rungs: tuple[tuple[str, str], ...]) -> None:
        """Once, until it is for other reasons, or has been linked."""
        before, self._failed[peer] = self._failed.pop(peer, None), rungs
        if len(self._failed) > MAX_SAID:
            del self._failed[next(iter(self._failed))]
        if before != rungs:
            how = "; ".join(f"{rung}: {why}" for rung, why in rungs)
            fields = {"peer": peer, "state": "failed", "class": "failed", "how": how}
            self._events.emit("link", **fields)

    def heard(self, peer: PeerId, payload: bytes) -> None:
        try:
            self.feed(actions.Heard(peer, payload))
        except ProtocolError as error:
            self._events.emit("fault", kind="protocol", peer=peer, says=error.says)
            self._links.refuse(peer, error.says)

    # ------------------------------------------------------------------------ links

    def want(self, peer: PeerId, addresses: Iterable[str]) -> None:
        """Get a link to it: by these addresses, or by any other way."""
        addresses = tuple(addresses)
        if self._links.get(peer) is None:
            self._wanted.setdefault(peer, self._loop.time())
        self._links.dial(peer, addresses)
        self.feed(actions.Want(peer, addresses))

    def link_up(self, link: Link) -> None:
        self._failed.pop(link.peer, None)
        since = self._wanted.pop(link.peer, None)
        if since is not None:
            self._took[link.id] = round(self._loop.time() - since, 4)
        self.feed(actions.LinkUp(link.peer, link.way, link.dialled, link.remote))
        self._events.emit("link", peer=link.peer, name=link.name, state="up", **self.about(link))

    def link_moved(self, link: Link) -> None:
        self.link_up(link)

    def way_failed(self, attempt: int, error: DecentralError) -> None:
        self.feed(actions.WayFailed(attempt, error.says))

    def better_link(self, link: Link) -> None:
        """It stands by until nothing is under way on the old one."""
        if not self._looking:
            self._loop.call_later(LOOK_S, self._look)
        self._looking[link.peer] = (self._loop.time(), -1)

    def _look(self) -> None:
        if self._closed:
            return
        moves = self._links.moves
        for peer, (since, carried) in list(self._looking.items()):
            if not moves.pending(peer):
                del self._looking[peer]
                continue
            stats = self._endpoint.stats(moves.old(peer))
            now_carried = stats.bulk_bytes_sent + stats.bulk_bytes_received
            self._looking[peer] = (since, now_carried)
            settled = self._loop.time() >= since + SETTLE_S
            if settled and now_carried == carried and not self._busy():
                moves.quiet(peer)
        if self._looking:
            self._loop.call_later(LOOK_S, self._look)

    def relay_ended(self, token: bytes) -> None:
        self.feed(actions.RelayEnded(token))

    # ------------------------------------------------------------------------ probes

    def _probe(self, observer: str) -> None:
        def then(event: _native.Event) -> None:
            address = event.address if event.type == "reflexive" else ""
            self.feed(actions.Observed(observer, address))

        host, port = split_address(observer)
        number = self._endpoint.reflexive(
            host, port, local_port=self._links.listening_port, timeout_ms=int(PROBE_S * 1000)
        )
        self._links.asked(number, then)

    def _knock(self, asker: PeerId, address: str) -> None:
        def then(event: _native.Event) -> None:
            self.feed(actions.KnockDone(asker, address, event.type == "knocked"))

        host, port = split_address(address)
        number = self._endpoint.knock(host, port, timeout_ms=int(KNOCK_S * 1000))
        self._links.asked(number, then)

    # ------------------------------------------------------------------------ other networks

    def mapped_at(self, address: str, says: str) -> None:
        """A router maps this outer address to our port; "": none does, any more."""
        self.mapping_says = says
        self.feed(actions.Mapped(address))

    def _watch(self) -> None:
        """Interfaces come and go: a cable, another Wi-Fi, a sleep."""
        if self._closed:
            return
        self._measure()
        found = self._addresses()
        if found != self.own_addresses:
            gone = set(self.own_addresses) - set(found)
            self.own_addresses = found
            self.feed(actions.Moved(found, networks()))
            self._moved()
            if gone:
                self._find_deaf()
        self._loop.call_later(WATCH_S, self._watch)

    def _measure(self) -> None:
        now, before, self._carried, self._rates = self._loop.time(), self._carried, {}, {}
        alive = {link.id for link in self._links.all()}
        self._took = {number: took_s for number, took_s in self._took.items() if number in alive}
        for link in self._links.all():
            stats = self._endpoint.stats(link.id)
            sent = stats.control_bytes_sent + stats.bulk_bytes_sent
            received = stats.control_bytes_received + stats.bulk_bytes_received
            self._carried[link.id] = (now, sent, received)
            if link.id in before:
                since, sent_then, received_then = before[link.id]
                per_mbit = 125_000 * max(now - since, 1e-3)
                rates = (sent - sent_then) / per_mbit, (received - received_then) / per_mbit
                self._rates[link.id] = rates

    def rates(self, link: Link) -> tuple[float | None, float | None]:
        """Mbit/s (sent, received) lately; None: it is too young."""
        sent, received = self._rates.get(link.id, (None, None))
        return (
            None if sent is None else round(sent, 3),
            None if received is None else round(received, 3),
        )

    def _listen(self) -> None:
        if self._closed:
            return
        links, now, before = self._links.all(), self._loop.time(), self._heard
        slept = now > self._listened_at + 2 * LISTEN_S  # then we have not listened
        self._listened_at, self._heard = now, {}
        for link in links:
            heard, since = before.get(link.id, (-1, now))
            total = self._heard_bytes(link)
            self._heard[link.id] = (total, now if slept or total != heard else since)
        deaf = [link for link in links if now >= self._heard[link.id][1] + CUT_OFF_S]
        if len(deaf) == len(links) > 1:
            for link in deaf:
                self._links.close(link.peer, "nothing is heard from anybody: another network?")
        for link in deaf:
            if link.id not in self._doubted:
                self.feed(actions.Doubt(link.peer))
        self._doubted = {link.id for link in deaf}
        self._loop.call_later(LISTEN_S, self._listen)

    def _silent(self, link: Link) -> bool:
        heard, since = self._heard.get(link.id, (0, self._loop.time()))
        # A loop that is late has not looked for a while: what counts is whether there is more now.
        late = self._loop.time() > since + SILENT_S
        return late and heard == self._heard_bytes(link)

    def _find_deaf(self) -> None:
        before: Mapping[int, int] = {link.id: self._heard_bytes(link) for link in self._links.all()}
        for number in before:
            self._endpoint.probe(number, 0)
        self._loop.call_later(DEAF_S, self._close_deaf, before)

    def _heard_bytes(self, link: Link) -> int:
        stats = self._endpoint.stats(link.id)
        return int(stats.control_bytes_received + stats.bulk_bytes_received)

    def _close_deaf(self, before: Mapping[int, int]) -> None:
        for link in self._links.all():
            if before.get(link.id) == self._heard_bytes(link):
                self._links.close(link.peer, "this machine's address has changed")

    # ------------------------------------------------------------------------ for people

    def about(self, link: Link) -> dict[str, Any]:
        """A link's class, how it came about and through whom, as the event log says it."""
        kind = link.way.kind
        neighbour = self.reach.ctx.neighbours.get(link.peer)
        card = neighbour.card if neighbour is not None else None
        if link.dialled and card is not None and link.dialled == card.mapped:
            kind = "mapped"
        return {
            "class": kind,
            "how": link.way.how,
            "relay": link.way.relay or None,
            "seconds": self._took.get(link.id),
        }

    def report(self) -> dict[str, Any]:
        """What `decentral status` and `decentral doctor` show."""
        nat = self.reach.ctx.nat
        return {
            "mapping": nat.mapping,
            "filtering": nat.filtering,
            "called": nat.called(),
            "address": nat.address,
            "mapped": self.reach.ctx.mapped,
            "addresses": list(self.own_addresses),
            "relays": self.reach.ctx.volunteers,
        }

    def close(self) -> None:
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()


def make_reach(me: PeerId, relays: str) -> Reach:
    return Reach(me, Random(), relays=relays)
