"""What must never happen, checked at every commit and every vote.

one value per (lineage, slot); I1 one root per committed round; I2 no acknowledged round lost;
I6 no work counted twice; I7 no sample counted twice; a vote on the wire is on the disk
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from decentral.peer.acceptor import read_record
from decentral.peer.entries import encode_entry
from decentral.peer.leases import count, merged
from decentral.peer.messages import Accepted, Promise, unpack
from decentral.peer.protocol import Committed, RollbackEntry, RoundEntry
from decentral.types import Range

if TYPE_CHECKING:
    from decentral.simulator.world import Node, World

_ACCEPTED, _PROMISE = b"\xa2a2", b"\xa2p2"


@dataclass(slots=True)
class _Lineage:
    """What one lineage has committed, slot by slot."""

    entries: dict[int, bytes] = field(default_factory=dict)
    round: int = 0
    root: bytes = b""
    rounds: list[tuple[int, list[int], list[Range]]] = field(default_factory=list)
    """Per committed round that was not rolled back: its work and its samples."""
    reached: dict[str, int] = field(default_factory=dict)
    """Per peer, the slot up to which it has acknowledged."""


class Checker:
    def __init__(self, world: World) -> None:
        self.world = world
        self.violations: list[str] = []
        self.lineages: dict[str, _Lineage] = {}
        self.rounds_committed = 0
        self.last_commit_at = 0.0
        self.longest_gap_s = 0.0
        self.rollbacks = 0

    def violation(self, says: str) -> None:
        self.violations.append(f"t={self.world.now:.3f} {says}")

    def sent(self, node: Node, payload: bytes) -> None:
        """A vote must be durable before it is sent."""
        if payload[1:4] not in (_ACCEPTED, _PROMISE):
            return
        msg = unpack(payload)
        if node.disk is None:
            self.violation(f"n{node.index} votes without a durable record")
            return
        record = read_record(node.disk)
        if record.state is None or record.state.view.lineage != msg.lineage:
            return
        if record.state.slot != msg.slot:
            if record.state.slot < msg.slot:
                self.violation(f"n{node.index} votes in a slot that its disk does not know")
            return
        votes = record.votes
        if isinstance(msg, Accepted) and votes.accepted < msg.ballot:
            self.violation(f"n{node.index} sends a vote that is not on its disk")
        if isinstance(msg, Promise) and votes.promised < msg.ballot:
            self.violation(f"n{node.index} sends a promise that is not on its disk")

    def committed(self, node: Node, action: Committed) -> None:
        lineage = action.view.lineage
        if lineage not in self.lineages:
            self._new_lineage(node, lineage, action.slot)
        log = self.lineages[lineage]
        log.reached[node.peer] = max(log.reached.get(node.peer, 0), action.slot + 1)
        value = encode_entry(action.entry)
        known = log.entries.get(action.slot)
        if known is not None:
            if known != value:
                self.violation(
                    f"two values in slot {action.slot} of {lineage}: n{node.index} commits "
                    f"{action.entry}"
                )
            return
        log.entries[action.slot] = value
        match action.entry:
            case RoundEntry():
                self._round(log, lineage, action.entry)
            case RollbackEntry():
                self._rollback(log, lineage, action)

    def _new_lineage(self, node: Node, lineage: str, slot: int) -> None:
        log = self.lineages[lineage] = _Lineage()
        core = node.core
        state = core.replica.state if core is not None else None
        parents = [one for one in (state.ancestry if state else ()) if one in self.lineages]
        if not parents:
            return
        parent = self.lineages[parents[-1]]
        log.rounds = [(r, list(work), list(used)) for r, work, used in parent.rounds]
        log.round, log.root = parent.round, parent.root
        # I2: a survivor never goes on from before what it has acknowledged itself.
        members = state.view.members if state else ()
        for peer in members:
            if parent.reached.get(peer, 0) > slot:
                ahead = self.world.nodes[peer].index
                self.violation(
                    f"I2: lineage {lineage} starts at slot {slot}, but n{ahead} had "
                    f"acknowledged slot {parent.reached[peer] - 1} of its parent"
                )
        done = [value for at, value in sorted(parent.entries.items()) if at >= slot]
        from decentral.peer.entries import decode_entry

        for value in done:
            entry = decode_entry(value)
            if isinstance(entry, RoundEntry) and log.rounds and log.rounds[-1][0] >= entry.round:
                log.rounds = [one for one in log.rounds if one[0] < entry.round]
                log.round = entry.round - 1

    def _round(self, log: _Lineage, lineage: str, entry: RoundEntry) -> None:
        now = self.world.now
        self.rounds_committed += 1
        self.longest_gap_s = max(self.longest_gap_s, now - self.last_commit_at)
        self.last_commit_at = now
        if entry.round != log.round + 1 and log.round:
            self.violation(f"I2: round {entry.round} follows {log.round} in {lineage}")
        log.round, log.root = entry.round, entry.state_root
        work = [one.tokens for one in entry.contributions]
        used = [one for part in entry.contributions for one in part.leases]
        before = {one for _, done, _ in log.rounds for one in done}
        twice = before & set(work)
        if twice or len(set(work)) != len(work):
            self.violation(f"I6: work {sorted(twice)[:3]} counts twice in round {entry.round}")
        ranges = [one for _, _, done in log.rounds for one in done] + used
        if count(ranges) != count(merged(ranges)):
            self.violation(f"I7: samples count twice as of round {entry.round} of {lineage}")
        log.rounds.append((entry.round, work, used))

    def _rollback(self, log: _Lineage, lineage: str, action: Committed) -> None:
        entry = action.entry
        assert isinstance(entry, RollbackEntry)
        self.rollbacks += 1
        for node in self.world.alive():
            held = node.trainer.held
            if (
                node.peer in action.view.members
                and held is not None
                and held == (log.round, log.root)
                and log.round > entry.round
            ):
                self.violation(
                    f"I2: back to round {entry.round}, but n{node.index} still holds {log.round}"
                )
        log.rounds = [one for one in log.rounds if one[0] <= entry.round]
        log.round, log.root = entry.round, entry.state_root

    def settled(self) -> None:
        """After the faults are over: all live peers are members of one lineage, and agree (I1)."""
        alive = self.world.alive()
        standings = set()
        for node in alive:
            core = node.core
            assert core is not None
            status = core.status()
            if not core.replica.member:
                self.violation(f"I3: n{node.index} has not come back in")
            else:
                standings.add(status.lineage)
        if len(standings) > 1:
            self.violation(f"I3: lineages {sorted(standings)} have not merged")
        by_round: dict[int, set[bytes]] = {}
        for node in alive:
            if node.trainer.held is not None:
                by_round.setdefault(node.trainer.held[0], set()).add(node.trainer.held[1])
        for number, roots in by_round.items():
            if len(roots) > 1:
                self.violation(f"I1: {len(roots)} different states of round {number}")
