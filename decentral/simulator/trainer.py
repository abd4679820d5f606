"""A peer's simulated training: one part per tag, with the leases and the fate of one process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from decentral.peer.protocol import (
    AbortReduce,
    Action,
    CloseRound,
    Committed,
    Evicted,
    FetchState,
    Joined,
    RollbackEntry,
    RoundEntry,
    StartReduce,
)
from decentral.simulator.part import Part
from decentral.types import Range

if TYPE_CHECKING:
    from decentral.simulator.node import Node


class Trainer:
    def __init__(self, node: Node) -> None:
        self.node = node
        self.world = node.world
        self.leases: tuple[Range, ...] = ()
        self.member = False
        self.steps = 0
        self.hung = False
        self.parts = {tag: Part(self, tag) for tag in node.world.config.tags}

    def takes(self, tag: str) -> bool:
        """Whether this peer takes part in a tag's rounds."""
        return self.node.takes is None or tag in self.node.takes

    @property
    def first(self) -> Part:
        return next(iter(self.parts.values()))

    def boot(self) -> None:
        for part in self.parts.values():
            part.boot()

    def progress(self) -> int:
        return self.steps if self.hung else int(self.world.now * 10) + self.steps

    def on(self, action: Action) -> None:
        match action:
            case StartReduce():
                self.parts[action.tag].start_reduce(action)
            case AbortReduce():
                self.parts[action.tag].abort_reduce(action.round, action.attempt)
            case Committed():
                self.leases = action.leases
                if isinstance(action.entry, RoundEntry | RollbackEntry):
                    self.parts[action.entry.tag].committed(action)
            case CloseRound():
                self.parts[action.tag].close_round(action.round)
            case FetchState():
                self.parts[action.tag].fetch_state(action)
            case Joined():
                self.member = True
                self.leases = action.leases
                for tag, number in action.rounds:
                    self.parts[tag].joined(number)
            case Evicted():
                self.member = False
                for part in self.parts.values():
                    part.drop()
            case _:
                pass

    def new_work(self, tag: str) -> tuple[int, tuple[Range, ...]]:
        """A number of its own, and the samples used; those count with the first tag's work."""
        self.world.tokens += 1
        used: tuple[Range, ...] = ()
        if self.leases and tag == self.first.tag:
            one = self.leases[0]
            used = (Range(one.start, one.start + max(1, len(one) * 3 // 4)),)
        return 1_000_000 + self.world.tokens, used

    def hang(self) -> None:
        """The training thread is stuck; the rest of the process is well."""
        self.hung = True

    def unhang(self) -> None:
        if self.hung:
            self.hung = False
            for part in self.parts.values():
                part.compute()
