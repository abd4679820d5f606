"""State between real processes whose links are slow and whose rounds do not wait."""

from __future__ import annotations

from processes import Peers, same_bits, until

WIDTH = 700
STATE_BYTES = 8 * WIDTH * WIDTH
SLOW = {"TINY_WIDTH": str(WIDTH), "TINY_CODEC": "int8", "TINY_STEP_S": "0.1", "TINY_STEPS": "8"}


def test_a_joiner_replays_the_rounds_committed_during_its_fetch(peers: Peers) -> None:
    """The state takes the members some rounds to send. Without replay each of these would have it
    fetched again, and the joiner would get in only where the others wait for it."""
    first, word = peers.first("--max-upload", "8", env=SLOW)
    second = peers.start("peer-2", "--join", word, "--max-upload", "8", env=SLOW)
    members = [first, second]
    for peer in members:
        peer.wait_for("round", timeout_s=60, where=lambda event: event["participants"] == 2)
    joiner = peers.start("peer-3", "--join", word, env=SLOW)
    joiner.wait_for("link", timeout_s=60)
    linked_at = first.round
    joined = joiner.wait_for("joined", timeout_s=60)
    assert joined["round"] > linked_at, "the fetch was quicker than a round: it shows nothing"
    one = joiner.wait_for("round", timeout_s=60, where=lambda event: event["participants"] == 3)
    traffic = one["bytes_received"]
    rounds = one["round"] - linked_at
    # The state, an eighth of it for each round meanwhile, and the first all-reduce.
    assert STATE_BYTES < traffic < STATE_BYTES * (1.6 + 0.15 * (rounds + 2)), (traffic, rounds)
    until(lambda: first.round > one["round"], timeout_s=30, says="another round")
    same_bits([*members, joiner], one["round"])
