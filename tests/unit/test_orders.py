"""What the mesh orders, and what the trainer makes of it."""

from __future__ import annotations

import dataclasses
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from tiny_run import Script, another_state, make_run, train, weights

from decentral import outer_loop
from decentral.errors import QuorumLostError
from decentral.mesh_port import MeshFailed, StateArrived
from decentral.peer.protocol import (
    CloseRound,
    Committed,
    Evicted,
    Fault,
    Joined,
    RollbackEntry,
    ViewEntry,
)
from decentral.run import Run
from decentral.types import Range


def test_nothing_is_applied_before_the_commit():
    cluster = Script()
    run = make_run(cluster, rounds=1)
    seen = {}

    def reduced(mesh, round, attempt, root) -> None:
        seen["voted"] = weights(run)
        seen["held"] = list(mesh.held)
        cluster.entry(round, root, mine=True)

    cluster.on_offer = lambda round: (
        seen.setdefault("own", weights(run)),
        cluster.start_reduce(round),
    )
    cluster.reduced = reduced
    train(run)
    assert (seen["voted"] == seen["own"]).all() and seen["held"] == []


def test_the_others_may_close_a_round_early():
    cluster = Script()
    run = make_run(cluster, rounds=1)
    cluster.on_offer = cluster.start_reduce
    train(run, on_step=lambda run: cluster.mesh.order(CloseRound(1)))
    assert cluster.offers == [(1, 4, (Range(0, 4),))], "two steps instead of three"


def test_an_abort_that_comes_first_wins():
    from decentral.peer.protocol import AbortReduce

    cluster = Script()
    run = make_run(cluster, rounds=1)

    def offered(round: int) -> None:
        cluster.mesh.order(AbortReduce(1, 1, "peer:x died"))
        cluster.start_reduce(1, 1)

    cluster.on_offer = offered
    train(run)
    assert cluster.mesh.failures == [(1, 1, None, "peer:x died")]
    assert run.round == 1


def test_a_round_that_others_reduced_is_fetched():
    state = another_state(1, target=1)
    cluster = Script()
    run = make_run(cluster, rounds=1)

    def offered(round: int) -> None:
        cluster.entry(1, state.root, mine=True)
        cluster.mesh.order(StateArrived(state))

    cluster.on_offer = offered
    train(run)
    assert run.state_hash == state.root.hex()
    assert cluster.mesh.held[-1].root == state.root
    assert len(cluster.mesh.rounds()) == 1


def test_own_work_survives_a_round_that_did_not_count_it():
    state = another_state(1)
    cluster = Script()
    run = make_run(cluster, rounds=5)
    own = {}

    def offered(round: int) -> None:
        if round == 1:
            own["delta"] = -weights(run) + initial
            cluster.entry(1, state.root, mine=False, leases=(Range(0, 6), Range(6, 12)))
            cluster.mesh.order(StateArrived(state))
        else:
            own["second"] = weights(run)
            cluster.end("enough")

    initial = weights(run)
    cluster.on_offer = offered
    after = {}
    train(run, on_step=lambda run: after.setdefault(run.round, weights(run)))
    theta = np.concatenate(
        [state.tensors["param/weight"].ravel(), state.tensors["param/bias"].ravel()]
    )
    np.testing.assert_allclose(after[1], theta - own["delta"], atol=1e-6)
    assert [offer[0] for offer in cluster.offers] == [1, 2]
    # Late work is offered to the next round at once, with the one step made since.
    assert cluster.offers[1][1:] == (8, (Range(0, 8),))
    assert cluster.mesh.staleness == [0, 1]


def test_the_evicted_throw_their_work_away_and_come_back():
    state = another_state(4)
    cluster = Script()
    run = make_run(cluster, rounds=9, sync_every=3)
    done = []

    def on_step(run: Run) -> None:
        if cluster.mesh.steps == 2:
            cluster.mesh.order(Evicted("hung"))
            cluster.mesh.order(Joined(cluster.view, 4))
            cluster.mesh.order(StateArrived(state))
            entry = ViewEntry(view=cluster.view, reason="rejoined")
            cluster.mesh.order(Committed(9, entry, cluster.view, (Range(500, 506),)))

    def offered(round: int) -> None:
        done.append(round)
        cluster.end("enough")

    cluster.on_offer = offered
    train(run, on_step=on_step)
    # The second step's own orders are seen by the third, whose work goes with the rest.
    assert cluster.offers == [(5, 6, (Range(500, 506),))]
    assert run.round == 4


