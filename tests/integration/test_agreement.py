"""Agreement between real processes: in small what `decentral bench failover` and `storm` do."""

from __future__ import annotations

import argparse
import importlib
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from decentral.bench.fleet import Fleet


def bench(name: str, *args: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(report, its one result) of ``decentral bench NAME ARGS``."""
    module = importlib.import_module(f"decentral.bench.{name}")
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    report = module.measure(parser.parse_args(args))
    return report, report["results"][0]


def test_a_sleeping_peer_trains_without_torch(tmp_path: Path) -> None:
    """The same events as any peer's, to the end that its founder named."""
    done = subprocess.run(
        [
            *(sys.executable, "-P", "-m", "decentral.bench.sleep_peer", "--json"),
            *("--rounds", "3", "--step-s", "0.01", "--home", str(tmp_path / "home")),
            *("--listen", "127.0.0.1:0"),
        ],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr  # it asserts itself that torch is not there
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [e["event"] for e in events if e["event"] != "view"] == [
        "listening", "joined", "round", "round", "round", "done", "left",
    ]  # fmt: skip
    assert len({e["state_hash"] for e in events if e["event"] == "round"}) == 3
    assert (tmp_path / "home" / "checkpoints" / "round-00000003").is_dir()


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_ten_coordinators_are_killed() -> None:
    report, result = bench("failover", "--kind", "kill", "--times", "10")
    assert not report["notes"], report
    assert result["successor_commits_s"]["max"] < 5, report
    assert result["reformed_beyond_a_round_s"]["p50"] < 1, report


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_two_coordinators_are_stopped_and_wake_up_fenced() -> None:
    report, result = bench("failover", "--kind", "stop", "--times", "2")
    assert not report["notes"], report
    assert result["reformed_beyond_a_round_s"]["max"] < 7, report


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_storm_of_twelve() -> None:
    report, result = bench("storm", "--joiners", "12", "--step-s", "0.2", "--limit-s", "60")
    assert not report["notes"], report
    assert result["all_in_s"] < 60, report
    # At round boundaries: not one view for each of them, whenever it happens to come.
    assert result["entries"] <= result["rounds_meanwhile"] + 3, report


def test_what_a_stopped_peer_did_meanwhile_counts_for_nothing(tmp_path: Path) -> None:
    """It wakes with a contribution to a round that the others have long committed without it."""
    with Fleet(tmp_path, "--step-s", "0.03", "--on-quorum-loss", "pause") as fleet:
        peers = fleet.found(3)
        peers[2].send(signal.SIGSTOP)
        # While it is only doubted, rounds go on without it; then it is put out.
        before = peers[0].wait_for("view", timeout_s=30, where=lambda e: "died" in e["reason"])
        alone = peers[0].wait_for(
            "round", timeout_s=30, where=lambda e: e["epoch"] == before["epoch"]
        )
        tokens = {e["round"]: e["tokens"] for e in peers[0].events("round")}
        peers[2].send(signal.SIGCONT)
        fleet.complete(peers, alone["seen_at"])
        assert not fleet.violations()
        woken = [e for e in peers[2].events("fault") if e["kind"] == "evicted"]
        assert woken, peers[2].events()[-10:]
        counted = {e["round"]: e["tokens"] for e in peers[1].events("round")}
        assert all(counted[number] == tokens[number] for number in tokens if number in counted)
        without = [e for p in peers for e in p.events("round") if e["epoch"] == alone["epoch"]]
        assert {e["participants"] for e in without} == {2}, "its stale work was counted"
