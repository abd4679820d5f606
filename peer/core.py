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
from decentral.peer.evictions import Evictions
from decentral.peer.fields import bad
from decentral.peer.forks import Forks
from decentral.peer.greeting import Greeting
from decentral.peer.join import Join
from decentral.peer.member import ALIVE, STATES
from decentral.peer.membership import Membership
from decentral.peer.protocol import (
    Action,
    Ask,
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
    Fenced,
    Joined,
    Leave,
    LinkDown,
    LinkUp,
    Moved,
    PauseEntry,
    ProbeAcked,
    Received,
    Reduced,
    ReduceFailed,
    RollbackEntry,
    RoundEntry,
    StateHeld,
    Stop,
    TakePart,
    Tick,
    ViewEntry,
)
from decentral.peer.replica import Replica
from decentral.peer.rounds import Rounds
from decentral.peer.views import Views
from decentral.peer.views_log import LogState, founding_state
from decentral.peer.wishes import Wishes
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
        self.replica = Replica(ctx, self, self.membership.book, self.membership.addresses)
        self.rounds = {
            tag: Rounds(ctx, self.replica, self._coordinator, tag) for tag in config.tags
        }
        self.views = Views(ctx, self.replica, lambda entry: self.rounds[entry.tag].vouches(entry))
        self.forks = Forks(ctx, self.replica)
        self.evictions = Evictions(ctx, self.replica)
        self.coordination = {
            tag: Coordinator(ctx, self.replica, self.membership, self.evictions, tag)
            for tag in config.tags
        }
        self.wishes = Wishes(ctx, self.replica, self.coordination)
        self.join = Join(ctx, self.replica, self.membership, self.rounds, self._coordinator)
        self.duties = Duties(self)
        self._tick_due = float("inf")
        self.fenced = False
        """Another process has this identity: whatever this one would say is void."""
        if durable is not None:
            record = read_record(durable)
            if record.state is not None and record.state.tags() != config.tags:
                bad("the durable record is of a run with other tags")
            ctx.boot_seq = record.boot_seq + 1
            self.replica.restore(record)
            members = set(record.state.view.members) if record.state is not None else set()
            for peer, known_as, at in record.book:
                if peer != me:
                    known = self.membership.learn if peer in members else self.membership.recall
                    known(peer, known_as, at)
        self.greeting = Greeting(self)
        self._handlers: dict[type[Any], Callable[[PeerId, Any], None]] = {
            m.Refuse: self.greeting.on_refuse,
            m.Gossip: self._on_gossip,
            m.PingReq: self.membership.on_ping_req,
            m.PingAck: self.membership.on_ping_ack,
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
            m.Offer: lambda peer, msg: self._coordinating(msg.tag).on_offer(peer, msg),
            m.Start: lambda peer, msg: self._taking_part(msg.tag).on_start(peer, msg),
            m.Result: lambda peer, msg: self._coordinating(msg.tag).on_result(peer, msg),
            m.Failed: lambda peer, msg: self._coordinating(msg.tag).on_failed(peer, msg),
            m.Abort: lambda _, msg: self._taking_part(msg.tag).on_abort(msg),
            m.Close: lambda _, msg: self._taking_part(msg.tag).on_close(msg),
            m.Stuck: self.evictions.on_stuck,
            m.Wish: self.wishes.on_wish,
            m.WishRefused: self.wishes.on_refused,
            m.JoinRequest: self.join.on_join_request,
            m.Enter: self.join.on_enter,
            m.Quarantined: self.join.on_quarantined,
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
                ctx.config.run, ctx.me, ctx.boot, ctx.config.lease_samples, ctx.config.tags
            )
        self.replica.persist()
        state = self.replica.state
        if state is not None:
            self.membership.want(self.membership.links_wanted(state.view.members), 0.0)
            if self.replica.member:
                self._say_joined(state)
        for peer, one in self.membership.members.items():
            if one.address and self.membership.may_dial(peer):
                ctx.out.append(Dial(peer, (one.address,)))
        return self._finish()

    def handle(self, event: Event, now: float) -> list[Action]:
        """What happened → what to do about it."""
        if self.fenced:
            return []
        self.ctx.now = now
        match event:
            case Received():
                self._receive(event.peer, event.payload)
            case ProbeAcked():
                self.membership.on_ack(event.peer, event.seq, event.incarnation, event.progress)
            case Tick():
                self._tick(now)
            case LinkUp(peer, known_as, address):
                self.greeting.link_up(peer, known_as, address)
            case LinkDown(peer, closed, _):
                if (gone := self.ctx.unlinked(peer)) is not None:
                    self.membership.on_link_down(peer, closed, now - gone.since)
                    self.ctx.changed()
            case DialFailed(peer, refused, _):
                self.membership.on_dial_failed(peer, refused)
            case Moved(address):
                self.greeting.moved(address)
            case Contribute():
                self.rounds[event.tag].on_contribute(event)
            case Reduced():
                self.rounds[event.tag].on_reduced(event)
            case ReduceFailed():
                self.rounds[event.tag].on_reduce_failed(event)
            case StateHeld():
                self._state_held(event)
            case Checkpointed():
                self.rounds[event.tag].on_checkpointed(event)
            case TakePart():
                self.rounds[event.tag].on_take_part(event.takes)
            case Leave(reason):
                self.duties.leave(reason)
            case Stop(reason):
                for rounds in self.rounds.values():
                    rounds.stop = reason
                self.ctx.dirty = True
            case Ask():
                self.wishes.ask(event)
        return self._finish()

    def next_timer(self) -> float:
        """When a Tick is due at the latest."""
        self._tick_due = min(
            self.membership.next_timer(),
            self.views.deadline,
            self.forks.retry_at,
            self.wishes.again_at,
            self.duties.next_timer(),
        )
        return self._tick_due

    @property
    def lost(self) -> bool:
        """Outside, and linked to nobody inside: other newcomers at best. Entry addresses must be
        tried again."""
        return not self.replica.member and not any(
            one.hello is not None and one.hello.member for one in self.ctx.links.values()
        )

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
            round=0 if state is None else state.scopes[0].round,
            durable_round=0 if state is None else state.scopes[0].durable_round,
            paused="" if state is None else state.paused,
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
        if self.fenced:
            last = next(at for at, action in enumerate(out) if isinstance(action, Fenced))
            return out[: last + 1]
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

    def _on_gossip(self, peer: PeerId, msg: m.Gossip) -> None:
        if self.replica.member and not self.replica.counts(peer):
            # A guest may say where others live, not that they are dead.
            msg = m.Gossip(tuple(one for one in msg.updates if one.state == ALIVE))
        self.membership.on_gossip(peer, msg)

    def _taking_part(self, tag: str) -> Rounds:
        return self.rounds[self._known(tag)]

    def _coordinating(self, tag: str) -> Coordinator:
        return self.coordination[self._known(tag)]

    def _known(self, tag: str) -> str:
        if tag not in self.rounds:
            bad(f"the run has no tag {tag!r}")
        return tag

    def _tick(self, now: float) -> None:
        late_s = now - self._tick_due if self._tick_due != float("inf") else 0.0
        self.membership.tick(late_s)
        if now >= self.views.deadline:
            self.views.tick(acting=self.duties.acting())
            self.ctx.dirty = True
        if now >= self.forks.retry_at:
            self.forks.tick(self.duties.reachable())
            self.ctx.dirty = True
        due = [one.due() for one in self.coordination.values()]
        if any(due) or self.duties.due() or now >= self.wishes.again_at:
            self.ctx.dirty = True

    def _state_held(self, event: StateHeld) -> None:
        state = self.replica.state
        if state is not None and state.slot == 0:
            scope = state.scope(event.tag)
            if scope.root == b"" and event.round == scope.round:
                # The founder's initial state is the run's round 0.
                self.replica.found(event.tag, event.state_root)
        self.rounds[event.tag].on_state_held(event.round, event.state_root)
        self.join.ask_at = 0.0

    def _say_joined(self, state: LogState) -> None:
        leases = state.ledger.granted(self.ctx.me)
        rounds = state.rounds()
        self.ctx.out.append(Joined(state.view, rounds[0][1], leases, rounds))

    # -------------------------------------------------------------- the log moved

    def committed(self, slot: int, entry: Entry, before: LogState, after: LogState) -> None:
        """Replica's hook: one entry further."""
        self.ctx.dirty = True
        match entry:
            case RoundEntry():
                self.rounds[entry.tag].on_round(entry)
                self.coordination[entry.tag].new_round()
            case RollbackEntry():
                self.rounds[entry.tag].on_rollback(entry)
                self.coordination[entry.tag].new_round()
            case ViewEntry():
                self._new_view("the view has changed", after)
                self.duties.view_changed(slot, before, after)
                if self.ctx.me in after.view.members and (
                    self.replica.deposed or self.ctx.me not in before.view.members
                ):
                    self.replica.deposed = False
                    self.join.target = None
                    self._enter(after)
            case PauseEntry():
                for coordination in self.coordination.values():
                    coordination.new_round()
        self.evictions.moved()
        self.wishes.committed(entry)
        self.duties.moved()
        if self.replica.member:
            self.join.spread(before.view.members)

    def installed(self, before: LogState | None, after: LogState) -> None:
        """Replica's hook: a whole state in place of entries."""
        waiting = any(one.contribution is not None for one in self.rounds.values())
        self._new_view("this peer was out of date", after)
        for rounds in self.rounds.values():
            rounds.next_round()
        for coordination in self.coordination.values():
            coordination.new_round()
        self.evictions.moved()
        self.duties.moved()
        if self.ctx.me not in after.view.members:
            self.ctx.out.append(Evicted("the others went on without this peer"))
            return
        if waiting:
            # A missed entry may have counted its work: the trainer would wait for that for ever.
            says = "this peer missed what the others decided; its open work is dropped"
            self.ctx.out.append(Evicted(says))
        self._enter(after)

    def _enter(self, state: LogState) -> None:
        """We are a member again, or for the first time."""
        self.membership.vouched(state.view.members)
        self.membership.want(self.membership.links_wanted(state.view.members), 0.0)
        self._say_joined(state)

    def _new_view(self, says: str, after: LogState) -> None:
        for rounds in self.rounds.values():
            rounds.abort(says)
        for coordination in self.coordination.values():
            coordination.new_view(after.view.members)
        self.evictions.new_view(after.view.members)
