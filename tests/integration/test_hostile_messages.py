"""Hostile messages behind decryption: what a peer that was let in may say."""

from __future__ import annotations

import pytest

from decentral.churn.hostile import behind


@pytest.mark.slow
def test_nothing_is_accepted_and_nothing_raises() -> None:
    """100,000 mutated messages and 10,000 replays. For a soak: more of both."""
    report = behind.run(seed=1)
    assert not report["notes"], report["notes"][:20]
    mutated = ("PeerCore.handle, mutated", "Admission.receive", "Donor.handle, Fetcher.received")
    assert sum(report[layer]["sent"] for layer in mutated) >= 100_000
    assert report["PeerCore.handle, replayed or stale"]["sent"] >= 10_000
