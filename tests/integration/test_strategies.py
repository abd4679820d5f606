"""Every strategy between real processes: equal bits, a peer that dies, one that comes late."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
from processes import Peers, until

from decentral.cli.processes import PeerProcess

STRATEGIES = {
    "data-parallel": "DataParallel()",
    "streaming": "StreamingDiLoCo(sync_every=12, fragments=2, overlap_steps=3)",
    "eager": "AsyncDiLoCo(sync_every=10)",
    "delayed": "AsyncDiLoCo(sync_every=10, variant='delayed', codec='int8')",
    "decoupled": "DecoupledDiLoCo(sync_every=12, fragments=2, min_contributors=2, grace_s=0.2)",
    "sparse": "SparseLoCo(sync_every=10)",
    "sign": "DiLoCo(sync_every=10, codec='sign')",
}


def hashes(peer: PeerProcess) -> dict[tuple[str, int], str]:
    """By (tag, round)."""
    return {(e.get("tag", ""), e["round"]): e["state_hash"] for e in peer.events("round")}


def shared(peers: Sequence[PeerProcess]) -> set[tuple[str, int]]:
    return set.intersection(*(set(hashes(peer)) for peer in peers))


def agree(peers: Sequence[PeerProcess]) -> None:
    for key in shared(peers):
        assert len({hashes(peer)[key] for peer in peers}) == 1, f"different bits after {key}"


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES.keys())
def test_a_strategy_survives_a_death_and_takes_in_a_latecomer(peers: Peers, strategy: str) -> None:
    # Rounds of one step should not be all overhead.
    step_s = "0.1" if strategy.startswith("DataParallel") else "0.03"
    env = {"TINY_STRATEGY": strategy, "TINY_STEP_S": step_s}
    first, word = peers.first(env=env)
    others = [peers.start(f"peer-{n}", "--join", word, env=env) for n in (2, 3)]
    group = [first, *others]
    until(lambda: len(shared(group)) >= 4, timeout_s=60, says="three peers train")
    first.kill()
    before = len(hashes(others[0]))
    until(lambda: len(hashes(others[0])) >= before + 4, timeout_s=60, says="the others go on")
    late = peers.start("late", "--join", others[1].invite(), env=env)
    group = [*others, late]
    until(lambda: len(shared(group)) >= 4, timeout_s=60, says="the latecomer trains")
    agree(group)
    # Its work counts: with all three in, some round has three contributions.
    until(
        lambda: any(event["participants"] == 3 for event in late.events("round")),
        timeout_s=30,
        says="a round counts all three",
    )
    agree(group)


@pytest.mark.slow
def test_nobody_waits_for_a_peer_that_is_ten_times_slower(peers: Peers) -> None:
    strategy = "DecoupledDiLoCo(sync_every=20, min_contributors=2, grace_s=0.05)"
    env = {"TINY_STRATEGY": strategy, "TINY_STEP_S": "0.02"}
    first, word = peers.first(env=env)
    second = peers.start("peer-2", "--join", word, env=env)
    slow = peers.start("slow", "--join", word, env=env | {"TINY_STEP_S": "0.2"})
    group = [first, second, slow]
    until(lambda: len(shared(group)) >= 3, timeout_s=60, says="three peers train")
    began, rounds = time.monotonic(), first.round
    until(lambda: first.round >= rounds + 12, timeout_s=60, says="the quick ones go on")
    each_s = (time.monotonic() - began) / 12
    # A round of the slow peer's own would take 4 s, one of the quick ones 0.4 s and the grace.
    assert each_s < 2.0, f"a round took {each_s:.2f} s"
    # It is not left out either: dynamic steps let it contribute what it has.
    until(
        lambda: any(event["participants"] == 3 for event in first.events("round")[-12:]),
        timeout_s=30,
        says="the slow one's work is counted",
    )
    agree(group)
