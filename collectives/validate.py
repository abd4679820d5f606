"""Do the plans of all ranks fit together? Executes them in the abstract, before any byte moves."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from decentral.collectives.plan import Kind, Plan, Step


class PlanError(ValueError):
    """Plans that would hang, or would not leave every rank with what it should have."""


class Expect(enum.Enum):
    """What plans are for: which sums count as complete, and who must have them."""

    ALL_REDUCE = "all-reduce"
    """Segments sum all ranks' contributions; everybody ends with every segment."""
    REDUCE_SCATTER = "reduce-scatter"
    """Segments sum all ranks' contributions; the owner ends with its own."""
    GATHER = "gather"
    """A segment is what its owner holds; everybody ends with every segment (all-gather: one owner
    each; broadcast: one owner)."""


Parcel: TypeAlias = "tuple[int, bool, frozenset[int]]"
"""What travels: (segment, final?, ranks summed so far)."""


def validate(
    plans: Sequence[Plan],
    expect: Expect = Expect.ALL_REDUCE,
    *,
    count: int | None = None,
    alignment: int | None = None,
) -> None:
    """Execute one plan per rank in the abstract; raises PlanError if they do not fit together.

    Checks that segments tile the buffer (of `count` elements, in whole blocks of `alignment`,
    where given) and agree; that the engine accepts each plan by itself (spec_check.cc); that every
    step meets its other half in the same order on both ends; that nothing waits in a circle; that
    every contribution is counted exactly once; and that everybody ends with what `expect` says.

    Steps are taken whole. A set that passes cannot hang chunk by chunk either, with whatever bound
    on chunks in flight: each transfer depends only on transfers that complete without it.
    """
    _check_segments(plans, count, alignment)
    for rank, plan in enumerate(plans):
        check_steps(plan, rank, len(plans))
    world = _World(plans, expect)
    world.run()
    world.check_end()


def check_steps(plan: Plan, rank: int, members: int) -> None:
    """The engine's own rules for one rank's steps, as in native/collective/spec_check.cc."""

    def refuse(what: str, step: Step) -> PlanError:
        return PlanError(f"rank {rank}: {what}, in {step}")

    reduced, sent_partial, took_final, sent_final = (set[int]() for _ in range(4))
    for step in plan.steps:
        if not 0 <= step.peer < members or step.peer == rank:
            raise PlanError(f"rank {rank} names no other rank in {step}")
        if not 0 <= step.segment < len(plan.segments):
            raise PlanError(f"rank {rank} names no segment in {step}")
        at, ours = step.segment, plan.segments[step.segment].owner == rank
        if step.kind is Kind.SEND_PARTIAL:
            if ours or at in sent_partial or at in took_final:
                raise refuse("it has no partial sum to give (any more)", step)
            sent_partial.add(at)
        elif step.kind is Kind.RECV_REDUCE:
            if at in sent_partial or at in took_final or at in sent_final:
                raise refuse("a contribution comes too late, after its sum has left", step)
            reduced.add(at)
        elif step.kind is Kind.SEND_FINAL:
            if not ours and at not in took_final:
                raise refuse("a final value is forwarded before it is received", step)
            sent_final.add(at)
        else:
            if ours or at in took_final:
                raise refuse("the final value is received twice, or by its owner", step)
            if at in reduced and at not in sent_partial:
                raise refuse("a sum is overwritten before it is sent", step)
            took_final.add(at)


def _check_segments(plans: Sequence[Plan], count: int | None, alignment: int | None) -> None:
    if not plans:
        raise PlanError("no plans")
    end = 0
    for segment in plans[0].segments:
        if segment.offset != end or segment.count < 0 or not 0 <= segment.owner < len(plans):
            raise PlanError(f"{segment} does not continue the tiling at {end}")
        if alignment is not None and segment.count > 0 and segment.offset % alignment:
            raise PlanError(f"{segment} starts inside a block of {alignment}")
        end += segment.count
    if count is not None and end != count:
        raise PlanError(f"segments cover {end} elements of {count}")
    for rank, plan in enumerate(plans):
        if plan.segments != plans[0].segments:
            raise PlanError(f"rank {rank} has other segments than rank 0")


