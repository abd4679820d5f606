"""I6: no contribution is counted twice, or in part. The sums are added up again.

    w_i = tokens_i · (1 + staleness_i)^−a, normalized        over the commit's contributions
    Δ   = Σ w_i δ_i                                          δ_i as its peer wrote it down
    b'  = μ b + Δ          θ' = θ − η (Δ + μ b')             held against what members tell

In float64, for the elements that the witnesses keep.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from decentral.churn.audit.findings import Findings
from decentral.churn.audit.history import Commit, History, Lineage, Listener
from decentral.churn.audit.logs import Event
from decentral.churn.audit.settings import Settings
from decentral.churn.audit.timeline import World

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vector = NDArray[np.float64]

_Key = TypeVar("_Key")
KEPT = 64
"""Contributions of each peer that are kept until a commit names them."""
FP32 = float(np.finfo(np.float32).eps)
ROUNDINGS = 8.0
"""Steps that each may be off by half a unit in the last place, besides the sum's."""


@dataclass(slots=True, eq=False)
class Offer:
    """Work that a peer wrote down before it offered it."""

    peer: str
    at: float
    lineage: str
    round: int
    anchor_round: int
    tokens: int
    staleness: int
    leases: list[list[int]]
    delta: tuple[float, ...]
    counted: list[Commit] = field(default_factory=list)

    def is_meant_by(self, told: dict[str, Any]) -> bool:
        mine = (self.tokens, self.staleness, self.leases)
        return mine == (told["tokens"], told["staleness"], told["leases"])


class _Offers:
    """One peer's latest."""

    def __init__(self) -> None:
        self._order: deque[Offer] = deque()
        self._by_round: dict[int, list[Offer]] = {}
        self._by_delta: dict[tuple[float, ...], list[Offer]] = {}

    def __bool__(self) -> bool:
        return bool(self._order)

    def add(self, offer: Offer) -> None:
        self._order.append(offer)
        self._by_round.setdefault(offer.round, []).append(offer)
        self._by_delta.setdefault(offer.delta, []).append(offer)
        if len(self._order) > KEPT:
            old = self._order.popleft()
            _drop(self._by_round, old.round, old)
            _drop(self._by_delta, old.delta, old)

    def of(self, commit: Commit) -> list[Offer]:
        """What was written down for that round before it was committed."""
        return [one for one in self._by_round.get(commit.round, ()) if one.at <= commit.at]

    def like(self, offer: Offer) -> list[Offer]:
        """The same work, whatever round it was offered to; nothing is like no change at all."""
        return self._by_delta[offer.delta] if any(offer.delta) else [offer]


