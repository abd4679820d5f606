"""The sans-IO peer: events in, actions out; no sockets, clocks, threads, or randomness of its own.

event ──▶ handle ──▶ the machine it concerns (membership, views, forks, rounds, join)
                └──▶ duties: what the state now calls for (a view change, an attempt, …)
                └──▶ actions, in the order in which they must be executed
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from decentral.errors import ProtocolError
from decentral.peer import messages as m
from decentral.peer.acceptor import read_record
from decentral.peer.context import Context
from decentral.peer.coordinator import Coordinator
from decentral.peer.duties import Duties
from decentral.peer.forks import Forks
from decentral.peer.greeting import Greeting
from decentral.peer.join import Join
from decentral.peer.member import STATES
from decentral.peer.membership import Membership
from decentral.peer.protocol import (
    Action,
    Checkpointed,
    CloseLink,
    Contribute,
    CoreConfig,
    CoreStatus,
    Dial,
    DialFailed,
    Entry,
    Event,
    Evicted,
    Joined,
    Leave,
    LinkDown,
    LinkUp,
    ProbeAcked,
    Received,
    Reduced,
    ReduceFailed,
    RollbackEntry,
    RoundEntry,
    StateHeld,
    Stop,
    Tick,
    ViewEntry,
)
from decentral.peer.replica import Replica
from decentral.peer.rounds import Rounds
from decentral.peer.views import Views
from decentral.peer.views_log import LogState, founding_state
from decentral.types import PeerId


class PeerCore:
    """One peer. The caller executes what `start` and `handle` return, in order.

    After `start`, the caller's first event is `StateHeld`: the state of the checkpoint, or
    (0, root of the initial state) without one. A newcomer that has nothing may leave it out.
    """

    def __init__(
        self,
        config: CoreConfig,
        me: PeerId,
        name: str,
        address: str,
        boot: bytes,
        durable: bytes | None,
        seed: int,
    ) -> None:
        self.ctx = Context(config, me, name, address, boot, Random(seed))
        ctx = self.ctx
        self.membership = Membership(ctx)
        self.replica = Replica(ctx, self, self.membership.book)
        self.rounds = Rounds(ctx, self.replica, self._coordinator)
        self.views = Views(ctx, self.replica, self.rounds.witnessed)
        self.forks = Forks(ctx, self.replica)
        self.coordination = Coordinator(ctx, self.replica, self.membership)
        self.join = Join(ctx, self.replica, self.membership, self.rounds, self._coordinator)
        self.duties = Duties(self)
        self._tick_due = float("inf")
        if durable is not None:
            record = read_record(durable)
            ctx.boot_seq = record.boot_seq + 1
            self.replica.restore(record)
            for peer, known_as, at in record.book:
                if peer != me:
                    self.membership.learn(peer, known_as, at)
        self.greeting = Greeting(self)
        self._handlers: dict[type[Any], Callable[[PeerId, Any], None]] = {
            m.Refuse: self.greeting.on_refuse,
            m.Gossip: self.membership.on_gossip,
            m.PingReq: self.membership.on_ping_req,
            m.PingAck: lambda _, msg: self.membership.on_ping_ack(msg),
            m.Prepare: self.views.on_prepare,
            m.Promise: self.views.on_promise,
            m.Accept: self.views.on_accept,
            m.Accepted: self.views.on_accepted,
            m.Nack: self.views.on_nack,
            m.Commit: self.replica.on_commit,
            m.Learned: self.duties.on_learned,
            m.Learn: self.replica.on_learn,
            m.Snapshot: self.join.on_snapshot,
            m.ForkPrepare: self.forks.on_prepare,
            m.ForkPromise: self.forks.on_promise,
            m.ForkAccept: self.forks.on_accept,
            m.ForkAccepted: self.forks.on_accepted,
            m.ForkCommit: self.forks.on_commit,
            m.Offer: self.coordination.on_offer,
            m.Start: self.rounds.on_start,
            m.Result: self.coordination.on_result,
            m.Failed: self.coordination.on_failed,
            m.Abort: lambda _, msg: self.rounds.on_abort(msg),
            m.Close: lambda _, msg: self.rounds.on_close(msg),
            m.Stuck: self.coordination.on_stuck,
            m.JoinRequest: self.join.on_join_request,
            m.Enter: self.join.on_enter,
            m.LeaveRequest: self.duties.on_leave_request,
        }

    # -------------------------------------------------------------- the caller's side

    def start(self, now: float, found: bool) -> list[Action]:
        """Begin. `found`: make a run of one; else join, or resume what `durable` remembers."""
        ctx = self.ctx
        ctx.now = now
        ctx.blank = not found and self.replica.state is None
        if found:
            self.replica.state = founding_state(
                ctx.config.run, ctx.me, ctx.boot, ctx.config.lease_samples
            )
        self.replica.persist()
        state = self.replica.state
        if state is not None:
            self.membership.want(state.view.members, 0.0)
            if self.replica.member:
                leases = state.ledger.granted(ctx.me)
                ctx.out.append(Joined(state.view, state.round, leases))
        for peer, one in self.membership.members.items():
            if one.address:
                ctx.out.append(Dial(peer, (one.address,)))
        return self._finish()

    def handle(self, event: Event, now: float) -> list[Action]:
        """What happened → what to do about it."""
        self.ctx.now = now
        match event:
            case Received(peer, payload):
                self._receive(peer, payload)
            case ProbeAcked(peer, seq, incarnation, progress):
                self.membership.on_ack(peer, seq, incarnation, progress)
            case Tick():
                self._tick(now)
            case LinkUp(peer, known_as, address):
                self.greeting.link_up(peer, known_as, address)
            case LinkDown(peer, closed, _):
                if self.ctx.links.pop(peer, None) is not None:
                    self.membership.on_link_down(peer, closed)
                    self.ctx.changed()
            case DialFailed(peer, refused, _):
                self.membership.on_dial_failed(peer, refused)
            case Contribute():
                self.rounds.on_contribute(event)
            case Reduced():
                self.rounds.on_reduced(event)
            case ReduceFailed():
                self.rounds.on_reduce_failed(event)
            case StateHeld(number, root):
                self._state_held(number, root)
            case Checkpointed(number):
                self.rounds.durable = max(self.rounds.durable, number)
                self.ctx.dirty = True
            case Leave(reason):
                self.duties.leave(reason)
            case Stop(reason):
                self.rounds.stop = reason
                self.ctx.dirty = True
        return self._finish()

    def next_timer(self) -> float | None:
        """When a Tick is due at the latest."""
        self._tick_due = min(
            self.membership.next_timer(),
            self.views.deadline,
            self.forks.retry_at,
            self.coordination.next_timer(),
            self.duties.next_timer(),
        )
        return self._tick_due

    def status(self) -> CoreStatus:
        """A snapshot for people and tools."""
        state = self.replica.state
        inside = state.view.members if state is not None else ()
        members = {}
        for peer in (*inside, *self.membership.members):
            opinion = STATES[self.membership.state(peer)]
            if peer == self.ctx.me:
                opinion = "alive" if self.replica.member else "joining"
            elif peer not in inside and opinion in ("alive", "suspect"):
                opinion = "joining"
            members[peer] = opinion
        return CoreStatus(
            lineage=self.replica.lineage,
            epoch=0 if state is None else state.view.epoch,
            round=0 if state is None else state.round,
            durable_round=0 if state is None else state.durable_round,
            members=members,
            names={**self.ctx.names, self.ctx.me: self.ctx.name},
            coordinator=self._coordinator(),
        )

    # -------------------------------------------------------------- inside

    def _coordinator(self) -> PeerId | None:
        return self.duties.coordinator()

    def _finish(self) -> list[Action]:
        ctx = self.ctx
        for _ in range(1000):
            while ctx.loopback:
                self._dispatch(ctx.me, ctx.loopback.popleft())
            if not ctx.dirty:
                break
            ctx.dirty = False
            self.duties.run()
        self.greeting.greet_again()
        self.membership.flush()
        out, ctx.out = ctx.out, []
        return out

    def _receive(self, peer: PeerId, payload: bytes) -> None:
        peering = self.ctx.links.get(peer)
        if peering is None:
            return
        try:
            msg = m.unpack(payload)
            if isinstance(msg, m.Hello):
                self.greeting.on_hello(peer, peering, msg)
            elif peering.hello is not None or isinstance(msg, m.Refuse):
                self._dispatch(peer, msg)
        except ProtocolError as wrong:
            self.ctx.fault("protocol", peer, f"{self.ctx.called(peer)}: {wrong.says}")
            self.ctx.out.append(CloseLink(peer, wrong.says))

    def _dispatch(self, peer: PeerId, msg: Any) -> None:
        self._handlers[type(msg)](peer, msg)

    def _tick(self, now: float) -> None:
        late_s = now - self._tick_due if self._tick_due != float("inf") else 0.0
        self.membership.tick(late_s)
        if now >= self.views.deadline:
            self.views.tick(acting=self.duties.acting())
            self.ctx.dirty = True
        if now >= self.forks.retry_at:
            self.forks.tick(self.duties.reachable())
            self.ctx.dirty = True
        if self.coordination.due() or now >= self.duties.next_timer():
            self.ctx.dirty = True

    def _state_held(self, number: int, root: bytes) -> None:
        state = self.replica.state
        if state is not None and state.slot == 0 and state.root == b"" and number == state.round:
            # The founder's initial state is the run's round 0.
            self.replica.found(root)
        self.rounds.on_state_held(number, root)
        self.join.ask_at = 0.0

    # -------------------------------------------------------------- the log moved

    def committed(self, slot: int, entry: Entry, before: LogState, after: LogState) -> None:
        """Replica's hook: one entry further."""
        self.ctx.dirty = True
        match entry:
            case RoundEntry():
                self.rounds.on_round(entry)
                self.coordination.new_round()
            case RollbackEntry():
                self.rounds.on_rollback(entry)
                self.coordination.new_round()
            case ViewEntry():
                self.rounds.abort("the view has changed")
                self.coordination.new_view(after.view.members)
                self.duties.view_changed(slot, before, after)
        self.duties.moved()
        if self.replica.member:
            self.join.spread(before.view.members)

    def installed(self, before: LogState | None, after: LogState) -> None:
        """Replica's hook: a whole state in place of entries."""
        self.rounds.abort("this peer was out of date")
        self.rounds.next_round()
        self.coordination.new_round()
        self.coordination.new_view(after.view.members)
        self.duties.moved()
        if self.ctx.me in after.view.members:
            self.membership.want(after.view.members, 0.0)
            leases = after.ledger.granted(self.ctx.me)
            self.ctx.out.append(Joined(after.view, after.round, leases))
        else:
            self.ctx.out.append(Evicted("the others went on without this peer"))
