"""The loop-side half of a peer: feeds the sans-IO core and does what it says.

       links ──▶ event ─┐                          ┌─▶ send, dial, probe, close     (links)
     trainer ──▶ event ─┼─▶ PeerCore.handle ──▶ actions ─▶ persist (fsync, in order) (home)
       timer ──▶ Tick  ─┘                          └─▶ orders for the trainer      (on_order)

Everything here runs on the loop's thread.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from typing import Any

from decentral import _native
from decentral.errors import DecentralError, DiskError, FingerprintError, RefusedError, StateError
from decentral.peer import protocol
from decentral.peer.admission import Admission, Admitted
from decentral.peer.core import PeerCore
from decentral.peer.home import Home
from decentral.peer.identity import Identity
from decentral.peer.orders import MeshFailed, Order, StateArrived
from decentral.peer.runtime.card import MembershipCard
from decentral.peer.runtime.config import MeshConfig
from decentral.peer.runtime.events import EventLog
from decentral.peer.runtime.links import Link, LinkTable
from decentral.peer.runtime.transfers import Transfers
from decentral.peer.transfer import is_transfer
from decentral.types import CommittedState, PeerId, TensorSpec, View, short

#: How often addresses that did not answer are tried again while a run waits for its members.
REDIAL_S = 2.0
#: Messages kept from members that were quicker than this peer's trainer.
MAX_EARLY = 1024


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
    ) -> None:
        self.config, self.home, self.identity = config, home, identity
        self.card, self.events, self._loop = card, events, loop
        self.me: PeerId = identity.peer_id
        self.endpoint = endpoint
        self.links = LinkTable(endpoint, self.me, self, loop.call_later)
        self.core: PeerCore | None = None
        self.view: View | None = None
        self.round = 0
        self.held: CommittedState | None = None
        self.transfers: Transfers | None = None
        self._on_order: Callable[[Order], None] = lambda order: None
        self._core_config: dict[str, Any] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._started = False
        self._early: list[tuple[PeerId, bytes]] = []
        self._joining = False
        self._joined = False
        self._boot = secrets.token_bytes(8)
        self._closed = False
        loop.add_reader(endpoint.event_fd, self._pump)

    # -------------------------------------------------------------------------------- start

    def start(
        self,
        *,
        schema: Sequence[TensorSpec],
        fingerprint: bytes,
        initial: CommittedState | None,
        resumed: CommittedState | None,
        lease_samples: int,
        on_order: Callable[[Order], None],
    ) -> None:
        """Make the run (`initial` and no join word), go on with it, or join it."""
        self._on_order = on_order
        self._started = True
        self._core_config = {"fingerprint": fingerprint, "lease_samples": lease_samples}
        self.transfers = Transfers(
            self.endpoint, self.links, schema, self._loop, self._state_fetched, self._fetch_failed
        )
        record = self.home.read_record()
        # Killed before its first checkpoint, a peer is back at round 0 whatever its votes say.
        self.held = resumed or (initial if record is not None else None)
        if self.held is not None:
            self.transfers.publish(self.held)
        if self.config.join:
            self._joining = True
            self._loop.call_later(self.config.join_timeout_s, self._join_timed_out)
            self.links.dial(None, self.card.entry_addresses())
        if record is not None:
            self._make_core(record)
            self.redial_book()
        elif not self.config.join:
            if initial is None:
                says = f"{self.home.path} has checkpoints but no vote record: join with a word"
                raise StateError(says, phase="start")
            self._make_core(None, found=True)
            self.hold(initial)

    def _make_core(self, record: bytes | None, found: bool = False) -> None:
        run = self.card.run
        assert run is not None, "the run is known before its core"
        self.core = PeerCore(
            protocol.CoreConfig(
                run=run,
                on_quorum_loss=self.config.on_quorum_loss,
                quorum_timeout_s=self.config.quorum_timeout_s,
                **self._core_config,
            ),
            self.me,
            self.config.name,
            ",".join(self.card.addresses),
            self._boot,
            record,
            secrets.randbits(63),
        )
        self._execute(self.core.start(self._loop.time(), found))
        if self.held is not None:
            self.feed(protocol.StateHeld(self.held.round, self.held.root))
        elif record is not None:
            self.feed(protocol.StateHeld(0, bytes(32)))  # nothing: decided on before any rollback
        for link in self.links.all():
            self.feed(protocol.LinkUp(link.peer, link.name, ",".join(link.addresses)))
        early, self._early = self._early, []
        for peer, payload in early:
            if self.links.get(peer) is not None:
                self.feed(protocol.Received(peer, payload))

    def redial_book(self) -> None:
        """Members of the last run that are not linked are tried until the run is whole again."""
        if self._closed or self._joined:
            return
        self._dial_book()
        self._loop.call_later(REDIAL_S, self.redial_book)

    def _dial_book(self) -> None:
        for peer, addresses in self.card.address_book().items():
            if self.links.get(peer) is None:
                self.links.dial(peer, addresses)

    # ----------------------------------------------------------------------------- the core

    def feed(self, event: protocol.Event) -> None:
        """One event in, its actions done, the timer set."""
        if self.core is None or self._closed:
            return
        try:
            self._execute(self.core.handle(event, self._loop.time()))
        except DiskError as error:
            # A vote that is not on disk must not be cast: this peer can take part no longer.
            self._on_order(MeshFailed(error))
            self.core = None
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self.core.next_timer()
        if due is not None:
            self._timer = self._loop.call_at(max(due, self._loop.time()), self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.feed(protocol.Tick())

    def _execute(self, actions: Sequence[protocol.Action]) -> None:
        for position, action in enumerate(actions):
            match action:
                case protocol.Send(peer, payload, urgent):
                    self.links.send(peer, payload, 0 if urgent else 1)
                case protocol.Probe(peer, seq, suspected):
                    link = self.links.get(peer)
                    if link is not None:
                        self.endpoint.probe(link.id, seq, suspected)
                case protocol.Dial(peer, addresses):
                    self.links.dial(peer, _split(addresses))
                case protocol.CloseLink(peer, says):
                    self.links.refuse(peer, says)
                case protocol.Persist(record):
                    # Of several in a row the last one says it all: one fsync.
                    following = actions[position + 1] if position + 1 < len(actions) else None
                    if not isinstance(following, protocol.Persist):
                        self.home.write_record(record)
                case protocol.FetchState():
                    assert self.transfers is not None
                    self.transfers.fetch(action, self.held)
                case _:
                    self._tell(action)

    def _tell(self, action: Any) -> None:
        """Orders for the trainer, and what a person gets to see of them."""
        match action:
            case protocol.Committed(_, entry, view):
                self._committed(entry, view)
            case protocol.Joined(view, round_, _):
                self._set_view(view)
                self.round = round_
                self._joined, self._joining = True, False
                self.events.emit(
                    "joined",
                    peer=self.me,
                    name=self.config.name,
                    epoch=view.epoch,
                    round=self.held.round if self.held else round_,
                    state_hash=self.held.root.hex() if self.held else "",
                    members=len(view.members),
                )
            case protocol.Evicted(says):
                self._joined = False
                self.events.emit("fault", kind="evicted", peer=self.me, says=says)
                self.redial_book()
            case protocol.Fault(kind, peer, says):
                self.events.emit("fault", kind=kind, peer=peer, says=says)
                if kind == "refused" and not self._joined and peer in (None, self.me):
                    self._on_order(MeshFailed(FingerprintError(says, phase="join")))
                    return
            case protocol.Left(says):
                self.events.emit("left", peer=self.me, says=says)
        self._on_order(action)

    def _committed(self, entry: protocol.Entry, view: View) -> None:
        match entry:
            case protocol.ViewEntry():
                self._set_view(view)
                self.events.emit(
                    "view",
                    lineage=view.lineage,
                    epoch=view.epoch,
                    members=len(view.members),
                    reason=entry.reason,
                )
            case protocol.RoundEntry():
                self.round = entry.round
            case protocol.RollbackEntry():
                self.round = entry.round
                self.events.emit(
                    "fault",
                    kind="rollback",
                    peer=None,
                    says=f"the run goes on from round {entry.round}, the last one on a disk",
                )

    def _set_view(self, view: View) -> None:
        self.view = view
        lineage = int.from_bytes(bytes.fromhex(view.lineage)[:8], "little")
        run = int.from_bytes((self.card.run or bytes(8))[:8], "little")
        self.endpoint.set_stamp(run, lineage, view.epoch)

    # ------------------------------------------------------------------------------- state

    def hold(self, state: CommittedState) -> None:
        """The trainer holds this committed state now: donors serve it."""
        self.held = state
        assert self.transfers is not None
        self.transfers.publish(state)
        self.feed(protocol.StateHeld(state.round, state.root))

    def _state_fetched(self, state: CommittedState) -> None:
        self._on_order(StateArrived(state))

    def _fetch_failed(self, error: DecentralError) -> None:
        """A holder lied (named), or this model is not the run's (fatal). That a state is gone
        because the run has moved on is no failure: the next one is fetched."""
        self.events.emit("fault", kind="state-fetch", peer=error.peer, says=error.says)
        if isinstance(error, FingerprintError) and not self._joined:
            self._on_order(MeshFailed(error))

    # ------------------------------------------------------------- LinkUser: what links say

    def _pump(self) -> None:
        if not self._closed:
            self.links.pump()

    def admission(self, peer: PeerId, inbound: bool, exporter: bytes) -> Admission:
        return self.card.admission(peer, inbound, exporter)

    def link_up(self, link: Link, admitted: Admitted) -> None:
        self.events.emit(
            "link",
            peer=link.peer,
            name=link.name,
            state="up",
            **{"class": "direct"},
            how="inbound" if link.inbound else "dialled",
        )
        self.card.admitted(admitted)
        if self.transfers is not None:
            self.transfers.holder_up(link.peer)
        if self.core is None:
            if self._started:
                self._make_core(None)  # the run is known now; feeds this link too
        else:
            self.feed(protocol.LinkUp(link.peer, link.name, ",".join(link.addresses)))

    def link_down(self, peer: PeerId, closed: bool, error: DecentralError) -> None:
        self.events.emit("link", peer=peer, state="down", says=error.says)
        if self.transfers is not None:
            self.transfers.peer_down(peer)
        self.feed(protocol.LinkDown(peer, closed, error.says))
        if self._joining and not self.links.all():
            if isinstance(error, RefusedError):
                self._on_order(MeshFailed(error))
            else:  # our way in died: another address, or another member, may know more
                self.links.dial(None, self.card.entry_addresses())
                self._dial_book()

    def dial_failed(self, peer: PeerId | None, failures: list[DecentralError]) -> None:
        if peer is None:  # the join words
            if self._joining and not self.links.all():
                self._joining = False
                self._on_order(MeshFailed(_most_telling(failures)))
            return
        refused = any("refused" in failure.says for failure in failures)
        says = failures[0].says if failures else f"no address of {short(peer)} is known"
        self.feed(protocol.DialFailed(peer, refused, says))

    def message(self, peer: PeerId, payload: bytes) -> None:
        if is_transfer(payload):
            if self.transfers is not None:
                self.transfers.message(peer, payload)
        elif self.core is not None:
            self.feed(protocol.Received(peer, payload))
        elif len(self._early) < MAX_EARLY:
            self._early.append((peer, payload))

    def probe_acked(self, peer: PeerId, seq: int, incarnation: int, progress: int) -> None:
        self.feed(protocol.ProbeAcked(peer, seq, incarnation, progress))

    def blob(self, key: int, error: str | None) -> None:
        if self.transfers is not None:
            self.transfers.blob(key, error)

    def _join_timed_out(self) -> None:
        if self._joining and not self.links.all():
            self._joining = False
            says = f"nobody admitted us within {self.config.join_timeout_s:.0f} s"
            self._on_order(MeshFailed(RefusedError(says, phase="join")))

    def close(self) -> None:
        self._closed = True
        if self.transfers is not None:
            self.transfers.close()
        self._loop.remove_reader(self.endpoint.event_fd)
        if self._timer is not None:
            self._timer.cancel()


def _split(addresses: Sequence[str]) -> list[str]:
    """The core treats an address as opaque; ours is a comma-separated list."""
    return [part for address in addresses for part in address.split(",") if part]


def _most_telling(failures: list[DecentralError]) -> DecentralError:
    """Of several addresses that failed, the error from the one that got furthest."""
    order = ("SelfJoinError", "NotDecentralError", "UnreachableError")
    return min(
        failures,
        key=lambda error: (
            order.index(type(error).__name__) + 1 if type(error).__name__ in order else 0
        ),
    )
