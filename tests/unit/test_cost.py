"""Networks, what members tell each other about them, and what schedules cost on them."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decentral.collectives import loads
from decentral.collectives.codecs import codec_named
from decentral.collectives.cost import CROWD, SMALL_BYTES, Payload, choose, estimate_s
from decentral.collectives.measured import DEFAULT_BYTES_S, Row, network_from_rows
from decentral.collectives.network import Network, sites_from_rtt
from decentral.collectives.plan import Kind
from decentral.collectives.schedules import SCHEDULES

MBIT = 125_000
MIB = 1 << 20


def of(mbits: list[float], rtt_s: float = 0.001) -> Network:
    rates = tuple(mbit * MBIT for mbit in mbits)
    delays = np.full((len(rates), len(rates)), rtt_s)
    return Network(up_bytes_s=rates, down_bytes_s=rates, rtt_s=delays)


def drawn(members: int, seed: int = 0) -> Network:
    generator = np.random.default_rng(seed)
    sites = np.sort(generator.integers(0, max(1, members // 3), members))
    limits = tuple(10 ** generator.uniform(6, 9, members))[: max(sites) + 1]
    return Network(
        up_bytes_s=tuple(10 ** generator.uniform(6, 9, members)),
        down_bytes_s=tuple(10 ** generator.uniform(6, 9, members)),
        rtt_s=generator.uniform(0.001, 0.2, (members, members)),
        sites=tuple(map(int, sites)),
        site_up_bytes_s=limits,
        site_down_bytes_s=limits,
    )


# ---- networks


def test_networks_are_values() -> None:
    assert Network.uniform(3) == Network.uniform(3)
    assert hash(Network.uniform(3)) == hash(Network.uniform(3))
    assert len({Network.uniform(3), Network.uniform(3, 1e6), Network.uniform(4)}) == 3
    assert Network.uniform(3) != "a network"
    with pytest.raises(ValueError, match="read-only"):
        Network.uniform(3).rtt[0, 1] = 1


def test_own_numbers_are_those_that_others_will_read() -> None:
    exact = 0.1 + 0.2  # no float32
    network = Network(up_bytes_s=(exact,), down_bytes_s=(exact,), rtt_s=[[5.0]])
    assert network.up_bytes_s == (float(np.float32(exact)),)
    assert network.rtt[0, 0] == 0


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"up_bytes_s": ()}, "bandwidths where"),
        ({"up_bytes_s": (1.0, 0.0)}, "positive"),
        ({"up_bytes_s": (1.0, math.inf)}, "positive"),
        ({"up_bytes_s": (1.0, math.nan)}, "positive"),
        ({"rtt_s": [[0.0]]}, "square"),
        ({"rtt_s": [[0, -1], [1, 0]]}, "not negative"),
        ({"rtt_s": [[0, math.nan], [1, 0]]}, "finite"),
        ({"sites": (0, 7)}, "site numbers"),
        ({"sites": (0,)}, "site numbers"),
        ({"site_up_bytes_s": (1.0, 1.0)}, "bandwidths where"),
    ],
)
def test_what_is_no_network_is_refused(given: dict[str, object], says: str) -> None:
    good: dict[str, object] = {
        "up_bytes_s": (1.0, 1.0), "down_bytes_s": (1.0, 1.0), "rtt_s": [[0, 1], [1, 0]],
    }  # fmt: skip
    with pytest.raises(ValueError, match=says):
        Network(**{**good, **given})  # type: ignore[arg-type]


def test_a_subset_keeps_numbers_and_sites() -> None:
    network = drawn(9)
    part = network.subset([7, 2, 5])
    assert part.up_bytes_s == tuple(network.up_bytes_s[rank] for rank in (7, 2, 5))
    assert part.rtt[0, 2] == network.rtt[7, 5]
    assert (part.sites[0] == part.sites[1]) == (network.sites[7] == network.sites[2])
    assert part.site_up_bytes_s is not None and network.site_up_bytes_s is not None
    assert part.site_up_bytes_s[part.sites[2]] == network.site_up_bytes_s[network.sites[5]]
    assert network.subset(range(9)).rtt.tobytes() == network.rtt.tobytes()


def test_sites_are_stars_not_chains() -> None:
    def line(*places_ms: float) -> np.ndarray:
        at = np.array(places_ms) / 1e3
        return np.abs(at[:, None] - at[None, :])

    assert sites_from_rtt(line(0, 0.3, 30, 0.1, 30.2)) == (0, 0, 1, 0, 1)
    assert sites_from_rtt(line(0, 1.5, 3.0, 4.5)) == (0, 0, 1, 1)
    lopsided = line(0, 1, 50)
    lopsided[0, 1] = 0.4  # one direction saw a queue
    assert sites_from_rtt(lopsided) == (0, 0, 1)


# ---- rows


def row(*rtt_s: float, up: float = 1e6, down: float = 2e6) -> Row:
    return Row(up_bytes_s=up, down_bytes_s=down, rtt_s=rtt_s)


@given(st.lists(st.floats(0, 60, width=32), max_size=20), st.floats(100, 1e12))
def test_a_row_comes_back_as_it_went(delays: list[float], rate: float) -> None:
    sent = row(*delays, up=rate)
    assert Row.from_bytes(sent.to_bytes(), len(delays)) == sent


@given(st.binary(max_size=40), st.integers(0, 6))
def test_foreign_bytes_are_a_row_or_refused(data: bytes, members: int) -> None:
    try:
        got = Row.from_bytes(data, members)
    except ValueError:
        return
    assert len(got.rtt_s) == members
    if members == 1:
        assert network_from_rows([got]).members == 1


@pytest.mark.parametrize("data", [b"", bytes(15), np.array([1e6, -1, 0, 0], "<f4").tobytes()])
def test_rows_that_cannot_be_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"row of|bandwidth"):
        Row.from_bytes(data, 2)


def test_what_nobody_measured_is_guessed_and_the_shorter_delay_counts() -> None:
    nan = math.nan
    network = network_from_rows(
        [
            row(0, 0.020, nan, up=nan),
            row(0.010, 0, 0.050, up=3e6),
            row(nan, nan, 0, up=1e6, down=nan),
        ]
    )
    assert network.rtt[0, 1] == network.rtt[1, 0] == np.float32(0.010)
    assert network.rtt[1, 2] == network.rtt[2, 1] == np.float32(0.050)
    assert network.rtt[0, 2] == np.float32(0.050)  # the longest known
    assert network.up_bytes_s == (1e6, 3e6, 1e6)
    nothing = network_from_rows([row(0, nan, up=nan, down=nan)] * 2)
    assert nothing.up_bytes_s == (DEFAULT_BYTES_S,) * 2


# ---- loads: closed forms against what plans send


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 14), st.integers(0, 2**32), st.integers(0, 300_000))
@pytest.mark.parametrize("name", SCHEDULES)
def test_loads_are_what_plans_send(name: str, members: int, seed: int, count: int) -> None:
    network = drawn(members, seed)
    load = getattr(loads, name)(network, Payload(count=count))
    sites = network.sites
    abroad = {kind: [0] * (max(sites) + 1) for kind in Kind}
    for rank in range(members):
        plan = SCHEDULES[name].plan(network, rank, count)
        moved = dict.fromkeys(Kind, 0)
        for step in plan.steps:
            elements = plan.segments[step.segment].count
            moved[step.kind] += elements
            if sites[step.peer] != sites[rank]:
                abroad[step.kind][sites[rank]] += elements
        assert load.up.partial[rank] == moved[Kind.SEND_PARTIAL]
        assert load.up.final[rank] == moved[Kind.SEND_FINAL]
        assert load.down.partial[rank] == moved[Kind.RECV_REDUCE]
        assert load.down.final[rank] == moved[Kind.RECV_FINAL]
    assert list(load.site_up.partial) == abroad[Kind.SEND_PARTIAL]
    assert list(load.site_up.final) == abroad[Kind.SEND_FINAL]
    assert list(load.site_down.partial) == abroad[Kind.RECV_REDUCE]
    assert list(load.site_down.final) == abroad[Kind.RECV_FINAL]


# ---- choices


def test_unequal_links_get_a_butterfly_close_to_the_bound() -> None:
    """Three peers at 400 Mbit/s, one at 100: it must send and receive the buffer once."""
    network, size = of([400, 400, 400, 100]), 64 * MIB
    choice = choose(network, size // 4)
    bound_s = size / (100 * MBIT)
    assert choice.schedule == "butterfly"
    assert choice.seconds["butterfly"] < 1.1 * bound_s
    assert choice.seconds["ring"] > 1.3 * choice.seconds["butterfly"]


def test_small_buffers_take_few_hops() -> None:
    choice = choose(Network.uniform(16, 1000 * MBIT, 0.02), 8192 // 4)
    assert choice.seconds["tree"] <= 0.5 * choice.seconds["ring"]
    assert min(choice.seconds.values()) == pytest.approx(choice.seconds[choice.schedule], rel=0.02)
    assert choice.seconds[choice.schedule] <= 0.25 * choice.seconds["ring"]


def test_sites_behind_one_uplink_cross_it_once() -> None:
    rtt_s = [[0.0005 if a // 4 == b // 4 else 0.03 for b in range(16)] for a in range(16)]
    network = Network(
        up_bytes_s=(1000 * MBIT,) * 16, down_bytes_s=(1000 * MBIT,) * 16, rtt_s=rtt_s,
        sites=sites_from_rtt(rtt_s),
        site_up_bytes_s=(100 * MBIT,) * 4, site_down_bytes_s=(100 * MBIT,) * 4,
    )  # fmt: skip
    choice = choose(network, 16 * MIB)
    assert choice.schedule == "hierarchical"
    assert choice.seconds["butterfly"] > 3 * choice.seconds["hierarchical"]


def test_choices_can_be_forced_and_codecs_forbid() -> None:
    network = of([100] * 4)
    assert choose(network, 1000, allowed=["ring"]).schedule == "ring"
    assert set(choose(network, 1000, codec_named("sign")).seconds) == {"butterfly"}
    with pytest.raises(ValueError, match="butterfly"):
        choose(network, 1000, codec_named("sign"), ["ring", "tree"])
    with pytest.raises(ValueError, match="no schedule"):
        choose(network, 1000, allowed=["star"])
    coarse = choose(network, MIB, codec_named("int8")).seconds["ring"]
    assert coarse < 0.3 * choose(network, MIB).seconds["ring"]
    text = str(choose(network, 1000))
    assert all(name in text for name in SCHEDULES) and "ms" in text


def test_alone_there_is_nothing_to_do() -> None:
    assert set(choose(Network.uniform(1), 1000).seconds.values()) == {0.0}


@settings(deadline=None)
@given(st.integers(2, 24), st.integers(0, 2**32), st.integers(0, 10**7))
def test_estimates_are_finite_and_grow_with_delay(members: int, seed: int, count: int) -> None:
    network, payload = drawn(members, seed), Payload(count=count)
    farther = Network(
        up_bytes_s=network.up_bytes_s, down_bytes_s=network.down_bytes_s,
        rtt_s=network.rtt * 2, sites=network.sites,
        site_up_bytes_s=network.site_up_bytes_s, site_down_bytes_s=network.site_down_bytes_s,
    )  # fmt: skip
    for name in SCHEDULES:
        near_s = estimate_s(name, network, payload)
        assert 0 < near_s < math.inf
        assert estimate_s(name, farther, payload) > near_s


def test_thousands_of_peers_are_chosen_for_at_once() -> None:
    network = drawn(4096)
    started = time.perf_counter()
    choice = choose(network, 16 * MIB)
    assert time.perf_counter() - started < 5  # 0.6 s on an idle core
    assert set(choice.seconds) == set(SCHEDULES)


def test_a_crowd_of_near_ones_takes_the_tree_for_small_sums_only() -> None:
    small, near = SMALL_BYTES // 4, Network.uniform(CROWD + 1)
    assert choose(near, small).schedule == "tree"
    assert choose(near, 64 * small).schedule != "tree"
    assert choose(Network.uniform(CROWD), small).schedule != "tree"
    assert choose(Network.uniform(CROWD + 1, rtt_s=0.02), small).schedule != "tree"
    assert choose(near, small, allowed=("ring", "butterfly")).schedule != "tree"
