"""A run under attack from outside and inside: nothing is accepted, nobody falls, rounds go on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from decentral.churn import hostile

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_hostile_bytes(tmp_path: Path) -> None:
    """100,000 mutated messages and 10,000 replays behind decryption, and half a minute of attacks
    on the sockets of three real peers. For a soak: more of both."""
    report = hostile.run(tmp_path, seconds=24, seed=1)
    assert report["held"], json.dumps(report, indent=1)
    behind = report["behind_decryption"]
    mutated = ("PeerCore.handle, mutated", "Admission.receive", "Donor.handle, Fetcher.received")
    assert sum(behind[layer]["sent"] for layer in mutated) >= 100_000
    assert behind["PeerCore.handle, replayed or stale"]["sent"] >= 10_000
    sockets = report["on_sockets"]
    assert sockets["rounds"] > 20 and sockets["longest_gap_s"] <= 10
    kinds = set(sockets["attempts"])
    assert {"random bytes", "slow dribble", "replayed session"} <= kinds
    assert any(kind.startswith("man in the middle") for kind in kinds)
    assert sockets["phases"]["member"]["replayed"] > 100
    assert sockets["frames_and_messages_sent"]["guest: stale and foreign messages"] >= 1000
