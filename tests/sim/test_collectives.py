"""Executed chunk by chunk, plans take what the cost model says; and the command says so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from decentral.cli import main
from decentral.collectives.cost import choose
from decentral.collectives.network import Network
from decentral.collectives.plan import Kind, Plan, Segment, Step
from decentral.collectives.schedules import SCHEDULES
from decentral.errors import ConfigError
from decentral.simulator.collectives import check_sample, run
from decentral.simulator.link_table import BUILTIN, LinkTable, draw
from decentral.simulator.plan_execution import Wire, execute

MBIT = 125_000
MIB = 1 << 20


def of(mbits: list[float], rtt_s: float) -> Network:
    rates = tuple(mbit * MBIT for mbit in mbits)
    delays = np.full((len(rates), len(rates)), rtt_s)
    return Network(up_bytes_s=rates, down_bytes_s=rates, rtt_s=delays)


def executed_s(network: Network, name: str, count: int, wire: Wire | None = None) -> float:
    plans = [SCHEDULES[name].plan(network, rank, count) for rank in range(network.members)]
    return execute(network, plans, wire).seconds


@pytest.mark.parametrize(
    ("network", "count"),
    [
        (of([1000] * 4, 0.001), 16 * MIB),
        (of([1000] * 16, 0.02), 2048),
        (of([1000] * 16, 0.02), 256 * 1024),
        (of([200] * 40, 0.05), 4 * MIB),
        (of([400, 400, 400, 100], 0.001), 16 * MIB),
        (of([400, 400, 400, 100], 0.05), 16 * MIB),
    ],
    ids=["4 large", "16 tiny", "16 small", "40", "unequal", "unequal, far"],
)
def test_the_estimate_is_within_a_tenth(network: Network, count: int) -> None:
    for name, estimate_s in choose(network, count).seconds.items():
        assert executed_s(network, name, count) == pytest.approx(estimate_s, rel=0.1), name


def test_a_slow_peer_is_no_bottleneck_beyond_its_own_link() -> None:
    network, count = of([400, 400, 400, 100], 0.001), 16 * MIB
    bound_s = 4 * count / (100 * MBIT)
    butterfly_s = executed_s(network, "butterfly", count)
    assert bound_s < butterfly_s < 1.1 * bound_s
    assert executed_s(network, "ring", count) > 1.3 * butterfly_s
    assert choose(network, count).schedule == "butterfly"


def test_small_buffers_take_few_hops() -> None:
    network, count = of([1000] * 16, 0.02), 8192 // 4
    ring_s = executed_s(network, "ring", count)
    assert executed_s(network, "tree", count) <= 0.5 * ring_s
    assert executed_s(network, choose(network, count).schedule, count) <= 0.25 * ring_s


def test_slots_keep_both_directions_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    from decentral.collectives.schedules import butterfly

    network, count = of([400, 400, 400, 300], 0.001), 16 * MIB
    bound_s = 4 * count * 1.2 / (300 * MBIT)
    assert executed_s(network, "butterfly", count) < 1.06 * bound_s
    monkeypatch.setattr(butterfly, "MAX_SLOTS", 1)
    assert executed_s(network, "butterfly", count) > 1.06 * bound_s


def test_executions_replay() -> None:
    network = draw(BUILTIN, 12, 5)
    plans = [SCHEDULES["hierarchical"].plan(network, rank, MIB) for rank in range(12)]
    first, again = execute(network, plans), execute(network, plans)
    assert first == again


def test_credits_cost_time_on_a_long_fat_pipe_and_no_bytes() -> None:
    network = of([1000] * 4, 0.1)
    plans = [SCHEDULES["butterfly"].plan(network, rank, 16 * MIB) for rank in range(4)]
    few, free = (execute(network, plans, Wire(window=window)) for window in (2, None))
    assert few.bytes_sent == pytest.approx(free.bytes_sent)
    assert few.seconds > 1.5 * free.seconds


def test_links_are_not_faster_than_they_are() -> None:
    """One chunk, one hop: its bytes at the slower end, half a round trip, two messages' cost."""
    network = Network(up_bytes_s=(1e6, 1e6), down_bytes_s=(5e5, 5e5), rtt_s=[[0, 0.1], [0.1, 0]])
    one = (Segment(0, 1000, 0),)
    plans = [
        Plan(one, (Step(Kind.RECV_REDUCE, 1, 0),)),
        Plan(one, (Step(Kind.SEND_PARTIAL, 0, 0),)),
    ]
    took_s = execute(network, plans, Wire(message_s=0)).seconds
    assert took_s == pytest.approx(0.05 + 0.05 + 4056 / 5e5)