@dataclass(slots=True)
class _Rank:
    """One rank in mid-execution."""

    plan: Plan
    sums: list[frozenset[int]]
    """Per segment: whose contributions it holds and may still give away."""
    final: list[bool]
    open_receives: list[int]
    """Per segment: how many of its receives are not done."""
    waits: list[int] = field(default_factory=list)
    """Per step: how many of the steps that it must follow are not done."""
    then: list[list[int]] = field(default_factory=list)
    """Per step: those that follow it by the two rules of order."""
    done: list[bool] = field(default_factory=list)

    def order(self) -> None:
        """Works out `waits` and `then` from the list."""
        last_receive: dict[int, int] = {}
        last_in_lane: dict[tuple[bool, int], int] = {}
        for index, step in enumerate(self.plan.steps):
            lane = (step.kind.is_send, step.peer)
            before = {last_receive.get(step.segment), last_in_lane.get(lane)} - {None}
            self.waits.append(len(before))
            self.then.append([])
            self.done.append(False)
            for earlier in before:
                assert earlier is not None
                self.then[earlier].append(index)
            last_in_lane[lane] = index
            if not step.kind.is_send:
                last_receive[step.segment] = index


class _World:
    """All ranks and what is on its way between them."""

    def __init__(self, plans: Sequence[Plan], expect: Expect) -> None:
        self.expect = expect
        self.everybody = frozenset(range(len(plans)))
        self.wires: dict[tuple[int, int], deque[Parcel]] = {}
        self.blocked: dict[tuple[int, int], int] = {}  # a receive that only waits for its parcel
        self.ranks: list[_Rank] = []
        for rank, plan in enumerate(plans):
            open_receives = [0] * len(plan.segments)
            for step in plan.steps:
                open_receives[step.segment] += not step.kind.is_send
            sums = [frozenset({rank})] * len(plan.segments)
            state = _Rank(plan, sums, [False] * len(plan.segments), open_receives)
            state.order()
            self.ranks.append(state)

    def run(self) -> None:
        """Does every step that becomes possible, until none is."""
        ready = deque(
            (rank, index)
            for rank, state in enumerate(self.ranks)
            for index, waits in enumerate(state.waits)
            if waits == 0
        )
        while ready:
            rank, index = ready.popleft()
            state = self.ranks[rank]
            step = state.plan.steps[index]
            if step.kind.is_send:
                wire = (rank, step.peer)
                self.wires.setdefault(wire, deque()).append(self.send(rank, step))
                if wire in self.blocked:
                    ready.append((step.peer, self.blocked.pop(wire)))
            elif self.wires.get((step.peer, rank)):
                self.receive(rank, step, self.wires[step.peer, rank].popleft())
            else:
                self.blocked[step.peer, rank] = index
                continue
            state.done[index] = True
            for following in state.then[index]:
                state.waits[following] -= 1
                if state.waits[following] == 0:
                    ready.append((rank, following))

    def complete(self, rank: int, segment: int) -> bool:
        """The owner holds what the segment is to become."""
        state = self.ranks[rank]
        whole = frozenset({rank}) if self.expect is Expect.GATHER else self.everybody
        return state.sums[segment] == whole and state.open_receives[segment] == 0

    def send(self, rank: int, step: Step) -> Parcel:
        state, at = self.ranks[rank], step.segment
        if step.kind is Kind.SEND_PARTIAL:
            summed, state.sums[at] = state.sums[at], frozenset()  # it may be counted nowhere else
            return at, False, summed
        if state.plan.segments[at].owner == rank and not self.complete(rank, at):
            raise PlanError(f"rank {rank} sends an unfinished sum in {step}")
        return at, True, frozenset()

    def receive(self, rank: int, step: Step, parcel: Parcel) -> None:
        state, at = self.ranks[rank], step.segment
        segment, is_final, summed = parcel
        if segment != at or is_final != (step.kind is Kind.RECV_FINAL):
            raise PlanError(f"rank {rank} expects {step}, rank {step.peer} sends something else")
        state.open_receives[at] -= 1
        if is_final:
            state.final[at] = True
        elif state.sums[at] & summed:
            raise PlanError(f"a contribution counts twice in {step}")
        else:
            state.sums[at] |= summed

    def check_end(self) -> None:
        for rank, state in enumerate(self.ranks):
            for step, done in zip(state.plan.steps, state.done, strict=True):
                if not done:
                    raise PlanError(f"rank {rank} waits for ever in {step}")
        for (a, b), wire in self.wires.items():
            if wire:
                raise PlanError(f"rank {b} never receives segment {wire[0][0]} from rank {a}")
        for rank, state in enumerate(self.ranks):
            for index, segment in enumerate(state.plan.segments):
                if segment.owner == rank:
                    if segment.count > 0 and not self.complete(rank, index):
                        missing = sorted(self.everybody - state.sums[index])
                        raise PlanError(f"the sum of segment {index} lacks ranks {missing}")
                elif self.expect is Expect.REDUCE_SCATTER:
                    if state.sums[index] and segment.count > 0:
                        raise PlanError(f"rank {rank} never gives its part of segment {index}")
                elif segment.count > 0 and not state.final[index]:
                    raise PlanError(f"rank {rank} never gets the final value of segment {index}")
