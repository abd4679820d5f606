"""Simulated work on leases: tags that a few members keep, and that change hands with every view.

    view ──▶ the first `copies` members in the tag's order keep it, the very first works on it
    commit ─▶ whoever keeps it no more lets go of it once those who do have the next round

So it is in `decentral.dataflow`, of which this is the log's side: what a worker brings is one
number, what matters is that no committed round is ever lost or replaced.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from decentral.peer.protocol import Action, Committed, Evicted, Joined, RoundEntry, TakePart
from decentral.simulator.part import Part, initial_root
from decentral.simulator.trainer import Trainer
from decentral.types import PeerId, Range, View

if TYPE_CHECKING:
    from decentral.simulator.node import Node


def keepers(tag: str, view: View, copies: int) -> tuple[PeerId, ...]:
    """Who keeps a tag: the first of the view in the tag's own order."""

    def rank(peer: PeerId) -> bytes:
        return hashlib.sha256(f"{tag} {peer}".encode()).digest()

    return tuple(sorted(view.members, key=rank)[:copies])


class KeptPart(Part):
    """A tag as one of its keepers has it: on disk before it is voted on."""

    trainer: Keepers

    def boot(self) -> None:
        pass  # a founder says what the run begins with; all else is found when it is leased

    def find(self) -> None:
        """What is committed may be on this disk, or be what all began with."""
        core = self.node.core
        state = core.replica.state if core is not None else None
        if state is None or not self.trainer.takes(self.tag):
            return
        scope = state.scope(self.tag)
        if self.held == (scope.round, scope.root) or not scope.root:
            return
        kept: Mapping[int, bytes] = self.node.disk.checkpoints.get(self.tag, {})
        if scope.round == 0 or kept.get(scope.round) == scope.root:
            self._hold(scope.round, scope.root)

    def let_go(self) -> None:
        self.held = self.fetching = None
        self.states.clear()
        self.drop()

    def reduced(self, number: int, attempt: int, contributions: tuple[object, ...]) -> None:
        super().reduced(number, attempt, contributions)  # type: ignore[arg-type]
        if self.outcome is not None:
            self.node.disk.keep_checkpoint(self.tag, number, self.outcome[2])

    def compute(self) -> None:
        if self.trainer.works_on(self.tag):
            super().compute()
        elif self.held is not None and self.trainer.leased(self.tag):
            self._contribute(self.held[0] + 1)  # ready to keep what another works out

    def _checkpoint(self, number: int, root: bytes) -> None:
        if self.held is not None:
            super()._checkpoint(number, root)


class Keepers(Trainer):
    """Of a world whose config asks for `copies`."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.kept: set[str] = set()
        self.parts: dict[str, Part] = {tag: KeptPart(self, tag) for tag in node.world.config.tags}

    def takes(self, tag: str) -> bool:
        return tag in self.kept

    def leased(self, tag: str) -> bool:
        return self.node.peer in self._keepers(tag)

    def works_on(self, tag: str) -> bool:
        return self._keepers(tag)[:1] == (self.node.peer,)

    def _keepers(self, tag: str) -> tuple[PeerId, ...]:
        core = self.node.core
        state = core.replica.state if core is not None else None
        return () if state is None else keepers(tag, state.view, self.world.config.copies)

    def found(self) -> None:
        """What the run begins with."""
        for tag, part in self.parts.items():
            part._hold(0, initial_root(tag))

    def on(self, action: Action) -> None:
        super().on(action)
        match action:
            case Joined():
                for tag, disk in self.node.disk.checkpoints.items():
                    if disk:
                        self._keep(tag)
                self._look()
            case Committed():
                if isinstance(action.entry, RoundEntry):
                    self._pass_on(action.entry, action.view)
                self._look()
            case Evicted():
                for tag in sorted(self.kept):
                    self.world.after(0.0, self._let_go, self.node.life, tag)

    def _look(self) -> None:
        """Soon, not now: this is in the middle of an event."""
        self.world.after(0.01, self._look_now, self.node.life)

    def _look_now(self, life: int) -> None:
        if life != self.node.life or not self.member:
            return
        for tag, part in self.parts.items():
            if self.leased(tag):
                self._keep(tag)
            assert isinstance(part, KeptPart)
            part.find()

    def _keep(self, tag: str) -> None:
        if tag not in self.kept:
            self.kept.add(tag)
            self.node.deliver(TakePart(tag, True))

    def _pass_on(self, entry: RoundEntry, view: View) -> None:
        """All who are to keep it have the next round: whoever else had the last one is free."""
        those = set(keepers(entry.tag, view, self.world.config.copies))
        if entry.tag in self.kept and those <= {one.peer for one in entry.contributions}:
            self.world.after(0.01, self._let_go, self.node.life, entry.tag)

    def _let_go(self, life: int, tag: str) -> None:
        mine = self.member and self.leased(tag)
        if life == self.node.life and tag in self.kept and not mine:
            self.kept.discard(tag)
            part = self.parts[tag]
            assert isinstance(part, KeptPart)
            part.let_go()
            self.node.deliver(TakePart(tag, False))

    def new_work(self, tag: str) -> tuple[int, tuple[Range, ...]]:
        """A number where this peer has worked something out, 0 where it is ready to keep it."""
        return super().new_work(tag) if self.works_on(tag) else (0, ())
