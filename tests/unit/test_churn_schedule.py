"""Schedules of faults: drawn from a seed, all kinds in them, a majority left alone; as JSON."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decentral.churn.faults import Injector
from decentral.churn.kinds import ALL, KINDS, possible
from decentral.churn.schedule import (
    BACK_S,
    Schedule,
    check_kinds,
    like_pccl,
    plan,
    turnover,
)
from decentral.errors import ConfigError, DiskError

SEEDS = st.integers(0, 2**31 - 1)


def drawn(seed: int, peers: int = 16, seconds: float = 240.0) -> Schedule:
    return plan(seed=seed, peers=peers, seconds=seconds, rate=1.0, kinds=ALL)


def test_every_kind_has_a_method() -> None:
    for kind in KINDS:
        assert callable(getattr(Injector, f"_{kind.replace('-', '_')}")), kind


@given(SEEDS)
def test_the_seed_says_it_all(seed: int) -> None:
    assert drawn(seed) == drawn(seed)
    assert drawn(seed).faults != drawn(seed + 1).faults


@given(SEEDS)
def test_four_minutes_have_nearly_every_kind_in_proportion(seed: int) -> None:
    faults = drawn(seed).faults
    kinds = {fault.kind for fault in faults}
    assert len(kinds) >= len(ALL) - 2, set(ALL) - kinds
    often, seldom = (sum(f.kind == kind for f in faults) for kind in ("kill", "everybody"))
    assert often > 3 * seldom


@given(SEEDS, st.integers(3, 40))
def test_a_majority_is_left_alone(seed: int, peers: int) -> None:
    """Whoever is taken out counts as missing until it has had time to come back."""
    faults = [f for f in drawn(seed, peers).faults if not KINDS[f.kind].alone_s]
    out = [f for f in faults if KINDS[f.kind].takes_out]
    for fault in out:
        missing = {
            seat
            for other in out
            if other.at_s <= fault.at_s < other.at_s + other.for_s + BACK_S
            for seat in other.seats
        }
        # Two or more at a time are hit by some kinds, whatever the number of peers.
        assert len(missing) <= max(2, (peers - 1) // 2), (fault, missing)


@given(SEEDS)
def test_what_needs_peace_gets_it(seed: int) -> None:
    faults = drawn(seed).faults
    for one, following in pairwise(faults):
        assert following.at_s >= one.at_s + KINDS[one.kind].alone_s


def test_even_distances() -> None:
    found = plan(seed=1, peers=4, seconds=100, rate=0.1, kinds=("kill",), even=True).faults
    assert [fault.at_s for fault in found] == [10.0 * n for n in range(1, 10)]


@given(SEEDS)
def test_pccl_keeps_two_to_ten(seed: int) -> None:
    up = {0, 1}
    before_s = 0.0
    for fault in like_pccl(seed=seed, seconds=120).faults:
        assert 0.5 <= round(fault.at_s - before_s, 3) <= 2.0
        before_s = fault.at_s
        (up.add if fault.kind == "spawn" else up.remove)(fault.seats[0])
        assert 2 <= len(up) <= 10


def test_turnover_is_newcomers_only() -> None:
    found = turnover(seed=3, peers=4, count=50, every_s=0.4)
    assert {fault.kind for fault in found.faults} == {"join"}
    assert len(found.faults) == 50
    assert found.seconds > found.faults[-1].at_s + found.faults[-1].for_s


@given(SEEDS)
def test_a_file_gives_it_back(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    path = tmp_path_factory.mktemp("schedule") / "schedule.json"
    drawn(seed).save(path)
    assert Schedule.load(path) == drawn(seed)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda v: v["faults"][0].update(kind="flood"), "flood"),
        (lambda v: v["faults"][0].update(at_s=-1), "-1"),
        (lambda v: v["faults"][0].update(colour="red"), "colour"),
        (lambda v: v.pop("faults"), "faults"),
    ],
)
def test_an_edited_file_is_checked(tmp_path: Path, change: object, says: str) -> None:
    path = tmp_path / "schedule.json"
    drawn(1).save(path)
    value = json.loads(path.read_text())
    assert callable(change)
    change(value)
    path.write_text(json.dumps(value))
    with pytest.raises(ConfigError, match=says):
        Schedule.load(path)


def test_what_is_no_schedule(tmp_path: Path) -> None:
    with pytest.raises(DiskError):
        Schedule.load(tmp_path / "none.json")
    (tmp_path / "text").write_text("[")
    with pytest.raises(ConfigError, match="no schedule"):
        Schedule.load(tmp_path / "text")


def test_kinds_by_name() -> None:
    assert check_kinds("all") == ALL
    assert check_kinds("kill,stop") == ("kill", "stop")
    with pytest.raises(ConfigError, match="flood"):
        check_kinds("kill,flood")
    assert "loss-5" not in possible(ALL, {"tmpfs"})
    assert set(possible(ALL, {"network", "tmpfs", "cgroup"})) == set(ALL)
