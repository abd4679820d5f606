"""The checks can fail: break the protocol on purpose, and the simulator must notice."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from decentral.peer.acceptor import Votes
from decentral.peer.duties import Duties
from decentral.peer.fields import Ballot
from decentral.peer.rounds import Rounds
from decentral.peer.views import Views
from decentral.simulator import simulate
from decentral.simulator.scenarios import make_world, simulated_config
from decentral.simulator.world import World


def violated(
    seeds: range,
    says: str,
    scenario: str = "everything",
    prepare: Callable[[World], None] | None = None,
) -> bool:
    """Whether some seed leads to a violation that mentions `says`."""
    for seed in seeds:
        report = simulate(seed, 6, scenario, 120.0, prepare)
        if any(says in one for one in report.violations):
            return True
    return False


def test_less_than_a_majority_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_few(views: Views) -> int:
        assert views.replica.state is not None
        return max(1, views.replica.state.view.majority - 1)

    monkeypatch.setattr(Views, "quorum", too_few)
    assert violated(range(60), "two values in slot", "partitions")


def test_votes_that_are_not_durable_are_noticed() -> None:
    def forgetful(world: World) -> None:
        world.drop_persist = True

    assert violated(range(2), "votes", prepare=forgetful)


def test_votes_without_ballots_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No fencing: a promise binds nobody, so a rival coordinator's proposal passes as well. All
    members are rivals here, which ballots alone have to settle."""
    monkeypatch.setattr(Duties, "acting", lambda duties: duties.core.replica.member)
    assert not violated(range(3), "two values in slot")

    def lax_promise(votes: Votes, ballot: Ballot) -> bool:
        votes.promised = max(votes.promised, ballot)
        return True

    def lax_accept(votes: Votes, ballot: Ballot, value: bytes) -> bool:
        votes.promised, votes.accepted, votes.value = max(votes.promised, ballot), ballot, value
        return True

    monkeypatch.setattr(Votes, "promise", lax_promise)
    monkeypatch.setattr(Votes, "accept", lax_accept)
    assert violated(range(20), "two values in slot")


def test_work_that_is_offered_again_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def keeps_its_work(rounds: Rounds) -> None:
        rounds.attempt_seen = 0

    # Without leases: the ledger would stop it, being the second guard.
    config = simulated_config(lease_samples=0)
    monkeypatch.setattr("decentral.simulator.scenarios.simulated_config", lambda: config)
    monkeypatch.setattr(Rounds, "next_round", keeps_its_work)
    assert violated(range(2), "I6")


def test_a_root_that_differs_is_noticed_and_mended() -> None:
    """Not a mutation of the protocol but of one peer's arithmetic: the majority is right."""
    world = make_world(3, 5)
    world.run(15.0)
    odd = world.node(3)
    part = odd.trainer.first
    assert part.held is not None
    part.held = (part.held[0], bytes(32))
    world.run(45.0)
    assert any(fault.kind == "divergence" for fault in odd.faults)
    world.checker.settled()
    assert not world.checker.violations
