"""As many meshes of 32 peers with every fault at once as fit, each kind alone, and twice."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys

import pytest

from decentral.simulator import simulate
from decentral.simulator.command import replay, simulate_command
from decentral.simulator.scenarios import DURATION_S, SCENARIOS
from decentral.simulator.seeds import half_fresh, run_seed, run_seeds

BUDGET_S = float(os.environ.get("DECENTRAL_SIM_BUDGET_S", "30"))
"""Wall clock for the first test; `make soak-sim` takes an hour."""


@pytest.mark.slow
@pytest.mark.timeout(BUDGET_S + 200)
def test_every_fault_at_once_breaks_no_invariant(capsys: pytest.CaptureFixture[str]) -> None:
    done, broken = 0, []
    seeds = half_fresh() if os.environ.get("DECENTRAL_FRESH") else itertools.count()
    for report in run_seeds(seeds, 32, "everything", DURATION_S, jobs=2, for_s=BUDGET_S):
        done += 1
        if report.violations:
            broken.append(f"{replay(report, 'everything', DURATION_S)}: {report.violations[:3]}")
        assert report.rounds > 5, replay(report, "everything", DURATION_S)
    with capsys.disabled():
        print(f"\n{done} seeds x 32 peers x {DURATION_S:.0f} s within {BUDGET_S:.0f} s")
    assert not broken, "\n".join(broken)
    assert done


@pytest.mark.parametrize("scenario", sorted(SCENARIOS))
def test_one_kind_of_fault(scenario: str) -> None:
    for seed in range(3):
        report = simulate(seed, peers=7, scenario=scenario, duration_s=150.0)
        says = f"{replay(report, scenario, 150.0)}: {report.violations[:3]}"
        assert not report.violations, says


def test_the_same_seed_gives_the_same_trace() -> None:
    first, second = (simulate(7, peers=8, duration_s=120.0) for _ in range(2))
    assert first.trace_hash == second.trace_hash
    assert first.events == second.events
    assert simulate(8, peers=8, duration_s=120.0).trace_hash != first.trace_hash
    assert not run_seed(7, 8, "everything", 120.0, twice=True).violations


def test_no_trace_depends_on_the_order_of_a_set() -> None:
    program = (
        "from decentral.simulator import simulate\n"
        "for seed in range(4): print(simulate(seed, 12, 'everything', 150.0).trace_hash)"
    )
    traces = {
        subprocess.run(
            [sys.executable, "-P", "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(traces) == 1


def test_the_command_prints_one_object_per_seed(capsys: pytest.CaptureFixture[str]) -> None:
    code = simulate_command(peers=3, seeds=2, scenario="calm", json=True, jobs=1, simulated_s=90.0)
    assert code == 0
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


def test_the_command_does_as_many_fresh_seeds_as_fit(capsys: pytest.CaptureFixture[str]) -> None:
    code = simulate_command(
        peers=2, scenario="calm", json=True, jobs=1, simulated_s=90.0, fresh=True, for_s=1.0
    )
    assert code == 0
    seeds = [json.loads(one)["seed"] for one in capsys.readouterr().out.splitlines()]
    assert len(seeds) > 1
    assert len(set(seeds)) == len(seeds)
