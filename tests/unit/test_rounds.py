"""A peer alone, and the rounds' rules seen from one peer."""

from __future__ import annotations

from dataclasses import replace

from decentral.peer import messages as m
from decentral.peer.core import PeerCore
from decentral.peer.protocol import (
    AbortReduce,
    Action,
    Checkpointed,
    Committed,
    Contribute,
    CoreConfig,
    Evicted,
    Joined,
    Leave,
    Left,
    LinkUp,
    Persist,
    Received,
    Reduced,
    ReduceFailed,
    RoundEntry,
    Send,
    StartReduce,
    StateHeld,
    Stop,
    Tick,
    ViewEntry,
)
from decentral.peer.views_log import apply
from decentral.simulator.world import peer_id
from decentral.types import Range, View

ME, OTHER = peer_id(0), peer_id(1)
CONFIG = CoreConfig(run=bytes(32), fingerprint=b"f", lease_samples=10)
ROOTS = [bytes([index]) * 32 for index in range(9)]


def alone() -> PeerCore:
    core = PeerCore(CONFIG, ME, "me", "h:1", b"b" * 16, None, 1)
    assert any(isinstance(one, Joined) for one in core.start(0.0, found=True))
    core.handle(StateHeld(0, ROOTS[0]), 0.1)
    return core


def only(actions: list[Action], kind: type) -> list[Action]:
    return [one for one in actions if isinstance(one, kind)]


def one_round(core: PeerCore, number: int, now: float) -> list[Action]:
    started = core.handle(Contribute(number, 100, ()), now)
    (start,) = only(started, StartReduce)
    assert isinstance(start, StartReduce) and start.participants == (ME,)
    done = core.handle(Reduced(number, start.attempt, ROOTS[number]), now + 0.1)
    core.handle(StateHeld(number, ROOTS[number]), now + 0.2)
    return done


def test_one_peer_alone_commits_at_once() -> None:
    core = alone()
    (committed,) = only(one_round(core, 1, 1.0), Committed)
    assert isinstance(committed, Committed) and isinstance(committed.entry, RoundEntry)
    assert committed.entry.state_root == ROOTS[1]
    assert core.status().round == 1
    one_round(core, 2, 2.0)
    assert core.status().round == 2


def test_commit_is_durable_before_it_is_told() -> None:
    core = alone()
    actions = one_round(core, 1, 1.0)
    kinds = [type(one) for one in actions]
    assert Persist in kinds[: kinds.index(Committed)]


def test_restart_resumes_the_round_from_the_record() -> None:
    core = alone()
    records = [one for one in one_round(core, 1, 1.0) if isinstance(one, Persist)]
    again = PeerCore(CONFIG, ME, "me", "h:1", b"c" * 16, records[-1].record, 2)
    joined = only(again.start(5.0, found=False), Joined)
    assert joined and again.status().round == 1
    # Its checkpoint is one round old, and nobody else has a newer one: back to round 0.
    again.handle(StateHeld(0, ROOTS[0]), 5.1)
    for step in range(20):
        again.handle(Tick(), 5.2 + step / 2)
    assert again.status().round == 0


def test_contribution_for_another_round_is_ignored() -> None:
    core = alone()
    assert not only(core.handle(Contribute(2, 100, ()), 1.0), StartReduce)
    assert not only(core.handle(Contribute(0, 100, ()), 1.0), StartReduce)


def test_failed_attempt_is_retried_with_a_higher_number() -> None:
    core = alone()
    (first,) = only(core.handle(Contribute(1, 100, ()), 1.0), StartReduce)
    assert isinstance(first, StartReduce)
    core.handle(ReduceFailed(1, first.attempt, None, "a stream broke"), 1.1)
    later: list[Action] = []
    for step in range(20):
        later += core.handle(Tick(), 1.2 + step / 5)
    (second,) = only(later, StartReduce)
    assert isinstance(second, StartReduce)
    assert second.attempt > first.attempt
    assert second.contributions == first.contributions
    # The late result of the first attempt changes nothing.
    assert not only(core.handle(Reduced(1, first.attempt, ROOTS[1]), 6.0), Committed)


def test_attempt_that_takes_too_long_is_called_off() -> None:
    core = alone()
    core.handle(Contribute(1, 100, ()), 1.0)
    assert only(core.handle(Tick(), 1.0 + CONFIG.reduce_timeout_s + 1), AbortReduce)


def test_samples_that_were_not_leased_do_not_count() -> None:
    core = alone()
    (start,) = only(core.handle(Contribute(1, 100, (Range(90, 95),)), 1.0), StartReduce)
    assert isinstance(start, StartReduce) and start.contributions == ()


