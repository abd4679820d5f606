"""The page of a run shows what happened in it, and making it changes nothing."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from decentral.errors import ConfigError, DiskError
from decentral.peer.protocol import Fault
from decentral.simulator import Report, simulate, simulate_command
from decentral.simulator.recorder import Recorder
from decentral.simulator.trace_page import trace_page
from decentral.simulator.world import World


def recorded(
    seed: int, peers: int, scenario: str = "everything", duration_s: float = 120.0
) -> tuple[Recorder, Report]:
    recorder = Recorder()
    return recorder, simulate(seed, peers, scenario, duration_s, recorder.attach)


def drawn(page: str) -> dict[str, Any]:
    """What the page's script draws."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


class Elements(HTMLParser):
    """Every element of a page, and whatever its attributes refer to."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.links: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.links += [value or "" for name, value in attrs if name in {"src", "href", "action"}]


def struck_by(seed: int, kinds: set[str]) -> tuple[Recorder, Report]:
    for one in range(seed, seed + 20):
        recorder, report = recorded(one, 6)
        if kinds <= {strike.kind for strike in recorder.strikes}:
            return recorder, report
    raise AssertionError(f"no seed from {seed} to {seed + 19} has {kinds}")


def test_partition_and_crash_are_on_the_page() -> None:
    recorder, report = struck_by(0, {"split", "crash"})
    page = trace_page(recorder, report, "decentral simulate --seed 1")
    data = drawn(page)
    assert list(data["lanes"]) == [f"n{number}" for number in range(len(data["lanes"]))]
    assert len(data["lanes"]) >= 6
    rounds = [one for one in data["commits"] if one[3] == "round"]
    assert len(rounds) == report.rounds
    assert page.count('<tr class="round"') == report.rounds
    strikes = {one[2]: one for one in data["strikes"]}
    sides = strikes["split"][3].replace(" | ", " ").split()
    assert len(sides) >= 6
    assert set(sides) == {f"n{number}" for number in range(len(sides))}
    at_s, until_s, _, victim = strikes["crash"]
    assert at_s < until_s <= data["heals"][0] + 0.1
    down = [one for one in data["lanes"][victim] if one[1] == "down"]
    assert [at_s, "down", "", "crash"] in down
    assert report.trace_hash in page
    assert "no violation" in page
    elements = Elements(page)
    assert not elements.links
    assert not {"link", "img", "iframe"} & set(elements.names)


@pytest.mark.parametrize("seed", range(4))
def test_recording_changes_nothing(seed: int) -> None:
    recorder, report = recorded(seed, 7)
    assert recorder.commits
    assert report == simulate(seed, 7, "everything", 120.0)


def test_lanes_show_forks_and_the_merge() -> None:
    recorder = Recorder()

    def torn(world: World) -> None:
        recorder.attach(world)
        halves = {peer: number % 2 for number, peer in enumerate(sorted(world.nodes))}
        world.at(20.0, world.network.partition, halves)
        world.at(65.0, world.network.unite)

    report = simulate(3, 8, "calm", 150.0, torn)
    data = drawn(trace_page(recorder, report, ""))
    first, *forks = data["lineages"]
    assert first[1] == ""
    assert [parent for _, parent in forks] == [first[0], first[0]]
    for lane in data["lanes"].values():
        at_60_s = [one for one in lane if one[0] <= 60.0][-1]
        assert at_60_s[2] in {one for one, _ in forks}
    assert len({lane[-1][2] for lane in data["lanes"].values()}) == 1
    assert {"fork", "merge"} <= {one[2] for one in data["reports"]}
    leaders = [name for name, lane in data["lanes"].items() if lane[-1][1] == "coordinator"]
    assert len(leaders) == 1


def test_a_violation_is_on_the_page() -> None:
    recorder = Recorder()

    def forgetful(world: World) -> None:
        recorder.attach(world)
        world.drop_persist = True

    report = simulate(0, 4, "calm", 90.0, forgetful)
    assert report.violations
    page = trace_page(recorder, report, "")
    assert [f"t={at:.3f} {says}" for at, says in drawn(page)["violations"]] == report.violations
    assert f"<li>{report.violations[0]}</li>" in page
    assert f"{len(report.violations)} violations" in page
    assert "no violation" not in page


def test_no_text_becomes_markup() -> None:
    recorder, report = recorded(0, 2, "calm", 90.0)
    before = Elements(trace_page(recorder, report, "")).names
    evil = "</script><img src=x onerror=alert(1)>&"
    recorder.reported(recorder.world.node(0), Fault("fork", None, evil))
    recorder.commits[0] = replace(recorder.commits[0], says=evil, label=evil)
    recorder.violated(evil)
    page = trace_page(recorder, replace(report, violations=[evil]), evil)
    added = list(Elements(page).names)
    for name in before:
        added.remove(name)
    assert added == ["ul", "li"]
    assert drawn(page)["reports"][-1][3] == evil


def test_the_command_writes_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "out.html"

    def run(**more: Any) -> int:
        return simulate_command(peers=3, scenario="calm", simulated_s=90.0, **more)

    assert run(seed=4, trace=str(path)) == 0
    assert "seed 4: ok" in capsys.readouterr().out
    page = path.read_text(encoding="utf-8")
    assert "decentral simulate --seed 4 --peers 3 --simulated-s 90 --scenario calm" in page
    with pytest.raises(ConfigError, match="--seed"):
        run(seeds=2, trace=str(path))
    with pytest.raises(DiskError, match="could not be written"):
        run(seed=4, trace=str(tmp_path / "none" / "out.html"))
