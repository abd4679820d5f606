"""What the page draws: an hour of 32 peers, ten thousand rounds, small enough for a browser."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from decentral.churn.audit.goodput import final_lineage
from decentral.churn.audit.history import Commit

if TYPE_CHECKING:
    from decentral.churn.audit.auditor import Auditor

MOST_ROUNDS = 3000
"""Rounds that are drawn one by one; of more, neighbours become one mark."""


@dataclass(frozen=True, slots=True)
class Records:
    """Times are seconds since the run began."""

    ends: float
    lanes: dict[str, list[list[Any]]]
    """Per peer: [from, condition]."""
    lineages: list[list[str]]
    """[id, parent]."""
    rounds: list[list[Any]]
    """[from, to, lineage's index, first round, last round, fewest contributors, undone]."""
    faults: list[list[Any]]
    """[from, to, kind, label, detail, recovery in seconds or null, peers]."""
    rollbacks: list[list[Any]]
    """[at, words]."""
    recoveries: list[float]
    """Seconds, of faults that left a healthy quorum."""


def records(auditor: Auditor, began: float, end: float) -> Records:
    world, history = auditor.world, auditor.history
    order = {id: index for index, id in enumerate(history.lineages)}

    def since(at: float) -> float:
        return round(at - began, 3)

    final = final_lineage(world, history)
    kept = {id(one) for one in final.live.values()} if final is not None else set()
    recovered = {one.fault.id: round(one.seconds, 3) for one in auditor.gaps.recoveries}
    faults: list[list[Any]] = []
    for one in world.faults:
        until = one.healed_at if one.healed_at is not None else one.at
        detail = ", ".join(f"{key} {value}" for key, value in one.detail.items())
        label = f"{one.kind} {', '.join(one.peers)}".strip()
        faults.append(
            [
                since(one.at),
                since(until),
                one.kind,
                label,
                detail,
                recovered.get(one.id),
                list(one.peers),
            ]
        )
    return Records(
        ends=since(end),
        lanes={
            name: [[since(at), condition] for at, condition in peer.lanes]
            for name, peer in sorted(world.peers.items(), key=lambda item: _natural(item[0]))
        },
        lineages=[[one.id, one.parent] for one in history.lineages.values()],
        rounds=[
            [since(group[0].at), since(group[-1].at), order[group[0].lineage], group[0].round,
             group[-1].round, min(one.contributors for one in group), id(group[0]) not in kept]
            for group in _grouped(history.commits, kept)
        ],
        faults=faults,
        rollbacks=[
            [since(one.at), f"lineage {one.lineage} back to round {one.round}, told by {one.by}"]
            for lineage in history.lineages.values()
            for one in lineage.rollbacks
        ],
        recoveries=[
            round(one.seconds, 3)
            for one in auditor.gaps.recoveries
            if one.with_quorum and one.takes_away
        ],
    )  # fmt: skip


def _grouped(commits: list[Commit], kept: set[int]) -> list[list[Commit]]:
    """Neighbours of one lineage and one fate together, so that not too many are left."""
    size = 1 + len(commits) // MOST_ROUNDS
    groups: list[list[Commit]] = []
    for one in commits:
        last = groups[-1] if groups else None
        if (
            last is not None
            and len(last) < size
            and last[0].lineage == one.lineage
            and (id(last[0]) in kept) == (id(one) in kept)
        ):
            last.append(one)
        else:
            groups.append([one])
    return groups


def _natural(name: str) -> tuple[str, int]:
    """peer-2 before peer-10."""
    stem = name.rstrip("0123456789")
    return stem, int(name[len(stem) :] or 0)
