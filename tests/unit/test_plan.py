"""Plans fit together, and what does not is said in one sentence."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decentral.collectives.plan import ALIGNMENT, Kind, Plan, Segment, Step
from decentral.collectives.schedules.ring import ring
from decentral.collectives.schedules.segments import even_segments
from decentral.collectives.validate import Expect, PlanError, check_steps, validate


@given(st.integers(1, 12), st.integers(0, 100_000))
def test_the_ring_is_valid(members: int, count: int) -> None:
    validate([ring(members, rank, count) for rank in range(members)])


@given(st.integers(1, 40), st.integers(0, 10**12))
def test_segments_tile_in_whole_blocks_and_differ_by_one_at_most(members: int, count: int) -> None:
    segments = even_segments(members, count)
    assert [s.owner for s in segments] == list(range(members))
    assert sum(s.count for s in segments) == count
    assert all(s.offset % ALIGNMENT == 0 or s.count == 0 for s in segments)
    sizes = [-(-s.count // ALIGNMENT) for s in segments]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("members", [2, 3, 4, 8])
def test_the_ring_talks_to_its_neighbours_and_sends_no_more_than_it_must(members: int) -> None:
    count = ALIGNMENT * members * 10
    for rank in range(members):
        plan = ring(members, rank, count)
        sends = [s for s in plan.steps if s.kind in (Kind.SEND_PARTIAL, Kind.SEND_FINAL)]
        assert {s.peer for s in sends} == {(rank + 1) % members}
        assert {s.peer for s in plan.steps} - {s.peer for s in sends} <= {(rank - 1) % members}
        sent = sum(plan.segments[s.segment].count for s in sends)
        assert sent == 2 * (members - 1) * count // members


def test_the_ring_alone_does_nothing() -> None:
    assert ring(1, 0, 1000) == Plan((Segment(0, 1000, 0),), ())


@pytest.mark.parametrize(
    ("members", "rank", "count"), [(0, 0, 1), (2, 2, 1), (2, -1, 1), (2, 0, -1)]
)
def test_no_plan_for_nonsense(members: int, rank: int, count: int) -> None:
    with pytest.raises(ValueError, match="no plan for rank"):
        ring(members, rank, count)


def plans(members: int = 3) -> list[Plan]:
    return [ring(members, rank, 3000) for rank in range(members)]


def without(plan: Plan, *indices: int) -> Plan:
    return replace(plan, steps=tuple(s for i, s in enumerate(plan.steps) if i not in indices))


def test_a_missing_receive_is_found() -> None:
    broken = plans()
    broken[1] = without(broken[1], 1)
    with pytest.raises(PlanError):
        validate(broken)


def test_a_missing_send_hangs_and_says_where() -> None:
    broken = plans()
    broken[0] = without(broken[0], 0)
    with pytest.raises(PlanError, match=r"waits for ever|something else"):
        validate(broken)


def test_a_circle_is_found() -> None:
    """Each waits for the other's partial sum before it sends its own."""
    one = (Segment(0, 512, 3),)
    around = [
        Plan(
            one,
            (
                Step(Kind.RECV_REDUCE, (rank - 1) % 3, 0),
                Step(Kind.SEND_PARTIAL, (rank + 1) % 3, 0),
            ),
        )
        for rank in range(3)
    ]
    with pytest.raises(PlanError, match="waits for ever"):
        validate([*around, Plan(one, ())])


def test_a_contribution_must_count_exactly_once() -> None:
    one = (Segment(0, 512, 0),)
    twice = [
        Plan(one, (Step(Kind.RECV_REDUCE, 1, 0), Step(Kind.RECV_REDUCE, 1, 0))),
        Plan(one, (Step(Kind.SEND_PARTIAL, 0, 0), Step(Kind.SEND_PARTIAL, 0, 0))),
    ]
    with pytest.raises(PlanError, match="no partial sum"):
        validate(twice)
    never = [
        Plan(one, (Step(Kind.SEND_FINAL, 1, 0),)),
        Plan(one, (Step(Kind.RECV_FINAL, 0, 0),)),
    ]
    with pytest.raises(PlanError, match="unfinished sum"):
        validate(never)


def test_everybody_must_get_the_result() -> None:
    one = (Segment(0, 512, 0),)
    half = [Plan(one, (Step(Kind.RECV_REDUCE, 1, 0),)), Plan(one, (Step(Kind.SEND_PARTIAL, 0, 0),))]
    with pytest.raises(PlanError, match="rank 1 never gets"):
        validate(half)


