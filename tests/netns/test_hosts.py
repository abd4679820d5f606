"""Peers on different hosts: the printed line works as it is, and a pulled cable is survived."""

from __future__ import annotations

import shlex
import time
from pathlib import Path

import pytest
from lan import Lan
from processes import Peers, same_bits

pytestmark = pytest.mark.netns


def test_the_printed_line_works_on_another_host(
    lan: Lan, peers: Peers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, word = peers.first(prefix=lan.host(), listen="0.0.0.0:0")
    assert word.startswith("10.77.0.1:")
    assert shlex.split(f"decentral peer --join {word}")[-1] == word, "one word for any shell"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    second = peers.start("peer-2", "--join", word, prefix=lan.host(), listen="0.0.0.0:0")
    event = second.wait_for("round", timeout_s=60, where=lambda e: e["participants"] == 2)
    same_bits([first, second], event["round"])


def test_a_pulled_cable(lan: Lan, peers: Peers) -> None:
    """Nobody gets a FIN: only silence tells. The lonely peer rejoins when the cable is back."""
    first, word = peers.first(prefix=lan.host(), listen="0.0.0.0:0")
    group = [first] + [
        peers.start(f"peer-{n}", "--join", word, prefix=lan.host(), listen="0.0.0.0:0")
        for n in (2, 3)
    ]
    for peer in group:
        peer.wait_for("round", timeout_s=60, where=lambda e: e["participants"] == 3)
    lan.unplug(3)
    pulled_at = time.monotonic()
    before = first.round
    for peer in group[:2]:
        event = peer.wait_for(
            "round",
            timeout_s=30,
            where=lambda e: e["round"] > before + 1 and e["participants"] == 2,
        )
        assert event["seen_at"] - pulled_at < 12
    lan.plug(3)
    back = group[2].wait_for(
        "round",
        timeout_s=60,
        where=lambda e: e["round"] > event["round"] and e["participants"] == 3,
    )
    same_bits(group, back["round"])
