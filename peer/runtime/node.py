"""The loop-side half of a peer: feeds the sans-IO core and does what it says.

       links ──▶ event ─┐                          ┌─▶ send, dial, probe, close     (links)
     trainer ──▶ event ─┼─▶ PeerCore.handle ──▶ actions ─▶ persist (fsync, in order) (home)
       timer ──▶ Tick  ─┘                          └─▶ orders for the trainer      (on_order)

Everything here runs on the loop's thread.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

from decentral import _native, failpoints
from decentral.errors import (
    ConfigError,
    DecentralError,
    DiskError,
    FingerprintError,
    IdentityError,
    StateError,
)
from decentral.peer import protocol
from decentral.peer.admission import Admission, Admitted
from decentral.peer.calls.messages import is_call
from decentral.peer.core import PeerCore
from decentral.peer.holding import Holding
from decentral.peer.home import Home
from decentral.peer.identity import Identity
from decentral.peer.orders import MeshFailed, Order
from decentral.peer.reach import actions as reach
from decentral.peer.reach.talk import is_reach
from decentral.peer.runtime.addresses import reachable, split
from decentral.peer.runtime.calling import Calling
from decentral.peer.runtime.card import MembershipCard
from decentral.peer.runtime.config import MeshConfig, parse_listen_address
from decentral.peer.runtime.events import EventLog
from decentral.peer.runtime.link import Link
from decentral.peer.runtime.links import LinkTable
from decentral.peer.runtime.reaching import Reaching, make_reach
from decentral.peer.runtime.reads import who_trains
from decentral.peer.runtime.revoking import REVOKED, Revoking
from decentral.peer.runtime.said import may_be_said
from decentral.peer.runtime.shown import show
from decentral.peer.runtime.transfer_router import TransferRouter
from decentral.peer.runtime.way_in import WayIn
from decentral.peer.transfer import KeyMaker, is_transfer
from decentral.types import CommittedState, PeerId, TensorSpec, View, short

#: New addresses reach the disk together after this: dozens may join at once, and each write waits.
BOOK_S = 0.5
#: Messages kept from members that were quicker than this peer's trainer.
MAX_EARLY = 1024
MAX_EARLY_BYTES = 8 << 20


class Node:
    """Drives one `PeerCore`. Created and used on the loop's thread only."""

    def __init__(
        self,
        config: MeshConfig,
        home: Home,
        identity: Identity,
        endpoint: _native.Endpoint,
        card: MembershipCard,
        events: EventLog,
        loop: asyncio.AbstractEventLoop,
        port: int,
    ) -> None:
        """`port`: the one that the endpoint listens on."""
        self.config, self.home, self.identity = config, home, identity
        self.card, self.events, self.loop = card, events, loop
        self.me: PeerId = identity.peer_id
        self.endpoint = endpoint
        self.links = LinkTable(endpoint, self.me, self, loop.call_later)
        self.revoking = Revoking(self)
        self._keys = KeyMaker(secrets.randbits(32))
        self.calling = Calling(self, self._keys)
        self.core: PeerCore | None = None
        self.view: View | None = None
        self.held: dict[str, CommittedState] = {}
        """By tag, what the trainer holds (a founder: what it gives away, too)."""
        self._takes: set[str] = set()
        """Tags that the trainer takes part in now."""
        self.transfers: TransferRouter | None = None
        self.tell: Callable[[Order], None] = lambda order: None
        """The trainer."""
        self._holdings: Mapping[str, Holding] = {}
        self._core_options: Mapping[str, Any] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._book_due: asyncio.TimerHandle | None = None
        self._started = False
        self._early: list[tuple[PeerId, bytes]] = []
        self._early_bytes = 0
        self.way_in = WayIn(self)
        self.ahead_s = 0.0
        """How far the core's clock is ahead of the loop's."""
        self.joined = False
        self._boot = secrets.token_bytes(8)
        self.closed = False
        self._reducing: set[str] = set()
        """Tags with an attempt under way."""
        host, _ = parse_listen_address(config.listen)
        self.links.listening_port = port
        self.reaching = Reaching(
            endpoint,
            self.links,
            events,
            loop,
            make_reach(self.me, config.relay),
            addresses=lambda: tuple(reachable(host, port)),
            busy=lambda: bool(self._reducing),
            moved=self._moved,
        )
        loop.add_reader(endpoint.event_fd, self._pump)

    # -------------------------------------------------------------------------------- start

    def start(
        self,
        *,
        holdings: Mapping[str, Holding],
        core_options: Mapping[str, Any],
        on_order: Callable[[Order], None],
        readable: Mapping[str, Sequence[TensorSpec]] = MappingProxyType({}),
    ) -> None:
        """Make the run (an initial state of every tag and no join word), go on with it, or join it.

        `core_options` are fields of the core's config that come from the training; `readable`:
        schemas of tags that are not held, to be read in.
        """
        self.tell = on_order
        self._started = True
        self._holdings, self._core_options = holdings, core_options
        self._takes = {tag for tag, one in holdings.items() if one.takes}
        schemas = {tag: one.schema for tag, one in holdings.items()}
        self.transfers = TransferRouter(
            self.endpoint, self.links, {**readable, **schemas}, self.loop, self.tell,
            self._fetch_failed, partial(who_trains, self), self._keys,
        )  # fmt: skip
        record = self.home.read_record()
        for tag, one in holdings.items():
            # Killed before its first checkpoint, a peer is back at round 0 whatever its votes say.
            state = one.state if record is not None else one.resumed
            if state is not None:
                self.held[tag] = state
                self.transfers[tag].publish(state)
        if self.config.join:
            self.way_in.join()
        if record is not None:
            self._make_core(record)
            self.way_in.redial()
        elif not self.config.join:
            if any(one.resumed is not None for one in holdings.values()):
                says = f"{self.home.path} has checkpoints but no vote record: join with a word"
                raise StateError(says, phase="start")
            self._found(core_options.get("tags", ("",)))
        elif self.links.all():  # somebody has dialled this peer before it began
            self._make_core(None)

    def _found(self, tags: Sequence[str]) -> None:
        founded = {tag: one.initial for tag, one in self._holdings.items() if one.initial}
        missing = sorted(set(tags) - set(founded))
        if missing:
            says = f"who founds a run brings the initial state of every tag: {missing} are missing"
            raise ConfigError(says, phase="start")
        self._make_core(None, found=True)
        for tag, state in founded.items():
            self.hold(tag, state)

    def _make_core(self, record: bytes | None, found: bool = False) -> None:
        run = self.card.run
        assert run is not None, "the run is known before its core"
        self.core = PeerCore(
            protocol.CoreConfig(
                run=run,
                on_quorum_loss=self.config.on_quorum_loss,
                quorum_timeout_s=self.config.quorum_timeout_s,
                full_mesh_up_to=self.config.full_mesh_up_to,
                **self._core_options,
            ),
            self.me,
            self.config.name,
            ",".join(self.card.addresses),
            self._boot,
            record,
            secrets.randbits(63),
        )
        self._execute(self.core.start(self._now(), found))
        for tag, one in self._holdings.items():
            state = self.held.get(tag)
            if state is not None:
                self.feed(protocol.StateHeld(state.round, state.root, tag))
            elif record is not None and one.takes:
                # Nothing: decided on before any rollback.
                self.feed(protocol.StateHeld(0, bytes(32), tag))
        for link in self.links.all():
            self.feed(protocol.LinkUp(link.peer, link.name, ",".join(link.addresses)))
        early, self._early = self._early, []
        for peer, payload in early:
            if self.links.get(peer) is not None:
                self.feed(protocol.Received(peer, payload))

    def _moved(self) -> None:
        """Others should dial us elsewhere from now on."""
        self.card.addresses = self.reaching.reach.ctx.card().addresses
        self.feed(protocol.Moved(",".join(self.card.addresses)))

    # ----------------------------------------------------------------------------- the core

    def feed(self, event: protocol.Event) -> None:
        """One event in, its actions done, the timer set."""
        if self.core is None or self.closed:
            return
        self._execute(self.core.handle(event, self._now()))
        if self.core is None:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self.core.next_timer()
        if due is not None:
            self._timer = self.loop.call_later(max(0.0, due - self._now()), self._tick)

    def _now(self) -> float:
        return self.loop.time() + self.ahead_s

    def _tick(self) -> None:
        self._timer = None
        self.feed(protocol.Tick())

    def _execute(self, actions: Sequence[protocol.Action]) -> None:
        try:
            self._execute_in_order(actions)
        except DiskError as error:
            # A vote that is not on disk must not be cast: this peer can take part no longer, and
            # nobody shall wait for it until its trainer has heard of that.
            for link in self.links.all():
                self.links.close(link.peer, error.says)
            self.core = None
            self.close()
            self.tell(MeshFailed(error))

    def _execute_in_order(self, actions: Sequence[protocol.Action]) -> None:
        for position, action in enumerate(actions):
            match action:
                case protocol.Send(peer, payload, urgent):
                    if may_be_said(self.links, peer, payload):
                        self.links.send(peer, payload, 0 if urgent else 1)
                case protocol.Probe(peer, seq, suspected):
                    link = self.links.get(peer)
                    if link is not None:
                        self.endpoint.probe(link.id, seq, suspected)
                case protocol.Dial(peer) if self.card.is_revoked(peer):
                    failed = protocol.DialFailed(peer, True, REVOKED)
                    self.loop.call_soon(self.feed, failed)
                case protocol.Dial(peer, addresses):
                    self.reaching.want(peer, split(addresses))
                case protocol.CloseLink(peer, says):
                    self.links.refuse(peer, says)
                case protocol.Persist(record):
                    # Of several in a row the last one says it all: one fsync.
                    following = actions[position + 1] if position + 1 < len(actions) else None
                    if not isinstance(following, protocol.Persist):
                        self.home.write_record(record)
                case protocol.FetchState():
                    assert self.transfers is not None
                    self.transfers[action.tag].fetch(action, self.held.get(action.tag))
                case _:
                    self._tell(action)

    def _tell(self, action: Any) -> None:
        """Orders for the trainer, and what a person gets to see of them."""
        if isinstance(action, protocol.Committed):
            self._committed(action.entry, action.view)
        show(self.events, self.me, action)
        match action:
            case protocol.StartReduce(tag=tag):
                self._reducing.add(tag)
            case protocol.AbortReduce(tag=tag):
                self._reducing.discard(tag)
            case protocol.Joined(view, round_, _, rounds):
                self._set_view(view)
                self.joined = True
                self.way_in.is_in()
                first = self.held.get(self.leading_tag)
                several = self._held_rounds(dict(rounds))
                for tag, number in rounds:
                    if number > 0:
                        self._give_up(tag)
                failpoints.passing("joined")
                self.events.emit(
                    "joined",
                    peer=self.me,
                    name=self.config.name,
                    epoch=view.epoch,
                    round=first.round if first else round_,
                    state_hash=first.root.hex() if first else "",
                    members=len(view.members),
                    **({"tags": several} if several else {}),
                )
            case protocol.Evicted():
                self.joined = False
                self.way_in.redial()
            case protocol.Fault(kind, peer, says):
                if kind == "refused" and not self.joined and peer in (None, self.me):
                    self.tell(MeshFailed(FingerprintError(says, phase="join")))
                    return
            case protocol.Fenced(says):
                self.way_in.is_in()
                self.tell(MeshFailed(IdentityError(says, peer=self.me, phase="link")))
                return
        self.tell(action)

    def _committed(self, entry: protocol.Entry, view: View) -> None:
        match entry:
            case protocol.ViewEntry():
                self._set_view(view)
            case protocol.RoundEntry(tag=tag):
                self._reducing.discard(tag)
                self._give_up(tag)

    def _set_view(self, view: View) -> None:
        self.view = view
        # For an audit: whose majority decides from here on.
        self.events.record(
            "members", lineage=view.lineage, epoch=view.epoch, peers=list(view.members)
        )
        lineage = int.from_bytes(bytes.fromhex(view.lineage)[:8], "little")
        run = int.from_bytes((self.card.run or bytes(8))[:8], "little")
        self.endpoint.set_stamp(run, lineage, view.epoch)

    # ------------------------------------------------------------------------------- state

    @property
    def leading_tag(self) -> str:
        """The first tag that this peer takes part in: what people see where there is one value."""
        return next((tag for tag in self._holdings if tag in self._takes), "")

    def _held_rounds(self, committed: Mapping[str, int]) -> dict[str, int]:
        """By module, if there are several: the round that is held, or the one to be fetched."""
        return {
            tag: self.held[tag].round if tag in self.held else committed[tag]
            for tag in self._holdings
            if tag and tag in self._takes
        }

    def _give_up(self, tag: str) -> None:
        """Others hold more than round 0 of a module that this peer only founded."""
        if tag not in self._takes and self.held.pop(tag, None) is not None:
            assert self.transfers is not None
            self.transfers[tag].give_up()

    def take_part(self, tag: str, takes: bool) -> None:
        """In a tag's rounds from now on, or no more."""
        if takes:
            self._takes.add(tag)
        else:
            self._takes.discard(tag)
            self.held.pop(tag, None)
            assert self.transfers is not None
            self.transfers[tag].give_up()
        self.feed(protocol.TakePart(tag, takes))

    def want_links(self, peers: Sequence[PeerId]) -> None:
        """To members that this peer may not be linked to otherwise."""
        book = self.card.address_book()
        for peer in peers:
            if self.core is not None and peer != self.me and self.links.get(peer) is None:
                known = self.core.membership.members.get(peer)
                said = split((known.address,)) if known is not None else ()
                self.reaching.want(peer, said or book.get(peer, ()))

    def hold(self, tag: str, state: CommittedState) -> None:
        """The trainer holds this committed state now: donors serve it."""
        self.held[tag] = state
        assert self.transfers is not None
        self.transfers[tag].publish(state)
        self.feed(protocol.StateHeld(state.round, state.root, tag))

    def hold_update(self, tag: str, root: bytes, update: CommittedState) -> None:
        assert self.transfers is not None
        self.transfers[tag].hold_update(root, update)

    def refuse_update(self, tag: str, round: int) -> None:
        assert self.transfers is not None
        self.transfers[tag].update_refused(round)

    def _fetch_failed(self, error: DecentralError) -> None:
        """A holder lied (named), or this model is not the run's (fatal). That a state is gone
        because the run has moved on is no failure: the next one is fetched."""
        self.events.emit("fault", kind="state-fetch", peer=error.peer, says=error.says)
        if isinstance(error, FingerprintError):
            self.tell(MeshFailed(error))

    # ------------------------------------------------------------- LinkUser: what links say

    def _pump(self) -> None:
        if not self.closed:
            self.links.pump()

    def admission(self, peer: PeerId, inbound: bool, exporter: bytes) -> Admission:
        return self.card.admission(peer, inbound, exporter)

    def link_up(self, link: Link, admitted: Admitted) -> None:
        self.reaching.link_up(link)
        self.card.admitted(admitted)
        if not self.revoking.link_up(link.peer):
            return
        if self._book_due is None:
            self._book_due = self.loop.call_later(BOOK_S, self._keep_book)
        if self.transfers is not None:
            self.transfers.holder_up(link.peer)
        self.calling.link_up(link.peer)
        if self.core is None:
            if self._started and not self.closed:
                self._make_core(None)  # the run is known now; feeds this link too
        else:
            self.feed(protocol.LinkUp(link.peer, link.name, ",".join(link.addresses)))

    def _keep_book(self) -> None:
        self._book_due = None
        try:
            self.card.keep_address_book()
        except DiskError as error:  # only a hint for the next start
            self.events.emit("fault", kind="address-book", peer=None, says=error.says)

    def link_down(self, peer: PeerId, closed: bool, error: DecentralError) -> None:
        self.events.emit("link", peer=peer, state="down", says=error.says)
        self.reaching.feed(reach.LinkDown(peer))
        if self.transfers is not None:
            self.transfers.peer_down(peer)
        self.calling.link_down(peer, error.says)
        self.feed(protocol.LinkDown(peer, closed, error.says))
        self.way_in.link_down(error)

    def dial_failed(self, peer: PeerId | None, failures: list[DecentralError]) -> None:
        self.revoking.dial_failed(failures)
        if peer is None:  # the join words
            self.way_in.entries_failed(failures)
            return
        refused = any("refused" in failure.says for failure in failures)
        says = failures[0].says if failures else f"no address of {short(peer)} is known"
        self.feed(protocol.DialFailed(peer, refused, says))
        there = any(failure.phase == "admission" for failure in failures)
        self.reaching.feed(reach.DirectFailed(peer, says, there))

    def message(self, peer: PeerId, payload: bytes) -> None:
        if is_reach(payload):
            self.reaching.heard(peer, payload)
        elif is_call(payload):
            self.calling.message(peer, payload)
        elif self.revoking.takes(peer, payload):
            return
        elif is_transfer(payload):
            if self.transfers is not None:
                self.transfers.message(peer, payload)
        elif self.core is not None:
            self.feed(protocol.Received(peer, payload))
        elif len(self._early) < MAX_EARLY and self._early_bytes + len(payload) <= MAX_EARLY_BYTES:
            self._early.append((peer, payload))
            self._early_bytes += len(payload)

    def probe_acked(self, peer: PeerId, seq: int, incarnation: int, progress: int) -> None:
        self.feed(protocol.ProbeAcked(peer, seq, incarnation, progress))

    def blob(self, key: int, error: DecentralError | None) -> None:
        says = None if error is None else error.says
        if self.transfers is None or not self.transfers.blob(key, says):
            self.calling.blob(key, error)

    def blob_sent(self, key: int) -> None:
        if self.transfers is None or not self.transfers.blob_sent(key):
            self.calling.blob_sent(key)

    def fail(self, error: DecentralError) -> None:
        """This peer can take part no longer."""
        self.tell(MeshFailed(error))

    def close(self) -> None:
        self.closed = True
        self.reaching.close()
        if self.transfers is not None:
            self.transfers.close()
        self.calling.close()
        self.loop.remove_reader(self.endpoint.event_fd)
        if self._timer is not None:
            self._timer.cancel()
        if self._book_due is not None:
            self._book_due.cancel()
            self._keep_book()
