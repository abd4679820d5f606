"""Modules with rounds of their own, held by different peers: real processes on loopback.

fast   peer-1, peer-2    a and b     0.02 s a step
slow   peer-3, peer-4    c           0.25 s a step
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import until

from decentral.bench.fleet import Fleet
from decentral.cli.processes import PeerProcess

MODULES = "a,b,c"
FAST = ("--takes", "a,b", "--step-s", "0.02")
SLOW = ("--takes", "c", "--step-s", "0.25")
STATE_KIB = 2048
STATE_BYTES = 2 * STATE_KIB * 1024
"""Parameters and momentum of one module."""


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(tmp_path, "--modules", MODULES, "--state-kib", str(STATE_KIB)) as made:
        yield made


def rounds(peer: PeerProcess, tag: str) -> list[dict[str, Any]]:
    return [event for event in peer.events("round") if event["tag"] == tag]


def newest(peer: PeerProcess, tag: str) -> int:
    return max((int(event["round"]) for event in rounds(peer, tag)), default=0)


def go_on(peer: PeerProcess, tag: str, more: int, participants: int, timeout_s: float = 40) -> None:
    """Until so many more rounds of a module are committed by so many."""
    start = newest(peer, tag)
    until(
        lambda: (
            sum(e["round"] > start and e["participants"] == participants for e in rounds(peer, tag))
            >= more
        ),
        timeout_s=timeout_s,
        says=f"{peer.name}: {more} rounds of {tag} by {participants} after {start}",
    )


def found(fleet: Fleet, *groups: tuple[str, ...]) -> tuple[list[PeerProcess], str]:
    first = fleet.start(0, *groups[0])
    word = str(first.wait_for("listening", timeout_s=60)["join"])
    others = [fleet.start(n, "--join", word, *args) for n, args in enumerate(groups[1:], 1)]
    return [first, *others], word


@pytest.mark.timeout(240)
def test_modules_commit_among_their_holders_at_their_own_pace(fleet: Fleet) -> None:
    (one, two, three, four), word = found(fleet, FAST, FAST, SLOW, SLOW)
    for peer, tag in ((one, "a"), (two, "b"), (three, "c"), (four, "c")):
        go_on(peer, tag, 3, 2)

    # The fast group does not wait for the slow one.
    before = {tag: newest(peer, tag) for peer, tag in ((one, "a"), (one, "b"), (three, "c"))}
    time.sleep(4.0)
    made = {t: newest(one if t != "c" else three, t) - n for t, n in before.items()}
    assert made["c"] >= 2 and min(made["a"], made["b"]) > 2.5 * made["c"], made
    assert {event["tag"] for event in one.events("round")} == {"a", "b"}
    assert {event["tag"] for event in four.events("round")} == {"c"}

    # A joiner that takes b has b from those who hold it, and nothing of a and c.
    late = fleet.start(4, "--join", word, "--takes", "b", "--step-s", "0.02")
    assert late.wait_for("joined", timeout_s=60)["tags"].keys() == {"b"}
    links = {link["peer"]: link["bytes_received"] for link in late.status()["links"]}
    assert sum(links[peer.peer_id] for peer in (one, two)) > STATE_BYTES
    assert max(links[peer.peer_id] for peer in (three, four)) < STATE_BYTES / 2, links
    go_on(late, "b", 2, 3)
    told = late.status()["tags"]
    assert (told["a"]["state_hash"], told["c"]["state_hash"]) == (None, None)
    assert told["b"]["round"] > 0 and told["b"]["state_hash"]

    # One of the slow group dies: the fast one loses a moment, the slow one goes on alone.
    killed_at = time.monotonic()
    four.kill()
    go_on(one, "a", 2, 2, timeout_s=15)
    assert time.monotonic() - killed_at < 8, "the death of a stranger held the fast group up"
    go_on(three, "c", 1, 1)

    # One of the fast group dies and comes back with what its disk holds of both its modules.
    acknowledged = {tag: newest(two, tag) for tag in "ab"}
    two.kill()
    go_on(one, "a", 2, 1)
    again = fleet.start(1, "--join", word, *FAST)
    joined = again.wait_for("joined", timeout_s=60)
    assert joined["tags"].keys() == {"a", "b"}
    go_on(again, "a", 2, 2)
    assert newest(again, "a") > acknowledged["a"] and newest(again, "b") > acknowledged["b"]
    assert fleet.violations() == []
    for peer in (one, three, late):
        assert [e for e in peer.events("fault") if e["kind"] in ("divergence", "bad-lease")] == []


@pytest.mark.timeout(120)
def test_who_is_held_up_by_one_module_holds_nobody_up_in_another(tmp_path: Path) -> None:
    """Peer 2 trains a with a quick peer and c with a slow one: it waits, peer 1 need not."""
    with Fleet(tmp_path, "--modules", "a,c", "--state-kib", "64") as fleet:
        quick, slow = ("--step-s", "0.02"), ("--step-s", "3")
        (one, two, three), _ = found(
            fleet, ("--takes", "a", *quick), ("--takes", "a,c", *quick), ("--takes", "c", *slow)
        )
        go_on(two, "c", 1, 2)
        go_on(three, "c", 2, 2)
        spans = [e["seen_at"] for e in rounds(three, "c")[-2:]]
        between = [e for e in rounds(one, "a") if spans[0] < e["seen_at"] < spans[1]]
        assert spans[1] - spans[0] > 2.5, "c is slow"
        assert len(between) >= 2, f"{len(between)} rounds of a during one of c"
        until(
            lambda: newest(two, "a") >= between[-1]["round"],
            timeout_s=10,
            says="who only waits in a follows it all the same",
        )
        assert fleet.violations() == []


@pytest.mark.timeout(180)
def test_everybody_is_killed_and_each_module_goes_on_from_its_disks(fleet: Fleet) -> None:
    peers, _ = found(fleet, FAST, FAST, SLOW)
    for peer, tag, holders in ((peers[0], "a", 2), (peers[1], "b", 2), (peers[2], "c", 1)):
        go_on(peer, tag, 4, holders)
    durable = {
        tag: max(e["durable_round"] for peer in peers for e in rounds(peer, tag)) for tag in "abc"
    }
    for peer in peers:
        peer.kill()
    assert min(durable.values()) > 0
    for tag in "ab":
        assert list((peers[0].home / "checkpoints" / f"module-{tag}").glob("round-*"))
    assert not (peers[0].home / "checkpoints" / "module-c").exists()
    killed_at = time.monotonic()
    again = [fleet.start(n, *args) for n, args in enumerate((FAST, FAST, SLOW))]
    for peer, tag, holders in ((again[0], "a", 2), (again[1], "b", 2), (again[2], "c", 1)):
        go_on(peer, tag, 1, holders, timeout_s=60)
        assert min(e["round"] for e in rounds(peer, tag)) > durable[tag]
    assert fleet.violations(killed_at) == []


@pytest.mark.timeout(120)
def test_one_module_goes_back_and_the_other_does_not(tmp_path: Path) -> None:
    with Fleet(tmp_path, "--modules", "a,b", "--state-kib", "64", "--step-s", "0.05") as fleet:
        (one, two), _ = found(fleet, (), ())
        for tag in "ab":
            go_on(one, tag, 6, 2)
        assert command("pause", one).returncode == 0
        at = until(lambda: quiet(one), timeout_s=20, says="the run is still")
        vague = command("rollback", two, "--round", str(at["a"] - 2))
        assert vague.returncode == 1 and "name one of a, b" in vague.stderr
        done = command("rollback", two, "--round", str(at["a"] - 2), "--module", "a")
        assert done.returncode == 0, done.stderr
        for peer in (one, two):
            until(
                lambda peer=peer: peer.status()["tags"]["a"]["round"] == at["a"] - 2,
                timeout_s=10,
                says=f"{peer.name} is back",
            )
            assert peer.status()["tags"]["b"]["round"] == at["b"]
        began_s = time.monotonic()
        assert command("resume", one).returncode == 0
        for tag, last in (("a", at["a"] - 2), ("b", at["b"])):
            event = one.wait_for(
                "round",
                timeout_s=20,
                where=lambda e, tag=tag: e["tag"] == tag and e["seen_at"] > began_s,
            )
            assert event["round"] == last + 1


def quiet(peer: PeerProcess) -> dict[str, int] | None:
    """The rounds by module, if none has come for half a second."""
    before = {tag: one["round"] for tag, one in peer.status()["tags"].items()}
    time.sleep(0.5)
    now = {tag: one["round"] for tag, one in peer.status()["tags"].items()}
    return now if now == before else None


def command(name: str, peer: PeerProcess, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "decentral", name, "--home", str(peer.home), *args],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("other", "named"),
    [
        (("--state-kib", "128"), "shape"),
        (("--modules", "a,c"), "fingerprint"),
    ],
)
def test_another_model_is_refused_and_the_others_go_on(
    tmp_path: Path, other: tuple[str, ...], named: str
) -> None:
    with Fleet(tmp_path, "--step-s", "0.05", "--state-kib", "64", "--modules", "a,b") as fleet:
        (one, _), word = found(fleet, (), ())
        go_on(one, "a", 2, 2)
        stranger = fleet.start(2, "--join", word, *other)
        assert stranger.process.wait(30) == 1
        error = stranger.stderr()
        assert named in error and error.count("\n") == 1, error
        if named == "shape":
            assert "tensor 'param/first' has shape (16384,) in this model" in error, error
        go_on(one, "a", 2, 2)
