"""Every schedule, on every network and size: plans fit together and sum what they should."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from decentral.collectives import reference
from decentral.collectives.network import Network
from decentral.collectives.plan import ALIGNMENT, Kind, Plan
from decentral.collectives.schedules import (
    SCHEDULES,
    all_gather,
    broadcast,
    butterfly,
    hierarchical,
    reduce_scatter,
    tree,
)
from decentral.collectives.schedules.segments import cut, even_segments
from decentral.collectives.schedules.shares import shares
from decentral.collectives.validate import Expect, validate

MBIT = 125_000
COUNTS = st.sampled_from([0, 1, 7, 255, 256, 257, 2048, 70_001]) | st.integers(0, 40_000_000)


@st.composite
def networks(draw: st.DrawFn, largest: int = 20) -> Network:
    members = draw(st.integers(1, largest))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    sites = draw(st.integers(1, members))
    return Network(
        up_bytes_s=tuple(10 ** generator.uniform(4, 9, members)),
        down_bytes_s=tuple(10 ** generator.uniform(4, 9, members)),
        rtt_s=generator.uniform(0, 0.3, (members, members)),
        sites=tuple(map(int, generator.integers(0, sites, members))),
    )


def equal(members: int, mbit: float = 1000) -> Network:
    return Network.uniform(members, mbit * MBIT)


def of(mbits: list[float], rtt_s: float = 0.001) -> Network:
    rates = tuple(mbit * MBIT for mbit in mbits)
    delays = np.full((len(rates), len(rates)), rtt_s)
    return Network(up_bytes_s=rates, down_bytes_s=rates, rtt_s=delays)


@settings(deadline=None)
@given(networks(), COUNTS, st.sampled_from([1, 256, 4096]))
@example(equal(16), 2048, 256)
@example(of([400, 400, 400, 100]), 16 << 20, 256)
@pytest.mark.parametrize("name", SCHEDULES)
def test_all_reduces_are_valid(name: str, network: Network, count: int, alignment: int) -> None:
    planner = SCHEDULES[name].plan
    plans = [planner(network, rank, count, alignment) for rank in range(network.members)]
    validate(plans, count=count, alignment=alignment)
    if SCHEDULES[name].encodes_once:
        for plan in plans:
            reduced = {s.segment for s in plan.steps if s.kind is Kind.RECV_REDUCE}
            assert not any(s.kind is Kind.SEND_PARTIAL and s.segment in reduced for s in plan.steps)


@settings(deadline=None)
@given(networks(), COUNTS, st.integers(0, 2**32))
def test_one_way_operations_are_valid(network: Network, count: int, seed: int) -> None:
    members = network.members
    inner = np.random.default_rng(seed).integers(0, count + 1, members - 1)
    cuts = sorted([0, count, *map(int, inner)])
    root = seed % members

    def check(expect: Expect, plan: Callable[[int], Plan]) -> None:
        validate([plan(rank) for rank in range(members)], expect, count=count)

    check(Expect.REDUCE_SCATTER, lambda rank: reduce_scatter.plan(network, rank, cuts))
    for gather in (all_gather.plan, all_gather.direct, all_gather.ring):
        check(Expect.GATHER, lambda rank, gather=gather: gather(network, rank, cuts))
    check(Expect.GATHER, lambda rank: broadcast.plan(network, rank, count, root=root))
    for degree in broadcast.degrees(members):
        check(
            Expect.GATHER,
            lambda rank, degree=degree: broadcast.tree(
                network, rank, count, root=root, degree=degree
            ),
        )
    if members > 1:
        check(Expect.GATHER, lambda rank: broadcast.spread(network, rank, count, 256, root=root))


@settings(deadline=None, max_examples=25)
@given(networks(9), st.sampled_from([0, 1, 7, 300, 4099, 40_000]), st.integers(0, 2**32))
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_reference_sums_what_plans_say(
    name: str, network: Network, count: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    sources = [
        generator.integers(-50, 50, count).astype(np.float32) for _ in range(network.members)
    ]
    plans = [SCHEDULES[name].plan(network, rank, count) for rank in range(network.members)]
    exact = np.sum(sources, axis=0, dtype=np.float64).astype(np.float32)
    for result in reference.execute(plans, sources):
        np.testing.assert_array_equal(result, exact)
    lossy = reference.execute(plans, sources, codec="int8")
    assert all(result.tobytes() == lossy[0].tobytes() for result in lossy)
    coarse = reference.execute(plans, sources, codec="fp32", final_codec="bf16")
    bf16 = reference.decode("bf16", reference.encode("bf16", exact), count)
    assert all(result.tobytes() == bf16.tobytes() for result in coarse)


@settings(deadline=None, max_examples=25)
@given(networks(9), st.integers(0, 3000), st.integers(0, 2**32))
def test_the_reference_runs_one_way_plans(network: Network, count: int, seed: int) -> None:
    members, generator = network.members, np.random.default_rng(seed)
    sources = [generator.integers(-50, 50, count).astype(np.float32) for _ in range(members)]
    cuts = sorted([0, count, *map(int, generator.integers(0, count + 1, members - 1))])
    parts = [slice(a, b) for a, b in itertools.pairwise(cuts)]
    ranks = range(members)
    exact = np.sum(sources, axis=0, dtype=np.float64).astype(np.float32)

    scattered = reference.execute(
        [reduce_scatter.plan(network, r, cuts) for r in ranks],
        sources,
        final_codec="int8",  # sums go nowhere: they must not be rounded
        scatter=True,
    )
    for part, result in zip(parts, scattered, strict=True):
        np.testing.assert_array_equal(result[part], exact[part])
    gathered = np.concatenate([source[part] for part, source in zip(parts, sources, strict=True)])
    for way in (all_gather.plan, all_gather.direct, all_gather.ring):
        for result in reference.execute([way(network, r, cuts) for r in ranks], sources):
            np.testing.assert_array_equal(result, gathered)
    root = seed % members
    for result in reference.execute(
        [broadcast.plan(network, r, count, root=root) for r in ranks], sources
    ):
        np.testing.assert_array_equal(result, sources[root])


# ---- trees


@given(st.integers(1, 300), st.integers(0, 1))
def test_trees_are_binary_shallow_and_agree_with_themselves(members: int, number: int) -> None:
    nodes = [tree.node(members, rank, number) for rank in range(members)]
    top = tree.root(members, number)
    assert [r for r in range(members) if nodes[r].parent is None] == [top]
    for rank, node in enumerate(nodes):
        assert len(node.children) <= 2
        assert all(nodes[child].parent == rank for child in node.children)
        assert node.depth <= members.bit_length() - 1
        if node.parent is not None:
            assert rank in nodes[node.parent].children
            assert node.depth == nodes[node.parent].depth + 1


@given(st.integers(1, 300))
def test_an_inner_node_of_one_tree_is_a_leaf_of_the_other(members: int) -> None:
    inner = [
        {rank for rank in range(members) if tree.node(members, rank, number).children}
        for number in (0, 1)
    ]
    assert not inner[0] & inner[1] or members == 1


def test_a_tiny_buffer_climbs_one_tree() -> None:
    plans = [tree.plan(equal(16), rank, 7) for rank in range(16)]
    assert {step.segment for plan in plans for step in plan.steps} == {0}


# ---- shares


def load(weights: list[float], rates: list[float]) -> float:
    """The slowest member's time per byte of the buffer."""
    return max((1 + (len(rates) - 2) * w) / rate for w, rate in zip(weights, rates, strict=True))


