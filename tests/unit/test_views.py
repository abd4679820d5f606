"""The consensus on its own: three peers, messages by hand."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decentral.peer import messages as m
from decentral.peer.acceptor import NO_BALLOT, Votes, read_record
from decentral.peer.context import Context, Peering
from decentral.peer.entries import encode_entry
from decentral.peer.protocol import Committed, CoreConfig, Entry, Persist, Send, ViewEntry
from decentral.peer.replica import Replica, beats
from decentral.peer.views import Views
from decentral.peer.views_log import LogState, apply, founding_state, why_invalid
from decentral.simulator.world import peer_id
from decentral.types import View

PEERS = [peer_id(index) for index in range(3)]


def three() -> LogState:
    state = founding_state(bytes(32), PEERS[0], b"b" * 16, 0)
    view = View(lineage=state.view.lineage, epoch=1, members=tuple(PEERS))
    return apply(state, ViewEntry(view=view, reason="all join"))


def next_view(state: LogState, keep: int) -> ViewEntry:
    view = View(
        lineage=state.view.lineage, epoch=state.view.epoch + 1, members=state.view.members[:keep]
    )
    return ViewEntry(view=view, reason=f"only {keep}")


class Voter:
    """One replica with its proposer, without the rest of a peer."""

    def __init__(self, index: int) -> None:
        self.peer = PEERS[index]
        config = CoreConfig(run=bytes(32), fingerprint=b"")
        self.ctx = Context(config, self.peer, "", "", b"b" * 16, Random(index))
        self.ctx.links = {one: Peering(0.0) for one in PEERS if one != self.peer}
        self.replica = Replica(self.ctx, self, tuple, tuple)
        self.replica.state = three()
        self.views = Views(self.ctx, self.replica, lambda entry: True)

    def committed(self, slot: int, entry: Entry, before: LogState, after: LogState) -> None: ...

    def installed(self, before: LogState | None, after: LogState) -> None: ...

    def receive(self, sender: str, msg: object) -> None:
        handlers = {
            m.Prepare: self.views.on_prepare,
            m.Promise: self.views.on_promise,
            m.Accept: self.views.on_accept,
            m.Accepted: self.views.on_accepted,
            m.Nack: self.views.on_nack,
            m.Commit: self.replica.on_commit,
            m.Learn: self.replica.on_learn,
        }
        handlers[type(msg)](sender, msg)  # type: ignore[operator]


@dataclass
class Table:
    """Three voters and what is on the wire between them."""

    voters: dict[str, Voter] = field(
        default_factory=lambda: {PEERS[index]: Voter(index) for index in range(3)}
    )
    wire: list[tuple[str, str, bytes]] = field(default_factory=list)
    chosen: dict[int, set[bytes]] = field(default_factory=dict)
    down: set[str] = field(default_factory=set)

    def collect(self) -> None:
        for peer, voter in self.voters.items():
            out, voter.ctx.out = voter.ctx.out, []
            for one in out:
                if isinstance(one, Send):
                    self.wire.append((peer, one.peer, one.payload))
                elif isinstance(one, Committed):
                    self.chosen.setdefault(one.slot, set()).add(encode_entry(one.entry))

    def deliver(self, index: int) -> None:
        sender, to, payload = self.wire.pop(index)
        if to not in self.down:
            self.voters[to].receive(sender, m.unpack(payload))
        self.collect()

    def settle(self) -> None:
        self.collect()
        while self.wire:
            self.deliver(0)


def test_first_member_needs_no_prepare() -> None:
    table = Table()
    first = table.voters[PEERS[0]]
    first.views.propose(next_view(three(), 2))
    table.collect()
    assert {type(m.unpack(payload)) for _, _, payload in table.wire} == {m.Accept}
    table.settle()
    assert [voter.replica.slot for voter in table.voters.values()] == [2, 2, 2]


def test_vote_is_persisted_before_it_is_sent() -> None:
    voter = Voter(1)
    value = encode_entry(next_view(three(), 2))
    ask = m.Accept(voter.replica.lineage, 1, (0, PEERS[0]), value, False)
    voter.receive(PEERS[0], ask)
    kinds = [type(one) for one in voter.ctx.out]
    assert kinds == [Persist, Send]
    record = read_record(voter.ctx.out[0].record)  # type: ignore[union-attr]
    assert record.votes.accepted == (0, PEERS[0]) and record.votes.value == value


def test_nobody_but_the_first_member_may_use_counter_zero() -> None:
    voter = Voter(2)
    value = encode_entry(next_view(three(), 2))
    voter.receive(PEERS[1], m.Accept(voter.replica.lineage, 1, (0, PEERS[1]), value, False))
    assert voter.replica.votes.accepted == NO_BALLOT
    voter.receive(PEERS[0], m.Accept(voter.replica.lineage, 1, (1, PEERS[1]), value, False))
    assert voter.replica.votes.accepted == NO_BALLOT


def test_new_coordinator_finishes_what_the_dead_one_began() -> None:
    table = Table()
    begun = next_view(three(), 2)
    table.voters[PEERS[0]].views.propose(begun)
    table.collect()
    table.deliver(0)  # one Accept arrives, then the first member dies
    table.down.add(PEERS[0])
    table.wire.clear()
    table.voters[PEERS[2]].views.propose(next_view(three(), 1))
    table.settle()
    assert table.chosen == {1: {encode_entry(begun)}}


def test_after_a_restart_the_first_member_prepares() -> None:
    table = Table()
    first = table.voters[PEERS[0]]
    first.replica.restarted = True
    first.views.propose(next_view(three(), 2))
    table.collect()
    assert {type(m.unpack(payload)) for _, _, payload in table.wire} == {m.Prepare}
    table.settle()
    assert first.replica.slot == 2


def test_rivals_converge() -> None:
    table = Table()
    a, b = table.voters[PEERS[1]], table.voters[PEERS[2]]
    a.views.propose(next_view(three(), 2))
    b.views.propose(next_view(three(), 1))
    now = 0.0
    while a.replica.slot == 1 and now < 60.0:
        table.settle()
        now += 0.1
        for voter in (a, b):
            voter.ctx.now = now
            voter.views.tick(acting=True)
            if voter.replica.slot == 1 and not voter.views.busy():
                voter.views.propose(next_view(three(), 2))
    table.settle()
    assert len(table.chosen[1]) == 1
    assert now < 20.0


def test_who_missed_entries_is_brought_up() -> None:
    table = Table()
    table.down.add(PEERS[2])
    for keep in (3, 3, 3):
        first = table.voters[PEERS[0]]
        assert first.replica.state is not None
        first.views.propose(next_view(first.replica.state, keep))
        table.settle()
    table.down.clear()
    late = table.voters[PEERS[2]]
    late.replica.ask(PEERS[0])
    table.settle()
    assert late.replica.slot == 4


@given(order=st.lists(st.integers(0, 10_000), max_size=120), seed=st.integers(0, 99))
def test_any_order_and_loss_of_messages_leads_to_one_value(order: list[int], seed: int) -> None:
    table = Table()
    rng = Random(seed)
    now = 0.0
    for step in order:
        now += 0.2
        table.collect()
        action = step % 5
        if action < 3 and table.wire:
            table.deliver(step % len(table.wire))
        elif action == 3 and table.wire:
            table.wire.pop(step % len(table.wire))
        else:
            voter = table.voters[PEERS[rng.randrange(3)]]
            voter.ctx.now = now
            voter.views.tick(acting=True)
            state = voter.replica.state
            if state is not None and state.slot < 3 and voter.replica.member:
                voter.views.propose(next_view(state, 1 + rng.randrange(len(state.view.members))))
    table.collect()
    assert all(len(values) == 1 for values in table.chosen.values())


def test_votes_never_go_back() -> None:
    votes = Votes()
    assert votes.promise((2, PEERS[0])) and not votes.promise((1, PEERS[1]))
    assert not votes.accept((1, PEERS[1]), b"x")
    assert votes.accept((2, PEERS[0]), b"y") and votes.value == b"y"


def test_entries_that_do_not_follow_are_invalid() -> None:
    state = three()
    assert why_invalid(state, next_view(state, 2)) == ""
    wrong = ViewEntry(view=View(lineage="f" * 16, epoch=2, members=tuple(PEERS)), reason="")
    assert "lineage" in why_invalid(state, wrong)
    with pytest.raises(ValueError, match="epoch"):
        apply(state, ViewEntry(view=state.view, reason=""))


def test_more_samples_win_then_the_descendant_then_the_id() -> None:
    old, new, other = (5, "a" * 16, ()), (5, "0" * 16, ("a" * 16,)), (5, "b" * 16, ())
    assert beats((6, "0" * 16, ()), old) and not beats(old, (6, "0" * 16, ()))
    assert beats(new, old) and not beats(old, new)
    assert beats(other, old) and not beats(old, other)
    assert not beats(old, old)
