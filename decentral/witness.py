"""What a peer writes into its own log so that others can check the run afterwards.

    contribution   what it offered: tokens, leases, a few elements of the outer gradient
    commit         what a committed round counted, and the same elements of what came of it
    adopted        the same, of a state that came from elsewhere: a peer, the disk
    rolled-back    the run went back; rounds after this one are undone

From all peers' logs `decentral.churn.audit` adds the sums up again. Off unless asked for
(`decentral peer --witness N`); only in `events.jsonl`, never on the event stream.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from decentral.leases import LeaseBook, Ranges
from decentral.mesh_port import MeshPort
from decentral.outer_work import Adoption, OwnWork
from decentral.peer.protocol import RollbackEntry
from decentral.state import HeldState, Layout

if TYPE_CHECKING:
    from decentral.types import Array


class WitnessLog:
    """Used from the user's thread only. `count`: elements per array, evenly spaced; 0: off.

    Of one tag, which the records name if it has a name.
    """

    def __init__(
        self, mesh: MeshPort, layout: Layout, book: LeaseBook, count: int, tag: str = ""
    ) -> None:
        self._mesh, self._book = mesh, book
        self._named = {"tag": tag} if tag else {}
        self._on = count > 0
        self._which = np.linspace(0, max(0, layout.trainable - 1), max(1, count)).astype(np.int64)

    def contributes(
        self, lineage: str, held: HeldState, work: OwnWork, leases: Ranges, delta: Array
    ) -> None:
        """Before the work is offered; the last record before a commit is what was counted."""
        if self._on:
            self._record(
                "contribution",
                lineage=lineage,
                round=held.round + 1,
                anchor_round=held.round,
                tokens=work.tokens,
                staleness=held.round - work.began_at,
                leases=_pairs(leases),
                delta=self._some(delta),
            )

    def applied(self, adoption: Adoption | None, held: HeldState, lineage: str) -> None:
        """After a committed state is in place."""
        if not self._on:
            return
        state = {
            "state_hash": held.root.hex(),
            "theta": self._some(held.theta),
            "momentum": self._some(held.momentum),
        }
        if adoption is None:
            self._record("adopted", lineage=lineage, round=held.round, **state)
            return
        entry, view = adoption.entry, adoption.view
        self._record(
            "commit",
            lineage=view.lineage,
            epoch=view.epoch,
            round=entry.round,
            attempt=entry.attempt,
            members=list(view.members),
            contributions=[
                {
                    "peer": one.peer,
                    "tokens": one.tokens,
                    "staleness": one.staleness,
                    "leases": _pairs(one.leases),
                }
                for one in entry.contributions
            ],
            granted=_pairs(self._book.granted),
            **state,
        )

    def rolls_back(self, lineage: str, entry: RollbackEntry) -> None:
        if self._on:
            self._record(
                "rolled-back",
                lineage=lineage,
                round=entry.round,
                state_hash=entry.state_root.hex(),
            )

    def _some(self, values: Array) -> list[float]:
        some: list[float] = values[self._which].tolist()
        return some

    def _record(self, event: str, **fields: Any) -> None:
        self._mesh.record({"event": event, **self._named, **fields})


def _pairs(ranges: Ranges) -> list[list[int]]:
    return [[one.start, one.stop] for one in ranges]
