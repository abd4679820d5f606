"""The command line as a person and a script meet it."""

from __future__ import annotations

import json
import subprocess
import sys

from processes import Peers

from decentral.cli import COMMANDS


def decentral(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "decentral", *args],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_help_and_version_do_not_pay_for_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-X", "importtime", "-m", "decentral", "--help"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "torch" not in done.stderr
    for command in COMMANDS:
        assert command in done.stdout
        assert decentral(command, "--help").returncode == 0
    assert decentral("--version").stdout.startswith("decentral 0.")


STATUS = {
    "peer", "name", "run", "role", "lineage", "epoch", "round", "durable_round", "paused",
    "coordinator", "members", "state_hash", "links", "nat", "strategy", "loss", "tokens",
}  # fmt: skip
LINK = {
    "peer", "class", "how", "relay", "seconds", "rtt_ms", "tx_mbps", "rx_mbps", "bytes_sent",
    "bytes_received",
}  # fmt: skip
ROUND = {
    "event", "t", "lineage", "epoch", "round", "durable_round", "participants", "state_hash",
    "loss", "tokens", "bytes_sent", "bytes_received", "seconds",
}  # fmt: skip


def test_contracts_of_a_running_peer(peers: Peers) -> None:
    """The keys that README documents: other tools read them."""
    first, second = peers.group(2)
    status = json.loads(decentral("status", "--home", str(first.home), "--json").stdout)
    assert set(status) == STATUS
    assert {member["peer"] for member in status["members"]} == {first.peer_id, second.peer_id}
    assert {member["state"] for member in status["members"]} == {"alive"}
    assert [set(link) for link in status["links"]] == [LINK]
    assert status["links"][0]["class"] == "direct" and status["links"][0]["bytes_sent"] > 0
    event = first.last("round")
    assert event is not None and set(event) >= ROUND
    assert event["participants"] == 2
    for kind, keys in {
        "listening": {"peer", "name", "port", "join"},
        "joined": {"peer", "name", "epoch", "round", "state_hash", "members"},
        "view": {"lineage", "epoch", "members", "reason"},
        "link": {"peer", "state"},
    }.items():
        seen = first.last(kind)
        assert seen is not None and keys <= set(seen), kind
    shown = decentral("status", "--home", str(first.home)).stdout
    assert "peer-1" in shown and "peer-2" in shown

    word = decentral("invite", "--home", str(second.home)).stdout.strip()
    third = peers.start("peer-3", "--join", word)
    third.wait_for("round", timeout_s=60, where=lambda e: e["participants"] == 3)
    assert second.stop() == 0
    left = second.last("left")
    assert left is not None
    first.wait_for("round", timeout_s=30, where=lambda e: e["round"] > third.round)


def test_rounds_are_the_runs(peers: Peers) -> None:
    first, word = peers.first("--rounds", "25")
    second = peers.start("peer-2", "--join", word)
    done = [peer.wait_for("done", timeout_s=90) for peer in (first, second)]
    assert [event["round"] for event in done] == [25, 25]
    assert done[0]["state_hash"] == done[1]["state_hash"]
    assert [peer.process.wait(30) for peer in (first, second)] == [0, 0]


def test_no_peer_to_ask() -> None:
    done = decentral("status", "--home", "/nonexistent/home")
    assert done.returncode == 1 and done.stderr.count("\n") == 1


def test_simulate_and_bench_speak_json() -> None:
    done = decentral("simulate", "--peers", "5", "--seed", "3", "--json")
    report = json.loads(done.stdout)
    assert {"seed", "peers", "simulated_s", "events", "violations", "trace_hash"} <= set(report)
    assert done.returncode == 0 and report["violations"] == []
    bench = "bench allreduce --peers 2 --size-mib 1 --runs 1 --encrypt off --json"
    report = json.loads(decentral(*bench.split()).stdout)
    (result,) = report["results"]
    assert result["system"] == "decentral" and result["max_abs_error"] < 1e-5
    assert result["bytes_on_wire"] >= 2 << 20
