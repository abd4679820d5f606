"""What was committed while a state was on its way: the updates since, from many. Sans-IO.

    held, or being fetched        committed meanwhile
         θ(r) ───────────▶ u(r+1) ───────────▶ u(r+2) ─▶ … the goal
                UpdateWanted to all holders
                the offer that most of them make ─▶ FetchUpdate: like a state, with its own root

An update (the mean outer gradient, as `decentral.updates` packs it) is believed by its fetcher's
holders only: all who made the same offer vouch for it. The trainer applies it, and the root that
follows must be the committed one: if it is not, everybody who vouched is named, and the next offer
is taken. Where nobody has the update any more the state itself is fetched.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from decentral.peer.donor import Tell
from decentral.peer.fetcher import Blame
from decentral.peer.transfer import UpdateOffer, UpdateWanted
from decentral.types import PeerId, TensorSpec, short

DATA, HOW = "update/data", "update/how"
PATIENCE_S = 2.0
"""How long holders that have not answered are waited for once one has offered something."""


@dataclass(frozen=True, slots=True)
class FetchUpdate:
    """Fetch the state-like thing with this root from those; report `fetched` or `failed`."""

    round: int
    update: bytes
    schema: tuple[TensorSpec, ...]
    holders: tuple[PeerId, ...]


ReplayAction: TypeAlias = Tell | FetchUpdate | Blame


@dataclass(slots=True)
class _Step:
    """One round to be replayed."""

    root: bytes
    """That its state must have."""
    asked: set[PeerId] = field(default_factory=set)
    offers: dict[PeerId, UpdateOffer] = field(default_factory=dict)
    answered: set[PeerId] = field(default_factory=set)
    choose_at: float = 0.0
    chosen: UpdateOffer | None = None
    here: bool = False


class Replay:
    """The rounds from a base to the goal. `lost` once that way is closed."""

    def __init__(self, max_bytes: int, tag: str = "") -> None:
        """`max_bytes`: updates that are still to come may not be more than this: a whole state."""
        self._max_bytes, self._tag = max_bytes, tag
        self._steps: dict[int, _Step] = {}
        self._liars: set[PeerId] = set()
        self.lost = False

    def aim(
        self, base: int, goal: int, roots: Mapping[int, bytes], holders: Iterable[PeerId]
    ) -> list[ReplayAction]:
        """Go from the state of round `base` to that of `goal`; again whenever either moves."""
        steps = {
            number: step
            for number, step in self._steps.items()
            if base < number <= goal and roots.get(number) == step.root
        }
        actions: list[ReplayAction] = []
        for number in range(base + 1, goal + 1):
            if number not in roots:
                self.lost = True
                return []
            step = steps.setdefault(number, _Step(roots[number]))
            for peer in sorted(set(holders) - step.asked - self._liars):
                step.asked.add(peer)
                wanted = UpdateWanted(number, step.root, tag=self._tag)
                actions.append(Tell(peer, wanted.pack()))
        self._steps = steps
        return actions

    def received(self, peer: PeerId, offer: UpdateOffer, now: float) -> list[ReplayAction]:
        """A holder has, or has not, what was asked for."""
        step = self._steps.get(offer.round)
        if step is None or offer.root != step.root or peer not in step.asked:
            return []
        step.answered.add(peer)
        if offer.update and peer not in self._liars:
            step.offers[peer] = offer
            step.choose_at = step.choose_at or now + PATIENCE_S
        return self._choose(offer.round, step, now)

    def gone(self, peer: PeerId, now: float) -> list[ReplayAction]:
        """The link to a holder is gone: it answers no more, until it is asked again."""
        actions: list[ReplayAction] = []
        for number, step in self._steps.items():
            step.asked.discard(peer)
            step.answered.discard(peer)
            step.offers.pop(peer, None)
            actions += self._choose(number, step, now)
        return actions

    def fetched(self, number: int) -> None:
        """The update of that round is here."""
        if (step := self._steps.get(number)) is not None:
            step.here = True

    def failed(self, number: int, now: float) -> list[ReplayAction]:
        """It could not be had from those who offered it."""
        return self._next_offer(number, now)[1]

    def wrong(self, number: int, now: float) -> list[ReplayAction]:
        """It leads to another root than the committed one: whoever vouched for it lied."""
        vouched, actions = self._next_offer(number, now)
        self._liars |= vouched
        says = f"offered an update that does not lead to the committed state of round {number}"
        return [*(Blame(peer, f"{short(peer)} {says}") for peer in sorted(vouched)), *actions]

    def tick(self, now: float) -> list[ReplayAction]:
        actions: list[ReplayAction] = []
        for number, step in self._steps.items():
            actions += self._choose(number, step, now)
        return actions

    def _next_offer(self, number: int, now: float) -> tuple[set[PeerId], list[ReplayAction]]:
        step = self._steps.get(number)
        if step is None or step.chosen is None:
            return set(), []
        makers = {peer for peer, offer in step.offers.items() if offer == step.chosen}
        for peer in makers:
            del step.offers[peer]
        step.chosen, step.here = None, False
        return makers, self._choose(number, step, now)

    def _choose(self, number: int, step: _Step, now: float) -> list[ReplayAction]:
        all_answered = step.answered >= step.asked
        late = bool(step.choose_at) and now >= step.choose_at
        if self.lost or step.chosen is not None or not step.asked or not (all_answered or late):
            return []
        made = list(step.offers.values())
        if not made:
            self.lost = all_answered
            return []
        step.chosen = offer = max(made, key=lambda one: (made.count(one), one.update))
        missing = sum(not one.here for one in self._steps.values())
        if missing * offer.data_bytes > self._max_bytes:
            self.lost = True
            return []
        schema = (
            TensorSpec(name=DATA, dtype="uint8", shape=(offer.data_bytes,)),
            TensorSpec(name=HOW, dtype="uint8", shape=(offer.how_bytes,)),
        )
        holders = tuple(sorted(p for p, one in step.offers.items() if one == offer))
        return [FetchUpdate(number, offer.update, schema, holders)]
