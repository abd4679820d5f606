"""Whom a round waits for, and whom it goes on without: the coordinator alone, offers by hand."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from decentral.peer.context import Context, Peering
from decentral.peer.coordinator import Coordinator
from decentral.peer.evictions import APART_S, UNLINKED_S, Evictions
from decentral.peer.member import ALIVE
from decentral.peer.messages import Close, Failed, Offer, Start, unpack
from decentral.peer.patience import MIN_GRACE_S, NEWCOMERS_S
from decentral.peer.protocol import CoreConfig, RoundEntry, Send, ViewEntry
from decentral.peer.replica import Replica
from decentral.peer.views_log import apply, founding_state
from decentral.simulator.world import peer_id
from decentral.types import PeerId, View

ME, A, B, C, D = PEERS = tuple(peer_id(index) for index in range(5))


class Everybody:
    """A membership in which nobody dies."""

    def state(self, peer: PeerId) -> int:
        return ALIVE

    def stalled_s(self, peer: PeerId) -> float:
        return 0.0


class Bench:
    """Five members; all but the coordinator are heard of by what they offer."""

    def __init__(self) -> None:
        config = CoreConfig(run=bytes(32), fingerprint=b"")
        self.ctx = Context(config, ME, "", "", b"b" * 16, Random(1))
        self.ctx.links = {one: Peering(0.0) for one in PEERS if one != ME}
        self.replica = Replica(self.ctx, self, tuple, tuple)
        state = founding_state(bytes(32), ME, b"b" * 16, 0)
        state = replace(state, scopes=(replace(state.scope(""), root=bytes(32)),))
        view = View(lineage=state.view.lineage, epoch=1, members=PEERS)
        self.state = self.replica.state = apply(state, ViewEntry(view=view, reason="all join"))
        self.evictions = Evictions(self.ctx, self.replica)
        self.coordinator = Coordinator(
            self.ctx,
            self.replica,
            Everybody(),  # type: ignore[arg-type]
            self.evictions,
            "",
        )

    def committed(self, slot: int, entry: object, before: object, after: object) -> None: ...

    def installed(self, before: object, after: object) -> None: ...

    def offer(self, *peers: PeerId, ready: bool = True, unlinked: tuple[PeerId, ...] = ()) -> None:
        scope = self.state.scope("")
        for peer in peers:
            offer = Offer(
                lineage=self.state.view.lineage, slot=self.state.slot, tag="", takes=True,
                round=scope.round + 1, ready=ready, tokens=10, staleness=0, steps=1, leases=(),
                step_ms=10, attempt_seen=0, unlinked=unlinked, held_known=True,
                held_round=scope.round, held_root=scope.root, durable_round=0, kept=(), stop="",
            )  # fmt: skip
            self.coordinator.on_offer(peer, offer)

    def drive(self, now: float, gone: PeerId | None = None) -> tuple[PeerId, ...]:
        """Who takes part in the attempt that begins, if one does."""
        self.ctx.now, self.ctx.out = now, []
        self.coordinator.drive(self.state, frozenset(self.state.view.members) - {gone})
        for one in self.ctx.out:
            if isinstance(one, Send) and isinstance(start := unpack(one.payload), Start):
                return start.participants
        return ()

    def closed(self) -> set[PeerId]:
        """Who was told just now that all others wait for it."""
        sent = [one for one in self.ctx.out if isinstance(one, Send)]
        return {one.peer for one in sent if isinstance(unpack(one.payload), Close)}

    def fail(self, suspect: PeerId) -> None:
        attempt = self.coordinator.attempt
        assert attempt is not None
        lineage = self.state.view.lineage
        failed = Failed(lineage, "", attempt.round, attempt.number, attempt.number, suspect, "no")
        self.coordinator.on_failed(A, failed)

    def fail_twice(self, suspect: PeerId) -> float:
        """Two attempts of all; when the next one may begin."""
        self.offer(*PEERS)
        for now in (1.0, 11.0):
            assert self.drive(now) == PEERS
            self.fail(suspect)
        return 21.0

    def commit(self) -> None:
        attempt = self.coordinator.attempt
        assert attempt is not None
        entry = RoundEntry(
            round=attempt.round, attempt=attempt.number, contributions=attempt.contributions,
            state_root=bytes([attempt.round]) * 32, durable_round=0,
        )  # fmt: skip
        self.state = self.replica.state = apply(self.state, entry)
        self.coordinator.new_round()
        self.evictions.moved()


def test_a_round_waits_for_everybody_who_can_take_part() -> None:
    bench = Bench()
    bench.offer(ME, A, B, C)
    bench.offer(D, ready=False)
    assert bench.drive(1.0) == bench.drive(10.0) == ()
    bench.offer(D)
    assert bench.drive(11.0) == PEERS


def test_a_round_goes_on_without_whoever_has_not_been_linked_to_all_for_a_second() -> None:
    bench = Bench()
    bench.offer(ME, A, B)
    bench.offer(C, unlinked=(D,))
    bench.offer(D, unlinked=(C,))
    assert bench.drive(APART_S - 0.1) == (), "links may come in a moment"
    assert bench.drive(APART_S + 0.1) == (ME, A, B, C), "one of the two ends is enough to drop"


def test_less_than_half_do_not_go_on_alone() -> None:
    bench = Bench()
    bench.offer(ME)
    for peer in (A, B, C, D):
        bench.offer(peer, unlinked=tuple({A, B, C, D} - {peer}))
    bench.drive(0.0)
    assert bench.drive(APART_S + 1.0) == ()


def test_nobody_waits_for_the_view_to_lose_who_is_gone() -> None:
    bench = Bench()
    bench.offer(ME, A, B, C, unlinked=(D,))
    bench.offer(D)
    assert bench.drive(0.1, gone=D) == (ME, A, B, C)


def with_newcomer() -> tuple[Bench, PeerId]:
    """After a round of the five, a sixth has entered."""
    bench = Bench()
    bench.offer(*PEERS)
    assert bench.drive(1.0) == PEERS
    bench.commit()
    newcomer = peer_id(9)
    view = replace(bench.state.view, epoch=2, members=(*PEERS, newcomer))
    bench.state = bench.replica.state = apply(bench.state, ViewEntry(view=view, reason="joins"))
    return bench, newcomer


def test_a_newcomer_without_links_holds_nobody_up() -> None:
    bench, newcomer = with_newcomer()
    bench.offer(*PEERS)
    bench.offer(newcomer, unlinked=(D,))
    assert bench.drive(2.0) == PEERS


def test_a_newcomer_without_work_is_waited_for_only_a_moment() -> None:
    bench, newcomer = with_newcomer()
    bench.offer(newcomer, ready=False)
    bench.offer(*PEERS[:4])
    assert bench.drive(2.0) == ()
    bench.offer(D)
    assert bench.drive(10.0) == bench.drive(10.0 + NEWCOMERS_S - 0.1) == ()
    assert bench.coordinator.next_timer() == 10.0 + NEWCOMERS_S
    assert bench.drive(10.0 + NEWCOMERS_S) == PEERS


def test_stragglers_of_the_very_first_round_are_hurried_whatever_the_clock_says() -> None:
    bench = Bench()
    bench.offer(D, ready=False)
    assert bench.drive(1e6) == ()
    bench.offer(ME, A, B, C)
    assert bench.drive(1e6 + 0.5) == () and not bench.closed()
    at = bench.coordinator.next_timer()
    assert at == 1e6 + 0.5 + MIN_GRACE_S
    assert bench.drive(at) == () and bench.closed() == {D}


def test_a_timer_that_has_run_out_does_so_once() -> None:
    bench = Bench()
    bench.offer(ME, A, B, C)
    bench.drive(1.0)
    bench.ctx.now = 10.0
    assert bench.coordinator.due() and not bench.coordinator.due()


def test_whoever_two_attempts_fail_because_of_is_left_out_and_tried_again() -> None:
    bench = Bench()
    now = bench.fail_twice(D)
    assert bench.drive(now) == (ME, A, B, C)
    bench.commit()
    bench.offer(*PEERS)
    assert bench.drive(now + 1.0) == PEERS, "it may have recovered"
    bench.fail(D)
    assert bench.drive(now + 10.0) == (ME, A, B, C), "once is enough now"
    bench.commit()
    assert bench.evictions.due == {}
    bench.offer(*PEERS)
    assert bench.drive(now + 20.0) == PEERS
    bench.fail(D)
    assert list(bench.evictions.due) == [D], "three rounds in a row without it"


def test_who_takes_part_again_is_trusted_again() -> None:
    bench = Bench()
    now = bench.fail_twice(D)
    for expected in ((ME, A, B, C), PEERS):
        bench.offer(*PEERS)
        assert bench.drive(now) == expected
        bench.commit()
        now += 1.0
    bench.offer(*PEERS)
    assert bench.drive(now) == PEERS
    bench.fail(D)
    assert bench.drive(now + 10.0) == PEERS


def test_a_new_coordinator_does_not_blame_itself_for_those_out_of_its_reach() -> None:
    bench = Bench()
    bench.offer(ME, unlinked=(C, D))
    bench.ctx.now = UNLINKED_S - 1.0
    bench.offer(A, B, unlinked=(C, D))
    bench.ctx.now = UNLINKED_S + 0.1
    bench.evictions.find_unlinked(bench.state, frozenset({ME, A, B}))
    assert set(bench.evictions.due) < {C, D}


def test_who_most_others_cannot_link_to_goes() -> None:
    bench = Bench()
    bench.offer(A, unlinked=(B, C))
    bench.offer(D, unlinked=(A,))
    bench.ctx.now = UNLINKED_S + 0.1
    bench.evictions.find_unlinked(bench.state, frozenset(PEERS))
    assert set(bench.evictions.due) == {A}