def test_a_bystander_reduces_with_weight_zero_and_keeps_its_work():
    cluster = Script()
    run = make_run(cluster, rounds=1)
    sent = []
    cluster.make_group_was = cluster.make_group

    def on_step(run: Run) -> None:
        if cluster.mesh.steps == 1:
            cluster.start_reduce(1, mine=False)

    def make_group(native, view, me, wanted):
        class Group:
            def all_reduce(self, src, dst, codec, *, weights, round, attempt, tag):
                sent.append(tuple(weights))
                return cluster.make_group_was(native, view, me, wanted).all_reduce(
                    src, dst, codec, weights=[1.0], round=round, attempt=attempt, tag=tag
                )

        return Group()

    run._outer.exchange._make_group = make_group

    def reduced(mesh, round, attempt, root) -> None:
        cluster.end("enough")

    cluster.reduced = reduced
    train(run, on_step=on_step)
    assert sent == [(0.0,)] and run._outer.uncommitted[0] > 0


def test_a_failed_mesh_raises_in_the_users_thread():
    cluster = Script()
    run = make_run(cluster)
    error = QuorumLostError("too few members are left", phase="views")
    cluster.on_offer = lambda round: cluster.mesh.order(MeshFailed(error))
    with pytest.raises(QuorumLostError, match="too few members"):
        train(run)


def test_alone_it_goes_on_for_as_long_as_the_strategy_allows():
    cluster = Script()
    run = make_run(cluster, rounds=9, steps_alone=4)

    def offered(round: int) -> None:
        if len(cluster.offers) == 1:
            cluster.leases["peer:a"] = (Range(0, 100),)
            cluster.mesh.order(Fault("quorum-lost", None, "only 1 of 4"))
        else:
            cluster.end("enough")

    cluster.on_offer = offered
    run._book.grant((Range(0, 100),))
    cluster._grant = lambda mesh: cluster.leases.update({mesh.me: (Range(0, 100),)})
    train(run)
    # Three steps were due, four more were made alone, and all seven are offered anew.
    assert [offer[1] for offer in cluster.offers] == [3 * 2, 7 * 2]
    assert cluster.offers[1][2] == (Range(0, 14),)


def test_alone_it_waits_where_the_strategy_says_so():
    cluster = Script()
    run = make_run(cluster, rounds=9)

    def offered(round: int) -> None:
        cluster.mesh.order(Fault("quorum-lost", None, "only 1 of 4"))
        cluster.end("enough")

    cluster.on_offer = offered
    train(run)
    assert len(cluster.offers) == 1


def going_back(tmp_path: Path, *, on_disk: bool) -> tuple[Script, Run, list[bytes]]:
    """A run that has committed two rounds and is then told to go back to the first."""
    cluster = Script()
    run = make_run(cluster, rounds=9, home=tmp_path if on_disk else None)
    roots: list[bytes] = []

    def offered(round: int) -> None:
        if round < 3:
            cluster.start_reduce(round)
            return
        roots[:] = [state.root for state in cluster.mesh.held]
        first = cluster.mesh.held[0]
        entry = RollbackEntry(round=1, state_root=first.root, reason="asked for")
        cluster.mesh.order(Committed(7, entry, cluster.view, (Range(900, 906),)))
        if not on_disk:
            cluster.mesh.order(StateArrived(first))
        cluster.mesh.order(CloseRound(2))
        cluster.on_offer = lambda round: cluster.end("enough")

    cluster.on_offer = offered
    train(run)
    return cluster, run, roots


