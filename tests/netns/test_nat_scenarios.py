"""The NAT matrix's own machinery: rows that could not fail would prove nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from decentral.bench.lab import why_not
from decentral.bench.nat_lab import NatLab, Site
from decentral.bench.nat_matrix import _wrong
from decentral.bench.nat_peer import PROGRAM
from decentral.bench.nat_play import Stage, play
from decentral.bench.nat_rules import Router
from decentral.bench.nat_scenarios import DIRECT, FAR, ZERO, Scenario, scenarios, sites
from decentral.cli.fork_server import ForkServer

pytestmark = pytest.mark.netns


def test_every_scenario_has_its_sites_and_a_name_of_its_own() -> None:
    rows = list(scenarios())
    assert len({row.name for row in rows}) == len(rows)
    for rtt_ms in (ZERO, FAR):
        there = sites(rtt_ms)
        for row in rows:
            if row.rtt_ms == rtt_ms:
                assert row.sites | {row.entry, row.observer} <= set(there), row.name
                assert all(number < there[site].hosts for site, number in (row.a, row.b))
    assert sum(row.group == "pairs" for row in rows) == 15
    assert sum(row.group == "mapped" for row in rows) == 15
    for row in rows:
        if row.group == "mapped" and row.name != "none × none, one maps a port":
            routers = [sites(ZERO)[site].router for site in row.sites]
            assert sum(bool(one and one.upnp) for one in routers) == 1, row.name


PUBLIC = {"entry": Site(), "observer": Site()}


def act(tmp_path: Path, lab_sites: dict[str, Site], **options: Any) -> dict[str, Any]:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    with ForkServer(PROGRAM[0]) as server, NatLab({**PUBLIC, **lab_sites}) as lab:
        scenario = Scenario(name="a × b", group="pairs", a=("a", 0), b=("b", 0), **options)
        return play(lab, Stage(server, tmp_path), scenario, patience_s=3.0)


def test_two_public_hosts_have_a_direct_link_that_carries_data(tmp_path: Path) -> None:
    row = act(tmp_path, {"a": Site(), "b": Site()}, bar=DIRECT)
    assert row["held"] and row["why"] == "" and not _wrong([row])
    assert row["class"] == "direct" and row["how"] and row["relay"] is None
    assert row["verified"] and row["moved_mib"] == 16 and row["mib_s"] > 0
    assert row["entry_s"] > 0 and row["relayed_s"] is None
    assert row["link_s"] == row["direct_s"] and row["link_s"] > 0
    assert {step["peer"] for step in row["steps"]} == {"a", "b"}


def test_a_link_below_the_bar_is_told_and_so_is_its_class(tmp_path: Path) -> None:
    row = act(tmp_path, {"a": Site(), "b": Site()}, bar=frozenset({"relayed"}))
    assert not row["held"] and row["class"] == "direct" and row["verified"]
    assert "the link is direct, not relayed" in row["why"]
    assert _wrong([row]) == [f"a × b: {row['why']}"]


def test_a_peer_that_cannot_even_reach_the_entry_says_why(tmp_path: Path) -> None:
    places = {"a": Site(family="6"), "b": Site(router=Router(kind="symmetric"))}
    row = act(tmp_path, places)
    assert not row["held"] and row["class"] == "failed" and not row["verified"]
    assert "a was to say 'link'" in row["why"] and "no route" in row["why"]
