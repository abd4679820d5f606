"""Twenty meshes of 32 peers with every fault at once, and the same seed twice."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat

import pytest

from decentral.simulator import simulate
from decentral.simulator.command import simulate_command


@pytest.mark.slow
@pytest.mark.parametrize("block", range(5))
def test_every_fault_at_once_breaks_no_invariant(block: int) -> None:
    seeds = range(4 * block, 4 * block + 4)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=2, mp_context=spawn) as pool:
        reports = list(pool.map(simulate, seeds, repeat(32), repeat("everything"), repeat(120.0)))
    broken = [
        f"decentral simulate --seed {one.seed} --peers 32: {one.violations[:3]}"
        for one in reports
        if one.violations
    ]
    assert not broken, "\n".join(broken)
    assert all(one.rounds > 5 for one in reports)


def test_the_same_seed_gives_the_same_trace() -> None:
    first, second = (simulate(7, peers=8, duration_s=90.0) for _ in range(2))
    assert first.trace_hash == second.trace_hash
    assert first.events == second.events
    assert simulate(8, peers=8, duration_s=90.0).trace_hash != first.trace_hash


@pytest.mark.parametrize(
    "scenario", ["calm", "crashes", "crowds", "partitions", "stalls", "comings"]
)
def test_one_kind_of_fault(scenario: str) -> None:
    for seed in range(2):
        report = simulate(seed, peers=7, scenario=scenario, duration_s=120.0)
        assert not report.violations, f"seed {seed}, {scenario}: {report.violations[:3]}"


def test_the_command_prints_one_object_per_seed(capsys: pytest.CaptureFixture[str]) -> None:
    import json

    assert simulate_command(peers=3, seeds=2, seed=None, scenario="calm", json=True) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(one)["seed"] for one in lines] == [0, 1]
    assert set(json.loads(lines[0])) == {
        "seed",
        "peers",
        "simulated_s",
        "events",
        "violations",
        "trace_hash",
    }
