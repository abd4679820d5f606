"""Every pair of networks connects: the whole NAT matrix, with real peers."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from decentral.bench.lab import why_not
from decentral.bench.nat_matrix import add_arguments, measure
from decentral.bench.nat_scenarios import CONNECTED, DIRECT, scenarios

pytestmark = [pytest.mark.netns, pytest.mark.slow]

LIMIT_S = 180.0
LOADED = 3.0
"""Of a limit on a time, on a machine that does other things too."""


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    reason = why_not(delayed=True)
    if reason:
        pytest.skip(reason)
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return measure(parser.parse_args([]))


def rows(report: dict[str, Any], group: str) -> list[dict[str, Any]]:
    return [row for row in report["results"] if row["group"] == group]


def test_all_15_pairs_connect_and_14_directly(report: dict[str, Any]) -> None:
    pairs = rows(report, "pairs")
    assert len(pairs) == 15
    assert [row["scenario"] for row in pairs if row["class"] not in CONNECTED] == []
    assert sum(row["class"] in DIRECT for row in pairs) >= 14


def test_a_mapped_port_on_one_side_makes_all_15_direct(report: dict[str, Any]) -> None:
    mapped = rows(report, "mapped")
    assert len(mapped) == 15
    assert [row["scenario"] for row in mapped if row["class"] not in DIRECT] == []


@pytest.mark.parametrize("scenario", list(scenarios()), ids=lambda one: f"{one.group}: {one.name}")
def test_the_link_is_good_enough_and_carries_data(report: dict[str, Any], scenario: Any) -> None:
    (row,) = (one for one in report["results"] if one["scenario"] == scenario.name)
    assert row["held"], row["why"]
    assert row["verified"] and row["moved_mib"] == 16
    assert row["how"], "its class without a reason"
    assert row["class"] != "relayed" or row["relay"], "through whom?"


def test_links_come_up_in_time(report: dict[str, Any]) -> None:
    limits = {"entry_s": 0.5, "link_s": 1.5, "relayed_s": 1.0}
    for row in report["results"]:
        for name, limit in limits.items():
            assert row[name] is None or row[name] < LOADED * limit, (row["scenario"], name)


def test_the_whole_takes_three_minutes_at_most(report: dict[str, Any]) -> None:
    assert report["took_s"] < LIMIT_S
