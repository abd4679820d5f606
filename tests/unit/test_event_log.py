"""The event log on a disk that refuses: a line is lost, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from decentral import failpoints
from decentral.peer.home import Home
from decentral.peer.runtime.events import EventLog


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with Home(tmp_path / "home") as made:
        yield made
    failpoints.disarm_all()


def test_a_line_that_cannot_be_written_is_told_all_the_same_and_the_fault_once(home: Home) -> None:
    told: list[Mapping[str, Any]] = []
    published: list[str] = []
    log = EventLog(home, told.append, lambda topic, record: published.append(topic))
    log.emit("round", round=1)
    for number in (2, 3):
        failpoints.arm("event-write=error")
        log.emit("round", round=number)
    log.emit("round", round=4)
    failpoints.arm("event-write=error")
    log.record("witness")
    assert [e.get("round", e.get("kind")) for e in told] == [1, "event-log", 2, 3, 4, "event-log"]
    assert "input/output error" in told[1]["says"] and told[1]["event"] == "fault"
    assert published == ["round"] * 4
    lines = [json.loads(line) for line in home.events.read_text().splitlines()]
    assert [line.get("round") for line in lines] == [None, 1, 4]
