"""I2: what a peer acknowledged is not lost while one member that acknowledged it lives.

`History` finds two hashes for one round (I1); here is whether rounds may have gone back at all.
"""

from __future__ import annotations

from decentral.churn.audit.findings import Findings
from decentral.churn.audit.history import Commit, History, Lineage, Listener, Rollback
from decentral.churn.audit.timeline import ASKS_BACK, WIPES, World

ASKED_WITHIN_S = 30.0
"""How long after somebody asked for a rollback it may still come."""


class Acknowledged(Listener):
    def __init__(self, world: World, history: History, findings: Findings) -> None:
        self._world, self._history, self._findings = world, history, findings

    def replaced(self, lineage: Lineage, old: Commit, new: Commit) -> None:
        known = old.acknowledged_by or old.by
        self._findings.add(
            "I2", new.at,
            f"round {new.round} of lineage {lineage.id}, acknowledged by {known} as "
            f"{old.state_hash[:12]}, is lost: {new.by} commits {new.state_hash[:12]} in its place",
            peer=new.by,
        )  # fmt: skip

    def rolled_back(self, lineage: Lineage, rollback: Rollback) -> None:
        if self._asked(rollback.at):
            return
        for name, (life, where, number, state_hash) in sorted(self._history.held.items()):
            peer = self._world.peers.get(name)
            if (
                where == lineage.id
                and number > rollback.round
                and any((c.round, c.state_hash) == (number, state_hash) for c in rollback.undone)
                and peer is not None
                and peer.well
                and life == peer.life
                and peer.member
                and (not lineage.members or peer.id in lineage.members)
                and self._world.reaches(name, rollback.by)
            ):
                self._findings.add(
                    "I2", rollback.at,
                    f"{rollback.by} rolls lineage {lineage.id} back to round {rollback.round}, "
                    f"but {name} is a member, lives and holds round {number}",
                    peer=name,
                )  # fmt: skip
        wiped = any(one.is_a(WIPES, "wipes") for one in self._world.faults)
        if rollback.round < lineage.durable and not wiped:
            self._findings.add(
                "I2", rollback.at,
                f"{rollback.by} rolls lineage {lineage.id} back to round {rollback.round}, though "
                f"round {lineage.durable} was said to be durable",
                peer=rollback.by,
            )  # fmt: skip

    def branched(self, lineage: Lineage, parent: Lineage, commit: Commit) -> None:
        """A survivor never goes on from before what it has acknowledged itself."""
        for id in commit.members:
            name = self._world.name(id)
            peer, held = self._world.peers.get(name), self._history.held.get(name)
            if peer is None or held is None:
                continue
            life, where, number, state_hash = held
            if (life, where) != (peer.life, parent.id) or number < commit.round or peer.came_over:
                continue
            if (number, state_hash) == (commit.round, commit.state_hash):
                continue  # what was on its way when the lineages parted, and is kept
            self._findings.add(
                "I2", commit.at,
                f"lineage {lineage.id} goes on from round {commit.round - 1} of {parent.id}, but "
                f"its member {name} had acknowledged round {number}",
                peer=name,
            )  # fmt: skip

    def _asked(self, at: float) -> bool:
        return any(
            one.is_a(ASKS_BACK, "rolls_back") and one.at <= at <= one.at + ASKED_WITHIN_S
            for one in self._world.faults
        )
