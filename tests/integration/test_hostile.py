"""A run under attack from outside and inside: nothing is accepted, nobody falls, rounds go on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from decentral.churn.hostile import siege

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_hostile_bytes(tmp_path: Path) -> None:
    """Half a minute of attacks on the sockets of three real peers. For a soak: more of it."""
    report = siege.run(tmp_path, seconds=24, seed=1)
    assert not report["notes"], json.dumps(report, indent=1)
    assert report["rounds"] > 20 and report["longest_gap_s"] <= 10
    kinds = set(report["attempts"])
    assert {"random bytes", "slow dribble", "replayed session"} <= kinds
    assert any(kind.startswith("man in the middle") for kind in kinds)
    assert report["phases"]["member"]["replayed"] > 100
    assert report["frames_and_messages_sent"]["guest: stale and foreign messages"] >= 1000
