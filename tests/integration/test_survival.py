"""Peers die at any moment; the others go on, hold the same bits, and lose nothing acknowledged."""

from __future__ import annotations

import signal
import statistics
import time

import pytest
from processes import Peers, same_bits, until

from decentral.cli.processes import PeerProcess

#: Where in a round the kill falls, as a fraction of the round's period: before, during and after
#: the reduce, which is the last part of it.
INSTANTS = (0.05, 0.3, 0.6, 0.8, 0.9, 0.95, 0.98, 1.0, 1.02, 1.1)


def period_s(peer: PeerProcess) -> float:
    return statistics.median([event["seconds"] for event in peer.events("round")][-8:])


@pytest.mark.slow
@pytest.mark.timeout(420)
def test_sigkill_at_ten_instants(peers: Peers) -> None:
    """The first peer, which made the run, is the first to die: there is no master."""
    group = peers.group(4)
    acknowledged: dict[int, str] = {}
    for number, instant in enumerate(INSTANTS):
        undisturbed_s = period_s(group[1])
        victim, survivors = group[0], group[1:]
        start = victim.round
        victim.wait_round(start + 1, timeout_s=30)
        time.sleep(undisturbed_s * instant)
        for event in victim.events("round"):
            acknowledged[event["round"]] = event["state_hash"]
        before = max(peer.round for peer in survivors)
        killed_at = time.monotonic()
        victim.kill()
        for peer in survivors:
            event = peer.wait_round(before + 2, timeout_s=30)
            took_s = event["seen_at"] - killed_at
            assert took_s < 5 + 2 * undisturbed_s, f"instant {instant}: {peer.name} took {took_s}"
        same_bits(survivors, before + 2)
        # What the dead one acknowledged, the survivors hold: the same round, the same bits (I2).
        for round_, state_hash in acknowledged.items():
            for peer in survivors:
                theirs = [e["state_hash"] for e in peer.events("round") if e["round"] == round_]
                assert theirs in ([], [state_hash]), f"round {round_} of {victim.name} is lost"
        newcomer = peers.start(f"peer-{5 + number}", "--join", survivors[0].invite())
        newcomer.wait_for("round", timeout_s=60, where=lambda event: event["participants"] == 4)
        group = [*survivors, newcomer]


def test_two_peers_one_dies_and_comes_back(peers: Peers) -> None:
    first, word = peers.first("--quorum-timeout", "3")
    second = peers.start("peer-2", "--join", word, "--quorum-timeout", "3")
    for peer in (first, second):
        peer.wait_for("round", timeout_s=60, where=lambda event: event["participants"] == 2)
    lineage = second.last("round")["lineage"]
    first.kill()
    fork = second.wait_for("fault", timeout_s=20, where=lambda event: event["kind"] == "fork")
    assert "lineage" in fork["says"]
    alone = second.wait_for("round", timeout_s=20, where=lambda event: event["participants"] == 1)
    assert alone["lineage"] != lineage
    back = peers.start("peer-1-again", "--quorum-timeout", "3", home=first.home)
    event = back.wait_for("round", timeout_s=60, where=lambda event: event["participants"] == 2)
    same_bits([second, back], event["round"])
    assert event["lineage"] == alone["lineage"]


def test_late_joiner_does_not_hold_the_others_up(peers: Peers) -> None:
    group = peers.group(3)
    group[0].wait_round(group[0].round + 5, timeout_s=60)
    undisturbed_s = period_s(group[0])
    late = peers.start("late", "--join", group[2].invite())
    event = late.wait_for("round", timeout_s=60)
    same_bits([*group, late], event["round"])
    late.wait_round(event["round"] + 3, timeout_s=60)
    slowest_s = max(e["seconds"] for e in group[0].events("round")[5:])
    # One round of pause at most; half a second for a machine that also starts an interpreter.
    assert slowest_s < 2 * undisturbed_s + 0.5, f"{slowest_s} against {undisturbed_s}"


def test_stop_everything_and_start_again(peers: Peers) -> None:
    group = peers.group(3)
    group[0].wait_round(group[0].round + 3, timeout_s=30)
    for peer in group:
        peer.send(signal.SIGTERM)
    for peer in group:
        assert peer.process.wait(30) == 0, peer.stderr()
    last = max(
        (peer.last("round") for peer in group if peer.last("round")),
        key=lambda event: event["round"],
    )
    again = [peers.start(f"again-{n}", home=peer.home) for n, peer in enumerate(group)]
    firsts = [peer.wait_for("joined", timeout_s=60) for peer in again]
    assert min(event["round"] for event in firsts) >= last["round"]
    rounds = [
        peer.wait_for("round", timeout_s=60, where=lambda event: event["participants"] == 3)
        for peer in again
    ]
    same_bits(again, max(event["round"] for event in rounds))


def test_everybody_is_killed_and_starts_again(peers: Peers) -> None:
    group = peers.group(3)
    group[0].wait_round(group[0].round + 5, timeout_s=30)
    for peer in group:
        peer.kill()
    durable = max(event["durable_round"] for peer in group for event in peer.events("round"))
    hashes = {e["round"]: e["state_hash"] for peer in group for e in peer.events("round")}
    assert durable > 0
    again = [peers.start(f"again-{n}", home=peer.home) for n, peer in enumerate(group)]
    events = [
        peer.wait_for("round", timeout_s=60, where=lambda event: event["participants"] == 3)
        for peer in again
    ]
    assert min(event["round"] for event in events) > durable
    same_bits(again, max(event["round"] for event in events))
    for peer in again:
        joined = peer.last("joined")
        assert joined["round"] >= durable
        assert joined["state_hash"] == hashes[joined["round"]]


def test_a_stopped_peer_is_left_behind_and_rejoins(peers: Peers) -> None:
    group = peers.group(3)
    group[2].send(signal.SIGSTOP)
    stopped_at = time.monotonic()
    before = group[0].round
    event = group[0].wait_for(
        "round", timeout_s=30, where=lambda e: e["round"] > before + 1 and e["participants"] == 2
    )
    assert event["seen_at"] - stopped_at < 12
    group[2].send(signal.SIGCONT)
    back = group[2].wait_for(
        "round",
        timeout_s=60,
        where=lambda e: e["round"] > event["round"] and e["participants"] == 3,
    )
    same_bits(group, back["round"])


def test_forked_data_workers_do_not_keep_a_dead_peer_alive(peers: Peers) -> None:
    group = peers.group(3, env={"TINY_NUM_WORKERS": "2"})
    victim = group[1]
    before = group[0].round
    killed_at = time.monotonic()
    victim.kill()  # its two DataLoader workers live on for a while, and hold no socket of ours
    for peer in (group[0], group[2]):
        event = peer.wait_for(
            "round", timeout_s=20, where=lambda e: e["round"] > before and e["participants"] == 2
        )
        assert event["seen_at"] - killed_at < 5
    until(
        lambda: all(
            any(e["kind"] == "peer-died" for e in p.events("fault")) for p in (group[0], group[2])
        ),
        timeout_s=5,
        says="the survivors name the dead peer",
    )
