"""Which schedule a crowd takes for small sums: streams between all pairs are dear to make anew."""

from __future__ import annotations

from decentral.collectives.cost import CROWD, SMALL_BYTES, choose
from decentral.collectives.network import Network


def test_a_crowd_of_near_ones_takes_the_tree_for_small_sums_only() -> None:
    small, near = SMALL_BYTES // 4, Network.uniform(CROWD + 1)
    assert choose(near, small).schedule == "tree"
    assert choose(near, 64 * small).schedule != "tree"
    assert choose(Network.uniform(CROWD), small).schedule != "tree"
    assert choose(Network.uniform(CROWD + 1, rtt_s=0.02), small).schedule != "tree"
    assert choose(near, small, allowed=("ring", "butterfly")).schedule != "tree"