@given(st.lists(st.floats(1e3, 1e9), min_size=1, max_size=30))
def test_shares_are_shares_and_nothing_nearby_is_better(rates: list[float]) -> None:
    weights = shares(rates)
    assert sum(weights) == pytest.approx(1)
    assert min(weights) >= 0
    best = load(weights, rates)
    assert best <= load([1 / len(rates)] * len(rates), rates) * (1 + 1e-9)
    for giver, taker in itertools.permutations(range(len(rates)), 2):
        moved = list(weights)
        moved[giver] -= min(1e-3, moved[giver])
        moved[taker] += weights[giver] - moved[giver]
        assert load(moved, rates) >= best * (1 - 1e-9)


def test_a_slow_peer_owns_nothing_where_the_others_can_carry_it() -> None:
    assert shares([400, 400, 400, 100]) == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])
    assert shares([400, 400, 400, 300]) == pytest.approx([0.3, 0.3, 0.3, 0.1])
    assert shares([1, 1000]) == [0.5, 0.5]


def test_owners_send_and_receive_what_the_formula_says() -> None:
    network, count = of([400, 400, 400, 300]), 40 * ALIGNMENT
    for rank, weight in enumerate([0.3, 0.3, 0.3, 0.1]):
        plan = butterfly.plan(network, rank, count)
        sent = sum(plan.segments[s.segment].count for s in plan.steps if s.kind.is_send)
        assert sent == pytest.approx(count * (1 + 2 * weight))


