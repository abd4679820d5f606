"""What people may ask of a run: pause, go back, leave; and what a copied home may not do."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

from processes import Peers, same_bits, until

from decentral.cli.processes import PeerProcess


def decentral(command: str, peer: PeerProcess, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "decentral", command, "--home", str(peer.home), *args],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_pause_and_resume_from_any_member(peers: Peers) -> None:
    first, second, third = group = peers.group(3)
    done = decentral("pause", second, "--reason", "the grid is overloaded")
    assert done.returncode == 0, done.stderr
    for peer in group:
        fault = peer.wait_for("fault", timeout_s=10, where=lambda e: e["kind"] == "pause")
        assert fault["says"] == "the run is paused: the grid is overloaded"
    rounds = {peer.round for peer in until_quiet(group)}
    assert len(rounds) == 1, "a round that had begun is finished by all, and none begins"
    again = decentral("pause", first)
    assert again.returncode == 1 and "paused already" in again.stderr
    assert "grid" in decentral("status", third).stdout
    assert decentral("resume", third).returncode == 0
    for peer in group:
        peer.wait_round(max(rounds) + 2, timeout_s=30)
    same_bits(group, max(rounds) + 2)
    not_paused = decentral("resume", third)
    assert not_paused.returncode == 1 and "not paused" in not_paused.stderr


def until_quiet(group: list[PeerProcess]) -> list[PeerProcess]:
    """Until no round has come for two periods."""
    seen, since = [0], time.monotonic()
    while time.monotonic() - since < 1.5:
        now = [peer.round for peer in group]
        if now != seen:
            seen, since = now, time.monotonic()
        time.sleep(0.05)
    return group


def test_rollback_to_what_a_disk_holds(peers: Peers) -> None:
    first, second, _ = group = peers.group(3)
    began = max(int(peer.events("round")[0]["round"]) for peer in group)
    for peer in group:  # each has seen the round that they go back to
        peer.wait_round(max(8, began + 3), timeout_s=30)
    assert decentral("pause", first).returncode == 0
    at = until_quiet(group)[0].round
    target = at - 2
    before = same_bits(group, target)
    nowhere = decentral("rollback", second, "--round", str(at + 5))
    assert nowhere.returncode == 1 and f"the run is at round {at}" in nowhere.stderr
    gone = decentral("rollback", second, "--round", "1")
    assert gone.returncode == 1 and "no member's disk holds round 1" in gone.stderr
    done = decentral("rollback", second, "--round", str(target), "--reason", "it diverged")
    assert done.returncode == 0, done.stderr
    for peer in group:
        fault = peer.wait_for("fault", timeout_s=10, where=lambda e: e["kind"] == "rollback")
        assert fault["says"] == f"the run goes on from round {target}: it diverged"
    assert decentral("resume", first).returncode == 0
    marks = [len(peer.events("round")) for peer in group]
    for peer, mark in zip(group, marks, strict=True):
        until(
            lambda peer=peer, mark=mark: len(peer.events("round")) >= mark + 4,
            timeout_s=30,
            says=f"{peer.name} goes on after the rollback",
        )
        assert peer.events("round")[mark]["round"] == target + 1
    hashes = [
        {e["round"]: e["state_hash"] for e in peer.events("round")[mark:]}
        for peer, mark in zip(group, marks, strict=True)
    ]
    for number in range(target + 1, target + 4):
        assert len({one[number] for one in hashes}) == 1, f"round {number}: {hashes}"
    assert hashes[0][target + 1] != before
    undone = sorted(path.name for path in (first.home / "checkpoints").glob("undone-*"))
    assert undone and all(int(name[-8:]) > target for name in undone)


def test_leave_by_command(peers: Peers) -> None:
    first, second, third = peers.group(3)
    assert decentral("leave", second).returncode == 0
    assert second.process.wait(30) == 0
    for peer in (first, third):
        peer.wait_for("round", timeout_s=30, where=lambda event: event["participants"] == 2)
    assert not [e for e in first.events("fault") if e["kind"] == "peer-died"]


def test_a_copied_home_is_fenced(peers: Peers, tmp_path: Path) -> None:
    """Of two processes with one identity only one takes part; the other ends and says why."""
    first, second, third = peers.group(3)
    copy = tmp_path / "copy"
    passing = shutil.ignore_patterns("*.sock", "lock", "port", ".tmp-*")
    shutil.copytree(second.home, copy, ignore=passing)
    clone = peers.start("clone", home=copy)
    until(
        lambda: any(peer.exit_status() == 1 for peer in (second, clone)),
        timeout_s=30,
        says="one of the two ends",
    )
    (ended,) = [peer for peer in (second, clone) if peer.exit_status() == 1]
    assert "another process with this peer's identity" in ended.stderr()
    assert "(phase: link" in ended.stderr()
    goes_on = clone if ended is second else second
    at = first.round
    for peer in (first, third, goes_on):
        peer.wait_round(at + 3, timeout_s=60)
    same_bits([first, third, goes_on], first.round - 1)


def test_a_round_closes_without_the_slow_one(peers: Peers) -> None:
    """K = 2 of 3: rounds follow each other at the pace of the quick, and the slow one's work counts
    whenever it comes."""
    env = {"TINY_K": "2", "TINY_GRACE_S": "0.2"}
    first, word = peers.first(env=env)
    second = peers.start("peer-2", "--join", word, env=env)
    second.wait_for("round", timeout_s=60, where=lambda event: event["participants"] == 2)
    slow = peers.start("slow", "--join", word, env={**env, "TINY_STEP_S": "0.5"})
    slow.wait_for("joined", timeout_s=30)
    at = first.round

    def closed_without_it() -> list[int]:
        return [
            event["round"]
            for event in first.events("round")
            if event["round"] > at and event["participants"] == 2
        ]

    until(lambda: len(closed_without_it()) >= 3, timeout_s=30, says="rounds close without it")
    third = closed_without_it()[2]
    where = {"where": lambda e: e["round"] > third and e["participants"] == 3}
    first.wait_for("round", timeout_s=60, **where)  # its work counts when it comes
    same_bits([first, second, slow], first.round - 1)
