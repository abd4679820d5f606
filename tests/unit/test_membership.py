"""SWIM: probes, suspicion, refutation, short fuses for closed links."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from decentral.peer.context import Context, Peering
from decentral.peer.member import ALIVE, DEAD, LEFT, SUSPECT
from decentral.peer.membership import Membership
from decentral.peer.messages import Gossip, PingAck, PingReq, Update, unpack
from decentral.peer.protocol import CoreConfig, Dial, Probe, Send
from decentral.peer.suspicion import timeout_s
from decentral.simulator.world import peer_id

ME, A, B, C, D = (peer_id(index) for index in range(5))


class Bench:
    """One membership with its clock in our hands."""

    def __init__(self, *linked: str) -> None:
        config = CoreConfig(run=bytes(32), fingerprint=b"")
        self.ctx = Context(config, ME, "me", "h:0", b"b" * 16, Random(1))
        self.swim = Membership(self.ctx)
        self.sent: list[tuple[str, object]] = []
        for peer in linked:
            self.link(peer)
        self.drain()

    def link(self, peer: str, boot_seq: int = 1) -> None:
        self.ctx.links[peer] = Peering(self.ctx.now)
        self.swim.on_hello(peer, boot_seq, "n", f"{peer[5:9]}:1", everything=True)

    def drain(self) -> list[object]:
        self.swim.flush()
        out, self.ctx.out = self.ctx.out, []
        self.sent += [(one.peer, unpack(one.payload)) for one in out if isinstance(one, Send)]
        return [unpack(one.payload) if isinstance(one, Send) else one for one in out]

    def until(self, time: float, *, answer: tuple[str, ...] = ()) -> list[object]:
        """Let time pass; peers in `answer` ack their probes at once."""
        seen: list[object] = []
        while (due := self.swim.next_timer()) <= time:
            self.ctx.now = max(self.ctx.now, due)
            self.swim.tick(0.0)
            for one in self.drain():
                seen.append(one)
                if isinstance(one, Probe) and one.peer in answer:
                    self.swim.on_ack(one.peer, one.seq, one.suspected_incarnation + 1, 0)
        self.ctx.now = time
        return seen


def test_who_answers_stays_alive() -> None:
    bench = Bench(A, B)
    bench.until(20.0, answer=(A, B))
    assert bench.swim.state(A) == bench.swim.state(B) == ALIVE


def test_silence_asks_helpers_then_suspects_then_kills() -> None:
    bench = Bench(A, B, C)
    seen = bench.until(15.0, answer=(B, C))
    assert any(isinstance(one, PingReq) and one.target == A for one in seen)
    states = [u.state for one in seen if isinstance(one, Gossip) for u in one.updates]
    assert states.index(SUSPECT) < states.index(DEAD)
    assert bench.swim.state(A) == DEAD
    assert bench.swim.state(B) == ALIVE


def test_a_helper_that_reaches_it_saves_it() -> None:
    bench = Bench(A, B)
    for _ in range(40):
        for one in bench.until(bench.ctx.now + 0.25, answer=(B,)):
            if isinstance(one, PingReq):
                bench.swim.on_ping_ack(B, PingAck(A, one.seq, True, 1, 1, 0))
    assert bench.swim.state(A) in (ALIVE, SUSPECT)
    assert bench.swim.state(A) != DEAD


def test_the_helper_that_reached_it_is_asked_again() -> None:
    """Where a network is torn in a triangle, few of the helpers reach both sides."""
    others = [peer_id(index) for index in range(2, 22)]
    bench = Bench(A, *others)
    asked = 0
    for _ in range(400):
        bench.until(bench.ctx.now + 0.25, answer=tuple(others))
        requests = [(to, msg) for to, msg in bench.sent if isinstance(msg, PingReq)]
        bench.sent.clear()
        if requests:
            asked += 1
            assert asked == 1 or B in {to for to, _ in requests}
            bench.swim.on_ping_ack(B, PingAck(A, requests[0][1].seq, True, 1, 1, 0))
    assert asked > 2


def test_in_a_crowd_a_view_clears_those_who_were_called_dead_by_hearsay() -> None:
    crowd = (*(peer_id(index) for index in range(1, 200)), ME)
    bench = Bench()
    bench.swim = Membership(
        replace(bench.ctx, config=replace(bench.ctx.config, full_mesh_up_to=64))
    )
    near = set(bench.swim.links_wanted(crowd))
    far = next(peer for peer in crowd[100:] if peer not in near)
    close = next(peer for peer in crowd[100:] if peer in near)
    dead = tuple(Update(peer, 1, 1, DEAD, "", "") for peer in (far, close))
    for peer in (far, close):
        bench.swim.learn(peer, "", "")
    bench.swim.on_gossip(B, Gossip(dead))
    assert bench.swim.dead(far) and bench.swim.dead(close)
    bench.swim.vouched(crowd)
    assert not bench.swim.dead(far)
    assert bench.swim.dead(close), "of a neighbour we know better"


def test_suspect_refutes_with_a_higher_incarnation() -> None:
    bench = Bench(A, B, C)
    bench.swim.on_gossip(B, Gossip((Update(A, 1, 1, SUSPECT, "", ""),)))
    assert bench.swim.state(A) == SUSPECT
    probes = [one for one in bench.drain() if isinstance(one, Probe) and one.peer == A]
    assert probes and probes[0].suspected_incarnation == 1
    bench.swim.on_ack(A, probes[0].seq, 2, 0)
    assert bench.swim.state(A) == ALIVE
    # The old accusation is void now.
    bench.swim.on_gossip(B, Gossip((Update(A, 1, 1, DEAD, "", ""),)))
    assert bench.swim.state(A) == ALIVE


def test_closed_link_is_a_short_fuse_with_a_witness() -> None:
    bench = Bench(A, B, C)
    bench.ctx.links.pop(A)
    bench.swim.on_link_down(A, closed=True, lived_s=60.0)
    assert any(isinstance(one, Dial) and one.peer == A for one in bench.drain())
    bench.swim.on_gossip(B, Gossip((Update(A, 1, 1, SUSPECT, "", ""),)))
    bench.until(0.39, answer=(B, C))
    assert bench.swim.state(A) == SUSPECT
    bench.until(0.45, answer=(B, C))
    assert bench.swim.state(A) == DEAD


def test_closed_link_that_only_we_saw_gets_the_long_fuse() -> None:
    bench = Bench(A, B, C)
    bench.ctx.links.pop(A)
    bench.swim.on_link_down(A, closed=True, lived_s=60.0)
    bench.until(1.0, answer=(B, C))
    assert bench.swim.state(A) == SUSPECT


def test_refused_dial_and_a_second_witness_kill_at_once() -> None:
    bench = Bench(A, B, C)
    bench.ctx.links.pop(A)
    bench.swim.on_link_down(A, closed=True, lived_s=60.0)
    bench.swim.on_dial_failed(A, refused=True)
    assert bench.swim.state(A) == SUSPECT
    bench.swim.on_gossip(B, Gossip((Update(A, 1, 1, SUSPECT, "", ""),)))
    assert bench.swim.state(A) == DEAD


def test_a_new_start_of_the_dead_is_alive() -> None:
    bench = Bench(A, B)
    bench.swim.on_gossip(B, Gossip((Update(A, 1, 5, DEAD, "", ""),)))
    assert bench.swim.state(A) == DEAD
    bench.link(A, boot_seq=2)
    assert bench.swim.state(A) == ALIVE


def test_who_left_is_neither_dead_nor_dialled() -> None:
    bench = Bench(A, B)
    bench.swim.left(A, 1)
    bench.ctx.links.pop(A)
    bench.swim.on_link_down(A, closed=True, lived_s=60.0)
    seen = bench.until(30.0, answer=(B,))
    assert bench.swim.state(A) == LEFT
    assert not any(isinstance(one, Dial) for one in seen)


def test_who_was_no_member_is_looked_for_once_and_only_by_whoever_is_alone() -> None:
    bench = Bench(B)
    bench.swim.recall(A, "a", "a:1")
    assert not any(isinstance(one, Dial) for one in bench.until(30.0, answer=(B,)))
    bench.swim.want((A,), 0.0, left=True)
    assert [one.peer for one in bench.until(31.0, answer=(B,)) if isinstance(one, Dial)] == [A]
    bench.swim.on_dial_failed(A, refused=True)
    assert not any(isinstance(one, Dial) for one in bench.until(90.0, answer=(B,)))
    bench.link(A, boot_seq=2)
    assert bench.swim.state(A) == ALIVE


def test_who_has_been_away_for_long_is_dialled_ever_more_rarely() -> None:
    bench = Bench(A, B)
    bench.ctx.links.pop(A)
    bench.swim.on_link_down(A, closed=False, lived_s=60.0)
    dials = [0]
    for minute in range(1, 61):
        seen = bench.until(60.0 * minute, answer=(B,))
        dials.append(dials[-1] + sum(isinstance(one, Dial) for one in seen))
    assert dials[1] >= 5, "soon while it has only just gone"
    assert dials[60] <= 40, "a run remembers everybody it ever met"
    bench.link(A, boot_seq=2)
    bench.ctx.links.pop(A)
    bench.swim.on_link_down(A, closed=False, lived_s=60.0)
    seen = bench.until(3660.0, answer=(B,))
    assert sum(isinstance(one, Dial) for one in seen) >= 5, "it was back"


def test_after_a_stall_of_our_own_nobody_is_condemned_at_once() -> None:
    bench = Bench(A, B, C)
    bench.swim.on_gossip(B, Gossip((Update(A, 1, 1, SUSPECT, "", ""),)))
    bench.ctx.now = 30.0
    bench.swim.tick(late_s=28.0)
    assert bench.swim.state(A) == SUSPECT


def test_large_meshes_tell_a_few_at_a_time() -> None:
    bench = Bench(*(peer_id(index) for index in range(1, 100)))
    bench.ctx.now = 1.0
    bench.swim.on_gossip(B, Gossip((Update(A, 1, 1, DEAD, "", ""),)))
    bench.swim.flush()
    told = [one for one in bench.ctx.out if isinstance(one, Send)]
    assert 0 < len(told) < 10


def test_confirmations_shorten_suspicion() -> None:
    waits = [timeout_s(2.0, heard, 2, 0) for heard in range(3)]
    assert waits[0] == 6.0 and waits[2] == 2.0
    assert waits[0] > waits[1] > waits[2]
    assert timeout_s(2.0, 2, 2, 1) == 4.0
