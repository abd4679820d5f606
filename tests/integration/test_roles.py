"""Relays and observers: linked, told everything, never a member, whatever they try."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from processes import RECIPES, Peers, same_bits, until
from safetensors import safe_open

from decentral.peer.joinword import JoinWord


def decentral(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "decentral", *args]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_who_watches_is_told_everything_and_counts_for_nothing(peers: Peers) -> None:
    first, second = peers.group(2)
    words = {
        role: decentral("invite", "--home", str(first.home), "--role", role).stdout.strip()
        for role in ("relay", "observe")
    }
    relay = peers.start("relay", "--join", words["relay"])
    observer = peers.start("observer", "--join", words["observe"])
    for peer, role in ((relay, "relay"), (observer, "observe")):
        watching = peer.wait_for("watching", timeout_s=30)
        assert watching["role"] == role and watching["members"] == 2
        seen = peer.wait_for("round", timeout_s=30, where=lambda e: e["round"] > second.round)
        assert same_bits([first, peer], seen["round"]) == seen["state_hash"]

    status = observer.status()
    assert status["role"] == "observe" and status["round"] > 0 and status["state_hash"]
    alive = {member["peer"] for member in status["members"] if member["state"] == "alive"}
    assert alive == {first.peer_id, second.peer_id}
    assert {link["peer"] for link in status["links"]} >= alive, "linked to all members"

    # Who has nothing but the observer's address gets in through it.
    inside = JoinWord.parse(first.invite())
    port = observer.events("listening")[0]["port"]
    third = peers.start("peer-3", "--join", inside.at(f"127.0.0.1:{port}").text)
    event = third.wait_for("round", timeout_s=60, where=lambda e: e["participants"] == 3)
    same_bits([first, second, third], event["round"])
    assert observer.wait_for("view", timeout_s=10, where=lambda e: e["members"] == 3)

    # The members never had more than the trainers in a view, and lose nothing with the watchers.
    assert {event["members"] for event in first.events("view")} <= {1, 2, 3}
    relay.kill()
    assert observer.stop() == 0 and observer.last("left") is not None
    before = first.round
    first.wait_for("round", timeout_s=30, where=lambda e: e["round"] > before + 2)
    assert not first.events("fault") or all(
        fault["kind"] not in ("quorum-lost", "role") for fault in first.events("fault")
    )

    # Back on its own, with the same command: its credential says what it is.
    again = peers.start("observer", home=observer.home)
    again.wait_for("watching", timeout_s=30)
    assert again.stop() == 0


def test_what_a_role_does_not_allow_is_refused_by_name(peers: Peers, tmp_path: Path) -> None:
    first, second = peers.group(2)
    word = decentral("invite", "--home", str(second.home), "--role", "observe").stdout.strip()
    strong = peers.start("strong", "--join", word, "--role", "train")
    assert strong.process.wait(20) == 1
    assert "this peer's credential is to observe: it cannot train" in strong.last_words()
    alone = peers.start("alone", "--role", "observe")
    assert alone.process.wait(20) == 1 and "takes a join word" in alone.last_words()

    observer = peers.start("observer", "--join", word)
    observer.wait_for("watching", timeout_s=30)
    refused = decentral("pause", "--home", str(observer.home))
    assert refused.returncode == 1 and "role is observe: it cannot pause" in refused.stderr
    refused = decentral("invite", "--home", str(observer.home), "--role", "train")
    assert refused.returncode == 1 and "cannot give train" in refused.stderr
    passed_on = decentral("invite", "--home", str(observer.home)).stdout.strip()
    assert JoinWord.parse(passed_on).invite is not None

    # One that does not keep to it is found out by those that it is linked to.
    process = subprocess.Popen(
        [sys.executable, "-P", str(Path(__file__).parent / "rogue_observer.py"), "--join", word,
         "--name", "rogue", "--home", str(tmp_path / "rogue"), "--listen", "127.0.0.1:0",
         "--recipe", "tiny_recipe:recipe", "--json"],
        env={**os.environ, "PYTHONPATH": str(RECIPES)}, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        fault = until(
            lambda: [
                event
                for peer in (first, second)
                for event in peer.events("fault")
                if event["kind"] == "role"
            ],
            timeout_s=30,
            says="nobody refused the rogue",
        )[0]
        assert "rogue" in fault["says"] and "its role is observe" in fault["says"]
    finally:
        process.kill()
        output = process.communicate()[0]
    events = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert all(event["event"] not in ("joined", "round") for event in events)
    assert {event["members"] for event in first.events("view")} <= {1, 2}


def test_an_observer_fetches_the_model_and_ends(peers: Peers, tmp_path: Path) -> None:
    first, _ = peers.group(2)
    word = decentral("invite", "--home", str(first.home), "--role", "observe").stdout.strip()
    path = tmp_path / "model.safetensors"
    observer = peers.start("observer", "--join", word, "--state", str(path))
    assert observer.process.wait(60) == 0, observer.last_words()
    done = observer.last("done")
    assert done is not None
    committed = first.wait_for("round", timeout_s=10, where=lambda e: e["round"] == done["round"])
    assert committed["state_hash"] == done["state_hash"]
    with safe_open(path, framework="numpy") as file:
        assert file.metadata()["state_hash"] == done["state_hash"] and list(file.keys())
