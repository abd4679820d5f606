"""What must never happen, checked at every commit and every vote.

one value per (lineage, slot); I1 one root per committed round; I2 no acknowledged round lost;
I6 no work counted twice; I7 no sample counted twice; a vote on the wire is on the disk
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from decentral.peer.acceptor import read_votes
from decentral.peer.coordinator import NOBODY_HOLDS
from decentral.peer.leases import count, merged
from decentral.peer.messages import Accepted, Promise, unpack
from decentral.peer.protocol import Committed, Entry, RollbackEntry, RoundEntry
from decentral.types import Range

if TYPE_CHECKING:
    from decentral.simulator.node import Node
    from decentral.simulator.world import World

VOTES = (b"\xa2a2", b"\xa2p2")
"""What the bytes of Accepted and Promise have at [1:4]."""


@dataclass(slots=True)
class _Lineage:
    """What one lineage has committed, slot by slot."""

    entries: dict[int, Entry] = field(default_factory=dict)
    at: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    """Per tag, the last committed round and its root."""
    rounds: list[tuple[str, int, list[int], list[Range]]] = field(default_factory=list)
    """Per committed round that was not rolled back: its tag, number, work and samples."""
    whole: tuple[Range, ...] = ()
    """The samples of `rounds`, merged."""
    reached: dict[str, int] = field(default_factory=dict)
    """Per peer, the slot up to which it has acknowledged."""

    def samples(self) -> list[Range]:
        """All that rounds have counted."""
        return [one for *_, used in self.rounds for one in used]


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
        if self.world.recorder is not None:
            self.world.recorder.violated(says)

    def voted(self, node: Node, payload: bytes) -> None:
        """A vote must be durable before it is sent."""
        msg = unpack(payload)
        durable = node.disk.synced
        if durable is None:
            self.violation(f"n{node.index} votes without a durable record")
            return
        state, votes = read_votes(durable)
        if state is None or state.view.lineage != msg.lineage:
            return
        if state.slot != msg.slot:
            if state.slot < msg.slot:
                self.violation(f"n{node.index} votes in a slot that its disk does not know")
            return
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
        known = log.entries.get(action.slot)
        if known is not None:
            if known is not action.entry and known != action.entry:
                self.violation(
                    f"two values in slot {action.slot} of {lineage}: n{node.index} commits "
                    f"{action.entry}"
                )
            return
        log.entries[action.slot] = action.entry
        if self.world.recorder is not None:
            self.world.recorder.committed(node, action)
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
        log.rounds = [(tag, r, list(work), list(used)) for tag, r, work, used in parent.rounds]
        log.at = dict(parent.at)
        # I2: a survivor never goes on from before what it has acknowledged itself.
        members = state.view.members if state else ()
        for peer in members:
            if parent.reached.get(peer, 0) > slot:
                ahead = self.world.nodes[peer].index
                self.violation(
                    f"I2: lineage {lineage} starts at slot {slot}, but n{ahead} had "
                    f"acknowledged slot {parent.reached[peer] - 1} of its parent"
                )
        done = [entry for at, entry in sorted(parent.entries.items()) if at >= slot]
        for entry in done:
            if isinstance(entry, RoundEntry) and log.at[entry.tag][0] >= entry.round:
                log.rounds = [o for o in log.rounds if o[0] != entry.tag or o[1] < entry.round]
                log.at[entry.tag] = (entry.round - 1, b"")
        log.whole = merged(log.samples())

    def _round(self, log: _Lineage, lineage: str, entry: RoundEntry) -> None:
        now = self.world.now
        self.rounds_committed += 1
        self.longest_gap_s = max(self.longest_gap_s, now - self.last_commit_at)
        self.last_commit_at = now
        last, _ = log.at.get(entry.tag, (0, b""))
        if entry.round != last + 1 and last:
            self.violation(f"I2: round {entry.round} {entry.tag} follows {last} in {lineage}")
        log.at[entry.tag] = (entry.round, entry.state_root)
        # 0: ready to keep what others have worked out, where that is what a round is about.
        work = [one.tokens for one in entry.contributions if one.tokens]
        used = [one for part in entry.contributions for one in part.leases]
        before = {one for *_, done, _ in log.rounds for one in done}
        twice = before & set(work)
        if twice or len(set(work)) != len(work):
            self.violation(f"I6: work {sorted(twice)[:3]} counts twice in round {entry.round}")
        log.rounds.append((entry.tag, entry.round, work, used))
        whole = merged((*log.whole, *used))
        if count(whole) != count(log.whole) + count(used):
            self.violation(f"I7: samples count twice as of round {entry.round} of {lineage}")
        log.whole = whole

    def _rollback(self, log: _Lineage, lineage: str, action: Committed) -> None:
        entry = action.entry
        assert isinstance(entry, RollbackEntry)
        self.rollbacks += 1
        last = log.at.get(entry.tag, (0, b""))
        wished = entry.reason != NOBODY_HOLDS
        for node in self.world.alive():
            held = node.trainer.parts[entry.tag].held
            inside = node.peer in action.view.members and node.trainer.takes(entry.tag)
            if not wished and inside and held == last and last[0] > entry.round:
                self.violation(
                    f"I2: back to round {entry.round}, but n{node.index} still holds {last[0]}"
                )
        log.rounds = [one for one in log.rounds if one[0] != entry.tag or one[1] <= entry.round]
        log.whole = merged(log.samples())
        log.at[entry.tag] = (entry.round, entry.state_root)

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
            elif not node.trainer.member:
                self.violation(f"I3: n{node.index}'s trainer does not know that it is a member")
            else:
                standings.add(status.lineage)
        if len(standings) > 1:
            self.violation(f"I3: lineages {sorted(standings)} have not merged")
        by_round: dict[tuple[str, int], set[bytes]] = {}
        for node in alive:
            for tag, part in node.trainer.parts.items():
                if part.held is not None:
                    by_round.setdefault((tag, part.held[0]), set()).add(part.held[1])
        for (tag, number), roots in by_round.items():
            if len(roots) > 1:
                self.violation(f"I1: {len(roots)} different states of round {number} {tag}")
        self._conserved()

    def _conserved(self) -> None:
        """I7: below `next`, each sample is granted, returned or consumed, and only one of them."""
        for node in self.world.alive():
            state = node.core.replica.state if node.core is not None else None
            log = self.lineages.get(state.view.lineage) if state is not None else None
            if (
                state is None
                or log is None
                or any(log.at.get(one.tag, (0,))[0] != one.round for one in state.scopes)
                or not state.ledger.share
            ):
                continue
            ledger = state.ledger
            places = [one for _, ranges in ledger.grants for one in ranges]
            places += [*ledger.returned, *log.samples()]
            whole = merged(places)
            if count(places) != ledger.next or whole != ((Range(0, ledger.next),)):
                self.violation(
                    f"I7: n{node.index} accounts for {count(places)} of {ledger.next} samples, in "
                    f"{len(whole)} pieces"
                )