@pytest.mark.parametrize("on_disk", [True, False])
def test_a_rollback_throws_later_work_away(tmp_path: Path, on_disk: bool):
    cluster, run, roots = going_back(tmp_path, on_disk=on_disk)
    assert run.round == 1 and run.state_hash == roots[0].hex()
    assert cluster.offers[-1][0] == 2
    assert all(r.start >= 900 for r in cluster.offers[-1][2]), "leases of after the rollback"
    run.close()


def test_work_is_offered_anew_where_the_state_gone_back_to_is_the_one_held(tmp_path: Path):
    """The others had committed one more round, which counted it, and nobody has its state."""
    cluster = Script()
    run = make_run(cluster, rounds=9)

    def offered(round: int) -> None:
        if round == 1:
            cluster.start_reduce(round)
            return
        cluster.on_offer = lambda round: cluster.end("enough")
        held = cluster.mesh.held[-1]
        cluster.entry(2, b"2" * 32, mine=True)
        back = RollbackEntry(round=1, state_root=held.root, reason="nobody holds a later one")
        cluster.mesh.order(Committed(7, back, cluster.view, (Range(900, 906),)))
        cluster.mesh.order(CloseRound(2))

    cluster.on_offer = offered
    train(run)
    assert [offer[0] for offer in cluster.offers] == [1, 2, 2]
    assert all(r.start >= 900 for r in cluster.offers[-1][2]), "leases of after the rollback"
    run.close()


def test_what_a_rollback_undoes_is_moved_aside(tmp_path: Path):
    _, run, _ = going_back(tmp_path, on_disk=True)
    run.close()
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["round-00000001", "undone-00000002"]
    again = make_run(Script(), rounds=9, home=tmp_path)
    assert again._brought.resume().round == 1


def test_a_lineage_that_lost_is_kept_beside_the_checkpoints(tmp_path: Path):
    cluster = Script()
    run = make_run(cluster, rounds=9, home=tmp_path)
    winner = another_state(4)

    def offered(round: int) -> None:
        if round == 1:
            cluster.start_reduce(round)
            return
        other = dataclasses.replace(cluster.view, lineage="W")
        cluster.mesh.order(Evicted("lineage W has more committed work"))
        cluster.mesh.order(Joined(other, 4))
        cluster.mesh.order(StateArrived(winner))
        cluster.end("enough")

    cluster.on_offer = offered
    train(run)
    assert run.state_hash == winner.root.hex()
    run.close()
    checkpoints = tmp_path / "checkpoints"
    assert (checkpoints / "lineage-L-00000001").is_dir()
    says = [e["says"] for e in cluster.mesh.events if e.get("kind") == "superseded"]
    assert len(says) == 1 and "lineage-L-00000001" in says[0]
    assert make_run(Script(), home=tmp_path)._brought.resume().root == winner.root


@pytest.mark.parametrize("quick", [True, False])
def test_whoever_leaves_lets_what_has_begun_finish(monkeypatch, quick):
    """All others are in that attempt, and would have to begin again. But not for ever."""
    monkeypatch.setattr(outer_loop, "FINISH_S", 10.0 if quick else 0.3)
    cluster = Script()
    run = make_run(cluster, rounds=9)
    begun, go, reduced = threading.Event(), threading.Event(), []

    class Slow:
        def __init__(self, work) -> None:
            self._work = work

        def wait(self, timeout_s):
            go.wait(5)
            return self._work.wait(timeout_s)

        def abort(self, says) -> None:
            go.set()
            self._work.abort(says)

    def make_group(native, view, me, wanted):
        class Group:
            def all_reduce(self, *data, **how):
                begun.set()
                return Slow(cluster.make_group(native, view, me, wanted).all_reduce(*data, **how))

        return Group()

    def offered(round: int) -> None:
        cluster.start_reduce(round)
        assert begun.wait(10)
        if quick:
            threading.Timer(0.2, go.set).start()
        raise RuntimeError("the machine is taken away")

    run._outer.exchange._make_group = make_group
    cluster.reduced = lambda mesh, round, attempt, root: reduced.append((round, attempt))
    cluster.on_offer = offered
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="taken away"):
        train(run)
    run.close()
    assert reduced == ([(1, 1)] if quick else [])
    assert time.monotonic() - began < 5.0