def test_plans_that_wait_for_ever_are_said_to_be_stuck() -> None:
    one = (Segment(0, 1000, 0),)
    with pytest.raises(ValueError, match="stuck"):
        execute(Network.uniform(2), [Plan(one, (Step(Kind.RECV_REDUCE, 1, 0),)), Plan(one, ())])


# ---- networks from tables


def test_the_same_seed_draws_the_same_network_and_a_larger_one_begins_with_it() -> None:
    small, large = draw(BUILTIN, 20, 3), draw(BUILTIN, 50, 3)
    assert draw(BUILTIN, 20, 3) == small != draw(BUILTIN, 20, 4)
    assert large.subset(range(20)).rtt.tobytes() == small.rtt.tobytes()
    assert large.up_bytes_s[:20] == small.up_bytes_s


def test_tables_come_from_files(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    link = {
        "name": "office", "probability": 1, "up_mbit": [100, 100], "down_mbit": [100, 100],
        "access_ms": [5, 5], "site_peers": [2, 2], "site_mbit": [50, 50],
    }  # fmt: skip
    path.write_text(json.dumps({"classes": [link], "region_rtt_ms": [[10]]}))
    network = draw(LinkTable.from_json(path), 4, 0)
    assert network.sites == (0, 0, 1, 1)
    assert network.rtt[0, 2] == pytest.approx(0.02)
    assert network.site_up_bytes_s == pytest.approx((50 * MBIT,) * 2)


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", '{"classes": [], "region_rtt_ms": [[1]]}',
        '{"classes": [{"name": "x"}], "region_rtt_ms": [[1]]}',
        '{"classes": [{"name": "x", "probability": 1, "up_mbit": [0, 1], "down_mbit": [1, 1], '
        '"access_ms": [1, 1]}], "region_rtt_ms": [[1]]}',
        '{"classes": [{"name": "x", "probability": 1, "up_mbit": [1, 1], "down_mbit": [1, 1], '
        '"access_ms": [1, 1], "colour": 1}], "region_rtt_ms": [[1]]}',
    ],
)  # fmt: skip
def test_files_that_are_no_table_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "table.json"
    path.write_text(text)
    with pytest.raises(ConfigError):
        LinkTable.from_json(path)


# ---- the command


def test_thousands_of_peers_agree_about_their_lanes() -> None:
    network = draw(BUILTIN, 600, 1)
    for name in SCHEDULES:
        check_sample(name, network, 1 << 16, seed=1)
    row = run(BUILTIN, 600, 8192, 1)
    assert row.simulated_s == {} and row.chosen in SCHEDULES


def test_the_command_prints_rows_and_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "out.png"
    words = ["simulate", "collectives", "--peers", "2..8", "--size-kib", "8,512", "--seed", "7"]
    assert main([*words, "--json", "--plot", str(picture)]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["peers"], row["size_bytes"]) for row in rows] == [
        (peers, size) for size in (8192, 512 * 1024) for peers in (2, 4, 8)
    ]
    for row in rows:
        assert set(row["seconds"]) == set(row["simulated_s"]) == set(SCHEDULES)
        assert row["chosen"] in row["seconds"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main([*words, "--json"]) == 0
    again = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["trace_hash"] for row in again] == [row["trace_hash"] for row in rows]
    assert main(words) == 0
    assert "butterfly" in capsys.readouterr().out


@pytest.mark.parametrize("peers", ["1", "2..x", "5000", "", "0..4"])
def test_numbers_that_make_no_sense_are_refused(
    peers: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", "collectives", "--peers", peers]) == 1
    assert "--peers" in capsys.readouterr().err


def test_the_protocol_simulator_is_still_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--peers", "3", "--seed", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["peers"] == 3
