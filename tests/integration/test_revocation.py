"""A member whose credential is taken back is out at once and for good, whoever was away."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from processes import Peers, same_bits

from decentral.cli.processes import PeerProcess
from decentral.peer.joinword import JoinWord


def revoke(by: PeerProcess, who: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "decentral", "revoke", who, "--home", str(by.home), *args],
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_revoked_member_is_out_and_stays_out(peers: Peers) -> None:
    group = peers.group(4)
    first, second, rogue, away = group
    away.kill()
    # Not an earlier view of three: two of four could not decide on anything.
    first.wait_for(
        "view", timeout_s=30, where=lambda e: e["members"] == 3 and "joins" not in e["reason"]
    )

    done = revoke(first, rogue.peer_id, "--reason", "sends nonsense", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["peer"] == rogue.peer_id and report["told"] == 2 and report["by_invite"]

    fault = second.wait_for("fault", timeout_s=10, where=lambda e: e["kind"] == "revoked")
    assert fault["peer"] == rogue.peer_id and "sends nonsense" in fault["says"]
    for peer in (first, second):
        view = peer.wait_for(
            "view", timeout_s=10, where=lambda e: e["members"] == 2 and "revoked" in e["reason"]
        )
        assert view["seen_at"] - fault["seen_at"] < 5
    assert rogue.process.wait(20) == 1
    assert "revoked" in rogue.last_words()

    # It cannot come back: not with its own papers, and not through a member that was away.
    back = peers.start("peer-4", home=away.home)
    both = back.wait_for("round", timeout_s=60, where=lambda e: e["participants"] == 3)
    same_bits([first, second, back], both["round"])
    learned = back.wait_for("fault", timeout_s=10, where=lambda e: e["kind"] == "revoked")
    assert learned["peer"] == rogue.peer_id
    invite = JoinWord.parse(first.invite())
    port = int(back.events("listening")[0]["port"])
    (rogue.home / "revocations").unlink()  # it need not be honest, or it was away itself
    for word in (first.invite(), invite.at(f"127.0.0.1:{port}").text):
        again = peers.start(rogue.name, "--join", word, home=rogue.home)
        fault = again.wait_for("fault", timeout_s=30, where=lambda e: e["kind"] == "refused")
        assert "revoked" in fault["says"]
        again.kill()
        assert not again.events("link"), "nobody has let it in"
    before = first.round
    first.wait_for("round", timeout_s=30, where=lambda e: e["round"] > before)
    assert first.status()["members"] and all(
        member["state"] != "alive" or member["peer"] != rogue.peer_id
        for member in first.status()["members"]
    )


def test_who_may_revoke_whom(peers: Peers) -> None:
    """An inviter those that it invited, with all below; nobody else; a whole invite at once."""
    first, word = peers.first()
    second = peers.start("peer-2", "--join", word)
    second.wait_for("joined", timeout_s=30)
    third = peers.start("peer-3", "--join", second.invite())
    for peer in (first, second, third):
        peer.wait_for("round", timeout_s=60, where=lambda e: e["participants"] == 3)

    refused = revoke(third, "peer-2")
    assert refused.returncode == 1 and "was not invited by this peer" in refused.stderr
    assert "no peer known" in revoke(first, "peer-9").stderr
    assert "this very peer" in revoke(first, first.peer_id).stderr

    done = revoke(second, "peer-3")
    assert done.returncode == 0 and "--with-invite" in done.stdout
    assert third.process.wait(20) == 1
    first.wait_for("fault", timeout_s=10, where=lambda e: e["kind"] == "revoked")

    # The key is out; the word that it came with still lets a new key in, until it is revoked too.
    fourth = peers.start("peer-4", "--join", second.invite())
    fourth.wait_for("joined", timeout_s=60)
    done = revoke(first, "peer-2", "--with-invite")
    assert done.returncode == 0, done.stderr
    assert [second.process.wait(20), fourth.process.wait(20)] == [1, 1], "below the revoked"
    newcomer = peers.start("peer-5", "--join", word)
    assert newcomer.process.wait(30) == 1 and "revoked" in newcomer.last_words()


@pytest.mark.parametrize("damage", [b"", b"nonsense"])
def test_a_damaged_list_is_not_taken_for_an_empty_one(peers: Peers, damage: bytes) -> None:
    first, _ = peers.first()
    assert first.stop() == 0
    (first.home / "revocations").write_bytes(damage)
    again = peers.start("peer-1", home=first.home)
    assert again.process.wait(20) == 1
    assert "the list of revoked keys is damaged" in again.last_words()