class Contributions(Listener):
    def __init__(self, world: World, history: History, findings: Findings) -> None:
        self._world, self._history, self._findings = world, history, findings
        self.settings = Settings()
        self.sums_checked = 0
        self.sums_unchecked: Counter[str] = Counter()
        """By reason."""
        self._offers: dict[str, _Offers] = defaultdict(_Offers)

    def see(self, event: Event) -> None:
        data = event.data
        self._offers[event.source].add(
            Offer(
                event.source, event.at, data["lineage"], int(data["round"]),
                int(data["anchor_round"]), int(data["tokens"]), int(data["staleness"]),
                data["leases"], tuple(data["delta"]),
            )
        )  # fmt: skip

    # ------------------------------------------------------------------ counted once

    def counted(self, lineage: Lineage, commit: Commit, event: Event) -> None:
        contributions = commit.contributions or []
        if not contributions:
            self._say(commit, "counts nobody's work", commit.by)
        names = [self._world.name(one["peer"]) for one in contributions]
        for name, times in Counter(names).items():
            if times > 1:
                self._say(commit, f"counts {name} {times} times", name)
        offers = [
            self._offer(lineage, commit, name, told)
            for name, told in zip(names, contributions, strict=True)
        ]
        for offer in offers:
            if offer is not None:
                self._once(lineage, commit, offer)
        self._sum(lineage, commit, event, offers)

    def _offer(
        self, lineage: Lineage, commit: Commit, name: str, told: dict[str, Any]
    ) -> Offer | None:
        """What the commit counts: the last that its peer wrote down for this round."""
        offers = self._offers[name].of(commit)
        if not offers:
            if self._offers[name]:
                self._say(commit, f"counts work of {name}, which had offered none for it", name)
            return None
        meant = [one for one in offers if one.is_meant_by(told)]
        if meant:
            return meant[-1]
        last = offers[-1]
        self._say(
            commit,
            f"counts a part of what {name} offered: {_words(told['tokens'], told['leases'])} "
            f"instead of {_words(last.tokens, last.leases)}",
            name,
        )
        return None

    def _once(self, lineage: Lineage, commit: Commit, offer: Offer) -> None:
        """Neither this offer nor the same work under another round's number."""
        for one in self._offers[offer.peer].like(offer):
            for earlier in one.counted:
                if lineage.live.get(earlier.round) is earlier:
                    self._say(
                        commit,
                        f"counts work of {offer.peer} that round {earlier.round} had counted",
                        offer.peer,
                    )
        offer.counted.append(commit)

    # ------------------------------------------------------------------ counted whole

    def _sum(
        self, lineage: Lineage, commit: Commit, event: Event, offers: list[Offer | None]
    ) -> None:
        before_hash = lineage.hash_of(commit.round - 1)
        before = self._history.states.get(before_hash or "")
        if self.settings.codec != "fp32":
            self.sums_unchecked[f"the codec {self.settings.codec} is lossy"] += 1
            return
        eta, mu = self.settings.outer_lr, self.settings.outer_momentum
        if eta is None or mu is None:
            self.sums_unchecked["the outer step's options are not known"] += 1
            return
        if before is None:
            self.sums_unchecked["the state before is not known"] += 1
            return
        found = [one for one in offers if one is not None]
        if len(found) < len(offers) or not found:
            self.sums_unchecked["a contribution is not known"] += 1
            return
        told = (np.array(event.data["theta"]), np.array(event.data["momentum"]))
        theta, momentum = np.array(before[0]), np.array(before[1])
        deltas = np.array([one.delta for one in found])
        if deltas.shape[1:] != theta.shape or told[0].shape != theta.shape:
            self.sums_unchecked["witnesses of unequal length"] += 1
            return
        self.sums_checked += 1
        weights = np.array([self._weight(one) for one in found])
        step = _Step(eta, mu, theta, momentum, deltas, weights)
        if step.leads_to(told):
            return
        for index, others in enumerate(self._alternatives(commit, found)):
            for delta in others:
                if step.with_delta(index, np.array(delta)).leads_to(told):
                    return
        self._say(commit, self._blame(step, found, told), commit.by)

    def _weight(self, offer: Offer) -> float:
        tokens = float(offer.tokens) if self.settings.weights == "tokens" else 1.0
        return tokens / math.pow(1.0 + offer.staleness, self.settings.staleness_power)

    def _alternatives(
        self, commit: Commit, offers: list[Offer]
    ) -> Iterable[list[tuple[float, ...]]]:
        """A peer may have written down more than one for a round, if it was started again."""
        for offer in offers:
            yield [
                one.delta
                for one in self._offers[offer.peer].of(commit)
                if one is not offer
                and (one.tokens, one.staleness) == (offer.tokens, offer.staleness)
            ]

    def _blame(self, step: _Step, offers: list[Offer], told: tuple[Vector, Vector]) -> str:
        """The one contribution, if there is one, whose doubling or absence explains the sum."""
        for index, offer in enumerate(offers):
            for factor, says in ((0.0, "leaves out"), (2.0, "counts twice"), (0.5, "halves")):
                for normalized in (True, False):
                    if step.with_factor(index, factor, normalized).leads_to(told):
                        return f"{says} what {offer.peer} contributed: the sum shows it"
        off = float(np.abs(step.result()[0] - told[0]).max())
        names = ", ".join(one.peer for one in offers)
        return f"is not the sum of what {names} contributed: a parameter is off by {off:.3g}"

    def _say(self, commit: Commit, says: str, peer: str) -> None:
        self._findings.add(
            "I6", commit.at,
            f"round {commit.round} of lineage {commit.lineage} {says}",
            peer=peer,
        )  # fmt: skip


class _Step:
    """The outer step from one witnessed state to the next."""

    def __init__(
        self,
        eta: float,
        mu: float,
        theta: Vector,
        momentum: Vector,
        deltas: Vector,
        weights: Vector,
        total: float | None = None,
    ) -> None:
        """`deltas`: [contributions, elements]."""
        self._eta, self._mu, self._theta, self._momentum = eta, mu, theta, momentum
        self._deltas, self._weights = deltas, weights
        self._total = float(weights.sum()) if total is None else total

    def result(self) -> tuple[Vector, Vector]:
        mean = self._weights @ self._deltas / self._total
        momentum = self._mu * self._momentum + mean
        return self._theta - self._eta * (mean + self._mu * momentum), momentum

    def leads_to(self, told: tuple[Vector, Vector]) -> bool:
        if self._total <= 0:
            return False
        theta, momentum = self.result()
        size = np.abs(self._weights) @ np.abs(self._deltas) / self._total
        # Errors of an fp32 sum grow with its terms; of the step, with what it adds up.
        unit = FP32 * (ROUNDINGS + len(self._deltas)) * (size + np.abs(self._momentum))
        near = np.abs(momentum - told[1]) <= unit
        close = np.abs(theta - told[0]) <= unit + FP32 * np.abs(self._theta)
        return bool(near.all() and close.all())

    def with_delta(self, index: int, delta: Vector) -> _Step:
        deltas = self._deltas.copy()
        deltas[index] = delta
        return self._with(deltas, self._weights, None)

    def with_factor(self, index: int, factor: float, normalized: bool) -> _Step:
        weights = self._weights.copy()
        weights[index] *= factor
        total = None if normalized else self._total
        return self._with(self._deltas, weights, total)

    def _with(self, deltas: Vector, weights: Vector, total: float | None) -> _Step:
        return _Step(self._eta, self._mu, self._theta, self._momentum, deltas, weights, total)


def _drop(index: dict[_Key, list[Offer]], key: _Key, offer: Offer) -> None:
    index[key].remove(offer)
    if not index[key]:
        del index[key]


def _words(tokens: int, leases: list[list[int]]) -> str:
    where = ", ".join(f"[{start}, {stop})" for start, stop in leases)
    return f"{tokens} tokens{' of ' + where if where else ''}"
