"""The checks can fail: break the protocol on purpose, and the simulator must notice."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from decentral.peer.coordinator import Coordinator
from decentral.peer.leases import LeaseLedger
from decentral.peer.views import Views
from decentral.simulator import simulate
from decentral.simulator.world import World


def violated(
    seeds: range, says: str, peers: int = 6, prepare: Callable[[World], None] | None = None
) -> bool:
    """Whether some seed leads to a violation that mentions `says`."""
    for seed in seeds:
        report = simulate(seed, peers, "everything", 120.0, prepare)
        if any(says in one for one in report.violations):
            return True
    return False


def test_less_than_a_majority_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_few(views: Views) -> int:
        assert views.replica.state is not None
        return max(1, views.replica.state.view.majority - 1)

    monkeypatch.setattr(Views, "quorum", too_few)
    assert violated(range(40), "two values in slot")


def test_votes_that_are_not_durable_are_noticed() -> None:
    def forgetful(world: World) -> None:
        world.drop_persist = True

    assert violated(range(2), "votes", prepare=forgetful)


def test_work_of_an_older_round_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def any_offer(state: object, offer: object) -> bool:
        return True

    monkeypatch.setattr(Coordinator, "current", staticmethod(any_offer))
    monkeypatch.setattr(LeaseLedger, "allows", lambda ledger, contribution: True)
    monkeypatch.setattr(
        "decentral.peer.rounds.Rounds.on_start", _start_unchecked(), raising=True
    )
    assert violated(range(3), "I6")


def _start_unchecked() -> Callable[..., None]:
    from decentral.peer.rounds import Rounds

    checked = Rounds.on_start

    def start(rounds: Rounds, peer: str, msg: object) -> None:
        before = rounds._mine
        named = {one.peer: one for one in msg.contributions}  # type: ignore[attr-defined]
        rounds._mine = lambda: named.get(rounds.ctx.me)  # type: ignore[method-assign]
        checked(rounds, peer, msg)  # type: ignore[arg-type]
        rounds._mine = before  # type: ignore[method-assign]

    return start
