"""Crowds: leaders die, the network tears in three, newcomers arrive; and membership by itself."""

from __future__ import annotations

import pytest

from decentral.simulator.crowd import crowd
from decentral.simulator.detection import detect


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_crowd_that_is_torn_and_joined_breaks_no_invariant() -> None:
    report = crowd(1, peers=80, joiners=16, deaths=3)
    assert not report.violations, f"decentral simulate crowd --peers 80: {report.violations[:3]}"


def test_deaths_are_known_and_the_living_are_left_alone() -> None:
    deaths = detect(1, 150, seconds=40.0, deaths=3)
    assert deaths.informed_within_s(0.99) <= 8.0
    assert detect(2, 150, seconds=60.0).false_evictions == 0


def test_lifeguard_spares_those_who_stall() -> None:
    """A mutation: without Lifeguard the same stalls must kill many times more of the living."""
    guarded = detect(3, 150, seconds=60.0, stalling=0.08)
    plain = detect(3, 150, seconds=60.0, stalling=0.08, lifeguard=False)
    assert plain.false_evictions >= 20 * max(1, guarded.false_evictions)