def test_leases_are_consumed_and_topped_up() -> None:
    core = alone()
    (start,) = only(core.handle(Contribute(1, 100, (Range(0, 4),)), 1.0), StartReduce)
    assert isinstance(start, StartReduce)
    (done,) = only(core.handle(Reduced(1, start.attempt, ROOTS[1]), 1.1), Committed)
    assert isinstance(done, Committed) and done.leases == (Range(4, 14),)


def test_durable_round_follows_the_checkpoints() -> None:
    core = alone()
    one_round(core, 1, 1.0)
    core.handle(Checkpointed(1), 1.5)
    one_round(core, 2, 2.0)
    assert core.status().durable_round == 1


def test_what_disks_keep_is_known_at_once() -> None:
    """Else a person's rollback would go to a round that no disk can give back any more."""
    core = alone()
    for number in (1, 2, 3):
        one_round(core, number, float(number))
        core.handle(Checkpointed(number, kept=(max(0, number - 1), number)), number + 0.5)
        state = core.replica.state
        assert state is not None
        kept = [one for one in range(4) if core.coordination[""].kept(state, one)]
        assert kept == [number - 1, number]


def test_stop_goes_into_the_next_round_and_ends_the_run() -> None:
    core = alone()
    core.handle(Stop("enough"), 0.5)
    (committed,) = only(one_round(core, 1, 1.0), Committed)
    assert isinstance(committed, Committed) and isinstance(committed.entry, RoundEntry)
    assert committed.entry.stop == "enough"
    assert not only(core.handle(Contribute(2, 100, ()), 2.0), StartReduce)


def test_last_one_leaves_at_once() -> None:
    core = alone()
    assert only(core.handle(Leave("done"), 1.0), Left)


def test_whose_open_work_is_dropped_with_missed_entries_hears_of_it() -> None:
    """A newcomer, which has the log only as a snapshot, may be quicker than the coordinator."""
    core = alone()
    before = core.replica.state
    assert before is not None
    core.handle(LinkUp(OTHER, "x", "h:2"), 1.0)
    lineage = before.view.lineage
    hello = m.Hello(bytes(32), b"f", b"n" * 16, 1, "x", "h:2", False, lineage, 0, 0, 0, ())
    core.handle(Received(OTHER, m.pack(hello)), 1.1)
    core.handle(Contribute(1, 100, ()), 1.2)
    view = View(lineage=lineage, epoch=before.view.epoch + 1, members=(ME, OTHER))
    after = apply(before, ViewEntry(view=view, reason="joins"))
    snapshot = m.Snapshot(after, None, ())
    actions = core.handle(Received(OTHER, m.pack(snapshot)), 1.3)
    told = [type(one) for one in actions if isinstance(one, AbortReduce | Evicted | Joined)]
    assert told == [AbortReduce, Evicted, Joined]
    later = ViewEntry(view=replace(view, epoch=view.epoch + 1), reason="again")
    snapshot = m.Snapshot(apply(after, later), None, ())
    actions = core.handle(Received(OTHER, m.pack(snapshot)), 1.4)
    assert only(actions, Joined) and not only(actions, Evicted), "there was nothing to drop"


def test_garbage_closes_the_link_and_nothing_else() -> None:
    core = alone()
    core.handle(LinkUp(OTHER, "x", "h:2"), 1.0)
    actions = core.handle(Received(OTHER, b"\xc1garbage"), 1.1)
    assert {type(one).__name__ for one in actions} == {"Fault", "CloseLink"}


def test_messages_before_the_greeting_are_not_heard() -> None:
    core = alone()
    core.handle(LinkUp(OTHER, "x", "h:2"), 1.0)
    ask = m.pack(m.JoinRequest("", 0))
    assert not only(core.handle(Received(OTHER, ask), 1.1), Send)


def test_older_process_of_an_identity_is_refused() -> None:
    core = alone()
    state = core.replica.state
    assert state is not None
    core.handle(LinkUp(OTHER, "x", "h:2"), 1.0)

    def hello(boot_seq: int) -> Received:
        greeting = m.Hello(
            bytes(32), b"f", b"n" * 16, boot_seq, "x", "h:2", False, "f" * 16, 0, 0, 0, ()
        )
        return Received(OTHER, m.pack(greeting))

    core.handle(hello(3), 1.1)
    actions = core.handle(hello(2), 1.2)
    assert "CloseLink" in {type(one).__name__ for one in actions}
