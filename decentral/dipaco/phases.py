"""Which round of which cell is made from which others.

base    pretraining ─┐
router  1 ───────────┤                        2 (re-fitted)
module  1 (from base)┤──▶ 2 ──▶ 3 ─┬──────────│────▶ 4
path       train 1 ──┴─▶ train 2 ──┤ score ───┘ train 3 ──▶ score (closing)

train t   with module round t, gives Δ for module round t + 1
score     with module round t + 1: the averaged modules judge the reserved documents
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from decentral.errors import ConfigError


@dataclass(frozen=True, slots=True)
class PathRound:
    """One round of a path's cell."""

    train: bool
    phase: int
    """From 1; a scoring round belongs to the phase that it closes."""
    module_round: int
    router_round: int
    label: bool = False
    """The router is fitted anew from what this round scores."""


@dataclass(frozen=True)
class Phases:
    """The plan of a run with so many phases, and a router fitted anew after some of them."""

    count: int
    reroute_after: Sequence[int] = ()

    def __post_init__(self) -> None:
        after = list(self.reroute_after)
        if self.count < 1:
            raise ConfigError(f"a run has at least one phase, not {self.count}", phase="phases")
        if after != sorted(set(after)) or any(not 1 <= one <= self.count for one in after):
            raise ConfigError(
                f"reroute_after is an ascending list of phases from 1 to {self.count}, not {after}",
                phase="phases",
            )

    @cached_property
    def path(self) -> tuple[PathRound, ...]:
        """Of every path; round 1 is the first."""
        rounds, router = [], 1
        for phase in range(1, self.count + 1):
            rounds.append(PathRound(True, phase, phase, router))
            label = phase in self.reroute_after
            if label or phase == self.count:
                rounds.append(PathRound(False, phase, phase + 1, router, label))
                router += label
        return tuple(rounds)

    @property
    def module_rounds(self) -> int:
        return self.count + 1

    @property
    def router_rounds(self) -> int:
        return 1 + len(self.reroute_after)

    def training_round(self, phase: int) -> int:
        """The paths' round that trains in `phase`."""
        return next(
            number
            for number, one in enumerate(self.path, start=1)
            if one.train and one.phase == phase
        )

    def labelling_round(self, router_round: int) -> int:
        """The paths' round whose scores the router's round (from 2) is fitted from."""
        return next(
            number
            for number, one in enumerate(self.path, start=1)
            if one.label and one.router_round == router_round - 1
        )