def test_segments_must_tile_and_agree() -> None:
    with pytest.raises(PlanError, match="no plans"):
        validate([])
    with pytest.raises(PlanError, match="tiling"):
        validate([Plan((Segment(0, 10, 0), Segment(11, 5, 0)), ())])
    with pytest.raises(PlanError, match="other segments"):
        validate([Plan((Segment(0, 10, 0),), ()), Plan((Segment(0, 11, 0),), ())])
    with pytest.raises(PlanError, match="no other rank"):
        validate([Plan((Segment(0, 10, 0),), (Step(Kind.SEND_FINAL, 0, 0),))])
    with pytest.raises(PlanError, match="names no segment"):
        validate([Plan((), (Step(Kind.SEND_FINAL, 1, 0),)), Plan((), ())])


@pytest.mark.parametrize(
    ("rank", "steps", "says"),
    [
        (0, [Step(Kind.SEND_PARTIAL, 1, 0)], "no partial sum"),
        (1, [Step(Kind.SEND_PARTIAL, 0, 0), Step(Kind.SEND_PARTIAL, 2, 0)], "no partial sum"),
        (1, [Step(Kind.RECV_FINAL, 0, 0), Step(Kind.SEND_PARTIAL, 0, 0)], "no partial sum"),
        (1, [Step(Kind.SEND_PARTIAL, 0, 0), Step(Kind.RECV_REDUCE, 2, 0)], "too late"),
        (0, [Step(Kind.SEND_FINAL, 1, 0), Step(Kind.RECV_REDUCE, 2, 0)], "too late"),
        (1, [Step(Kind.SEND_FINAL, 2, 0)], "before it is received"),
        (0, [Step(Kind.RECV_FINAL, 1, 0)], "by its owner"),
        (1, [Step(Kind.RECV_FINAL, 0, 0), Step(Kind.RECV_FINAL, 2, 0)], "received twice"),
        (1, [Step(Kind.RECV_REDUCE, 2, 0), Step(Kind.RECV_FINAL, 0, 0)], "overwritten"),
    ],
)
def test_what_the_engine_refuses_is_refused_here(rank: int, steps: list[Step], says: str) -> None:
    with pytest.raises(PlanError, match=says):
        check_steps(Plan((Segment(0, 512, 0),), tuple(steps)), rank, 3)


def test_what_plans_are_for_decides_what_they_must_do() -> None:
    one = (Segment(0, 512, 0),)
    gives = [
        Plan(one, (Step(Kind.RECV_REDUCE, 1, 0),)),
        Plan(one, (Step(Kind.SEND_PARTIAL, 0, 0),)),
    ]
    validate(gives, Expect.REDUCE_SCATTER)
    takes = [Plan(one, (Step(Kind.SEND_FINAL, 1, 0),)), Plan(one, (Step(Kind.RECV_FINAL, 0, 0),))]
    validate(takes, Expect.GATHER)
    with pytest.raises(PlanError, match="never gets the final"):
        validate(gives)
    with pytest.raises(PlanError, match="unfinished sum"):
        validate(takes)
    with pytest.raises(PlanError, match="lacks ranks"):
        validate([Plan(one, ()), Plan(one, ())], Expect.REDUCE_SCATTER)
    with pytest.raises(PlanError, match="never gets the final"):
        validate([Plan(one, ()), Plan(one, ())], Expect.GATHER)


def test_a_sum_without_somebody_goes_nowhere() -> None:
    one = (Segment(0, 512, 0),)
    without_two = [
        Plan(one, (Step(Kind.RECV_REDUCE, 1, 0), Step(Kind.SEND_FINAL, 2, 0))),
        Plan(one, (Step(Kind.SEND_PARTIAL, 0, 0),)),
        Plan(one, (Step(Kind.RECV_FINAL, 0, 0),)),
    ]
    with pytest.raises(PlanError, match="unfinished sum"):
        validate(without_two)


def test_counts_and_blocks_are_checked_where_they_are_given() -> None:
    plans = [Plan((Segment(0, 100, 0), Segment(100, 156, 0)), ())]
    validate(plans, count=256)
    with pytest.raises(PlanError, match="cover 256 elements of 300"):
        validate(plans, count=300)
    with pytest.raises(PlanError, match="inside a block"):
        validate(plans, alignment=256)


def test_both_ends_must_list_a_lane_in_the_same_order() -> None:
    two = (Segment(0, 256, 0), Segment(256, 256, 0))
    sends = (Step(Kind.SEND_PARTIAL, 0, 0), Step(Kind.SEND_PARTIAL, 0, 1))
    takes = (Step(Kind.RECV_REDUCE, 1, 1), Step(Kind.RECV_REDUCE, 1, 0))
    with pytest.raises(PlanError, match="something else"):
        validate([Plan(two, takes), Plan(two, sends)])
