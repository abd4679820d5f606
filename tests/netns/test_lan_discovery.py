"""Peers on one switch find each other without an address, by multicast DNS."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from lan import Lan
from processes import Peers, same_bits, until

from decentral.peer.credential import RunAuthority, save_chain
from decentral.peer.identity import Identity

pytestmark = pytest.mark.netns
ANYWHERE = "0.0.0.0:0"


def credential_for(home: Path, authority_home: Path) -> str:
    """What the run's maker would send by mail: a file, and no address."""
    home.mkdir()
    authority = RunAuthority.load_or_create(authority_home / "authority.key")
    identity = Identity.load_or_create(home / "identity.key")
    save_chain(home / "given", authority.issue(identity.public, now=time.time()))
    return str(home / "given")


def test_a_credential_and_no_address_are_enough(lan: Lan, peers: Peers, tmp_path: Path) -> None:
    first, _ = peers.first(prefix=lan.host(), listen=ANYWHERE)
    stranger, _ = peers.start("stranger", prefix=lan.host(), listen=ANYWHERE), None
    stranger.wait_for("listening", timeout_s=30)
    home = tmp_path / "peer-2"
    given = credential_for(home, first.home)
    second = peers.start(
        "peer-2", "--join", "lan", "--credential", given,
        home=home, prefix=lan.host(), listen=ANYWHERE,
    )  # fmt: skip
    joined = second.wait_for("joined", timeout_s=30)
    assert joined["members"] == 2 and joined["t"] < 20
    event = second.wait_for("round", timeout_s=60, where=lambda e: e["participants"] == 2)
    same_bits([first, second], event["round"])
    assert not stranger.events("link"), "another run's peer is left alone"


def test_an_open_run_is_found_by_anybody(lan: Lan, peers: Peers) -> None:
    first, _ = peers.first("--open", prefix=lan.host(), listen=ANYWHERE)
    second = peers.start("peer-2", "--join", "lan", prefix=lan.host(), listen=ANYWHERE)
    second.wait_for("joined", timeout_s=30)
    peers.start("other", "--open", prefix=lan.host(), listen=ANYWHERE).wait_for(
        "listening", timeout_s=30
    )
    time.sleep(2)  # until that one is announced, too
    third = peers.start("peer-3", "--join", "lan", prefix=lan.host(), listen=ANYWHERE)
    assert third.process.wait(30) == 1
    assert "2 open runs on this network" in third.last_words()
    assert first.exit_status() is None


def test_nobody_is_there_or_wants_to_be_found(
    lan: Lan, peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = peers.start("hidden", "--open", "--lan", "off", prefix=lan.host(), listen=ANYWHERE)
    hidden.wait_for("listening", timeout_s=30)
    second = peers.start("peer-2", "--join", "lan", prefix=lan.host(), listen=ANYWHERE)
    assert second.process.wait(40) == 1
    assert "no peer of an open run was found on this network" in second.last_words()


def test_a_whole_run_that_moves_finds_itself(lan: Lan, peers: Peers) -> None:
    """All addresses in the book are stale: another port, other hosts."""
    first, word = peers.first(prefix=lan.host(), listen="0.0.0.0:7001")
    assert word.startswith("10.77.0.1:7001")
    second = peers.start("peer-2", "--join", word, prefix=lan.host(), listen="0.0.0.0:7002")
    second.wait_for("round", timeout_s=60, where=lambda e: e["participants"] == 2)
    for peer in (first, second):
        peer.kill()
    moved = [
        peers.start(peer.name, home=peer.home, prefix=lan.host(), listen=f"0.0.0.0:{port}")
        for peer, port in ((first, 7003), (second, 7004))
    ]
    rounds = until(
        lambda: [e for e in moved[0].events("round") if e["participants"] == 2],
        timeout_s=60,
        says="the run did not find itself",
    )
    same_bits(moved, rounds[0]["round"])