def test_nobody_starts_with_the_same_owner() -> None:
    plans = [butterfly.plan(equal(8), rank, 1 << 20) for rank in range(8)]
    first = [next(step.peer for step in plan.steps if step.kind.is_send) for plan in plans]
    assert sorted(first) == list(range(8))


# ---- sites


def test_a_site_sends_the_buffer_over_the_wan_as_one_peer_would() -> None:
    sites = (0, 0, 0, 1, 1, 2, 2, 2, 2)
    network = Network(
        up_bytes_s=(1e8,) * 9, down_bytes_s=(1e8,) * 9, rtt_s=np.full((9, 9), 0.02),
        sites=sites, site_up_bytes_s=(1e7,) * 3, site_down_bytes_s=(1e7,) * 3,
    )  # fmt: skip
    count = 9 * 40 * ALIGNMENT
    abroad = dict.fromkeys(sites, 0)
    for rank, site in enumerate(sites):
        plan = hierarchical.plan(network, rank, count)
        for step in plan.steps:
            if step.kind.is_send and sites[step.peer] != site:
                abroad[site] += plan.segments[step.segment].count
    for sent in abroad.values():
        assert sent == pytest.approx(2 * 2 / 3 * count, rel=0.02)


def test_sites_of_one_make_it_a_butterfly() -> None:
    network = Network(
        up_bytes_s=(1e8, 2e8, 3e8), down_bytes_s=(1e8, 2e8, 3e8), rtt_s=np.zeros((3, 3)),
        sites=(0, 1, 2),
    )  # fmt: skip
    for rank in range(3):
        ours = hierarchical.plan(network, rank, 100_000)
        assert ours.segments == butterfly.plan(network, rank, 100_000).segments


# ---- one way, and cuts


def test_broadcasts_choose_by_size() -> None:
    network = Network.uniform(16, 1000 * MBIT, 0.02)
    small = [broadcast.plan(network, rank, 256) for rank in range(16)]
    assert len(small[0].steps) == 15  # a star: one hop
    large = [broadcast.plan(network, rank, 1 << 24) for rank in range(16)]
    for plan in large:
        sent = sum(plan.segments[s.segment].count for s in plan.steps if s.kind.is_send)
        assert sent <= 1 << 24


def test_an_all_gather_with_one_large_part_goes_round() -> None:
    network, large = equal(8), 1 << 24
    cuts = [0, large, *range(large + 8, large + 64, 8)]
    assert all_gather.plan(network, 0, cuts) == all_gather.ring(network, 0, cuts)
    even = [large * rank // 8 for rank in range(9)]
    assert all_gather.plan(network, 0, even) == all_gather.direct(network, 0, even)


def test_cuts_must_fit() -> None:
    for cuts in ([0, 1], [0, 2, 1, 3], [1, 2, 3, 4]):
        with pytest.raises(ValueError, match="ascending cuts"):
            reduce_scatter.plan(equal(3), 0, cuts)


@given(st.integers(0, 10**12), st.lists(st.floats(0.01, 1), min_size=1, max_size=40))
def test_cuts_tile_in_whole_blocks(count: int, weights: list[float]) -> None:
    offsets = cut(count, weights, 256)
    assert offsets[0] == 0 and offsets[-1] == count
    assert all(a <= b for a, b in itertools.pairwise(offsets))
    assert all(offset % 256 == 0 for offset in offsets if offset < count)


def test_even_segments_differ_by_one_block_at_most() -> None:
    assert [s.count for s in even_segments(4, 1000)] == [256, 256, 256, 232]


# ---- arguments


@pytest.mark.parametrize("name", SCHEDULES)
def test_no_plan_for_nonsense(name: str) -> None:
    for rank, count in ((2, 1), (-1, 1), (0, -1)):
        with pytest.raises(ValueError, match="no plan for rank"):
            SCHEDULES[name].plan(equal(2), rank, count)


def test_only_what_encodes_once_carries_codecs_that_cannot_be_summed() -> None:
    assert [s.name for s in SCHEDULES.values() if s.permits(rides_ring=False)] == ["butterfly"]
    assert all(s.permits(rides_ring=True) for s in SCHEDULES.values())
