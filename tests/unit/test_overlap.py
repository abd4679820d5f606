"""Strategies that overlap communication with compute, against the papers' formulas written anew.

Each test trains peers in threads, writes down the batches that each of them saw, and computes the
committed parameters again, step by step, from the update rule alone.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest
import torch
from fake_mesh import Cluster
from tiny_run import Numbers, loss_of, make_run, weights

from decentral.errors import ConfigError
from decentral.run import Run
from decentral.strategies import (
    AsyncDiLoCo,
    DataParallel,
    DecoupledDiLoCo,
    DiLoCo,
    SparseLoCo,
    Strategy,
    StreamingDiLoCo,
)

LR, H, ROUNDS = 0.1, 4, 5
Batches = list[list[Any]]


def trained(
    peers: int,
    strategy: Strategy,
    rounds: int = ROUNDS,
    cluster: Cluster | None = None,
    step_s: float = 0.0,
) -> tuple[list[Run], Batches]:
    """Runs that have ended, and each peer's batches in order."""
    cluster = cluster or Cluster(peers)
    runs = [make_run(cluster, i, lr=LR, strategy=strategy, rounds=rounds) for i in range(peers)]
    seen: Batches = [[] for _ in runs]
    errors: list[BaseException] = []

    def one(run: Run, batches: list[Any]) -> None:
        try:
            for batch in run.data(Numbers(), 2):
                batches.append(batch)
                loss = loss_of(run.model, batch)
                loss.backward()
                time.sleep(step_s)
                run.step(loss)
        except BaseException as error:
            errors.append(error)
        finally:
            run.close()

    threads = [
        threading.Thread(target=one, args=pair, daemon=True)
        for pair in zip(runs, seen, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a peer waits for ever"
    assert not errors, errors
    assert {run.round for run in runs} == {rounds}
    assert len({run.state_hash for run in runs}) == 1
    return runs, seen


def founder() -> np.ndarray:
    torch.manual_seed(0)
    return flat(torch.nn.Linear(1, 1))


def flat(model: torch.nn.Module) -> np.ndarray:
    return torch.cat([p.detach().flatten() for p in model.parameters()]).double().numpy()


def phase(start: np.ndarray, batches: list[Any]) -> np.ndarray:
    """Plain SGD steps from `start`."""
    model = torch.nn.Linear(1, 1)
    with torch.no_grad():
        model.weight.fill_(float(start[0]))
        model.bias.fill_(float(start[1]))
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    for batch in batches:
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
    return flat(model)


def committed(run: Run) -> np.ndarray:
    held = run._outer.held
    return np.concatenate([held.state.tensors[f"param/{n}"].ravel() for n in ("weight", "bias")])


class Nesterov:
    def __init__(self, lr: float, momentum: float) -> None:
        self.lr, self.momentum, self.b = lr, momentum, np.zeros(2)

    def step(self, theta: np.ndarray, delta: np.ndarray) -> np.ndarray:
        self.b = self.momentum * self.b + delta
        return theta - self.lr * (delta + self.momentum * self.b)


@pytest.mark.parametrize("variant", ["delayed", "eager"])
@pytest.mark.parametrize("momentum", [0.0, 0.4])
def test_async_starts_from_the_last_outcome_and_its_own_share(
    variant: str, momentum: float
) -> None:
    strategy = AsyncDiLoCo(
        sync_every=H, outer_lr=0.6, outer_momentum=momentum, variant=variant, weights="equal"
    )
    peers = 2
    runs, seen = trained(peers, strategy)
    outer = Nesterov(0.6, momentum)
    theta, starts = founder(), [founder() for _ in range(peers)]
    own_b = [np.zeros(2) for _ in range(peers)]
    before: list[np.ndarray] | None = None
    for r in range(ROUNDS):
        ends = [phase(starts[m], seen[m][r * H : (r + 1) * H]) for m in range(peers)]
        deltas = [starts[m] - ends[m] for m in range(peers)]
        if before is not None:
            theta = outer.step(theta, np.mean(before, axis=0))
        if variant == "delayed":
            starts = [theta.copy() for _ in range(peers)]
        else:
            own_b = [momentum * own_b[m] + deltas[m] for m in range(peers)]
            starts = [theta - 0.6 / peers * (deltas[m] + momentum * own_b[m]) for m in range(peers)]
        before = deltas
    assert before is not None
    theta = outer.step(theta, np.mean(before, axis=0))
    np.testing.assert_allclose(committed(runs[0]), theta, atol=2e-6)


def test_eager_is_the_papers_recursion_where_there_is_no_momentum() -> None:
    """The paper's recursion, worker by worker: θm ← θm − η (Δm^r/M + mean Δ^(r−1) − Δm^(r−1)/M)."""
    strategy = AsyncDiLoCo(
        sync_every=H, outer_lr=0.6, outer_momentum=0.0, variant="eager", weights="equal"
    )
    runs, seen = trained(2, strategy)
    own = [founder(), founder()]
    before = [np.zeros(2), np.zeros(2)]
    for r in range(ROUNDS):
        deltas = [own[m] - phase(own[m], seen[m][r * H : (r + 1) * H]) for m in range(2)]
        mean = np.mean(before, axis=0)
        own = [own[m] - 0.6 * (deltas[m] / 2 + mean - before[m] / 2) for m in range(2)]
        before = deltas
    # Take this peer's own share out again, and the last mean in.
    theta = own[0] + 0.6 * before[0] / 2 - 0.6 * np.mean(before, axis=0)
    np.testing.assert_allclose(committed(runs[0]), theta, atol=2e-6)


def test_rebased_alone_is_training_without_a_break() -> None:
    strategy = AsyncDiLoCo(
        sync_every=H, outer_lr=1.0, outer_momentum=0.0, variant="rebased", weights="equal"
    )
    runs, seen = trained(1, strategy)
    expected = phase(founder(), seen[0][: ROUNDS * H])
    np.testing.assert_allclose(committed(runs[0]), expected, atol=2e-6)


def test_who_takes_its_own_work_for_everybodys_and_is_alone_is_right() -> None:
    """Then the outcome is where the next phase has begun: DiLoCo, its communication hidden."""
    strategy = AsyncDiLoCo(sync_every=H, outer_lr=0.6, outer_momentum=0.4, variant="ahead")
    runs, seen = trained(1, strategy)
    outer, theta = Nesterov(0.6, 0.4), founder()
    for r in range(ROUNDS):
        theta = outer.step(theta, theta - phase(theta, seen[0][r * H : (r + 1) * H]))
    np.testing.assert_allclose(committed(runs[0]), theta, atol=2e-6)


def test_a_correction_that_would_grow_is_refused() -> None:
    AsyncDiLoCo(outer_lr=0.7, outer_momentum=0.6, correction=0.5)
    AsyncDiLoCo(outer_lr=0.7, outer_momentum=0.9)
    with pytest.raises(ConfigError, match="variant ahead diverges"):
        AsyncDiLoCo(outer_lr=0.7, outer_momentum=0.6, correction=0.8)
    AsyncDiLoCo(outer_lr=0.7, outer_momentum=0.6, correction=0.8, variant="delayed")


@pytest.mark.parametrize("tau", [1, 2])
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_streaming_mixes_after_tau_steps(tau: int, alpha: float) -> None:
    strategy = StreamingDiLoCo(
        sync_every=H, fragments=1, overlap_steps=tau, mixing=alpha, codec="fp32",
        outer_lr=0.7, outer_momentum=0.5, weights="equal",
    )  # fmt: skip
    peers = 2
    runs, seen = trained(peers, strategy)
    outer, theta = Nesterov(0.7, 0.5), founder()
    own = [founder() for _ in range(peers)]
    at = 0
    pending: np.ndarray | None = None
    # An offer at steps H, 2H, …; its outcome at H + τ, 2H + τ, …
    for r in range(ROUNDS):
        for steps, adopt in ((tau, True), (H - tau, False)) if r else ((H, False),):
            own = [phase(own[m], seen[m][at : at + steps]) for m in range(peers)]
            at += steps
            if adopt:
                assert pending is not None
                theta = outer.step(theta, pending)
                own = [alpha * own[m] + (1 - alpha) * theta for m in range(peers)]
        pending = np.mean([theta - own[m] for m in range(peers)], axis=0)
    assert pending is not None
    theta = outer.step(theta, pending)
    np.testing.assert_allclose(committed(runs[0]), theta, atol=2e-6)


def test_streaming_without_overlap_is_diloco() -> None:
    options: Any = {"sync_every": H, "outer_lr": 0.7, "outer_momentum": 0.5, "codec": "fp32"}
    one, _ = trained(2, DiLoCo(**options))
    other, _ = trained(2, StreamingDiLoCo(fragments=1, overlap_steps=0, **options))
    assert (committed(one[0]) == committed(other[0])).all()


def test_one_step_rounds_of_sgd_are_data_parallel_training() -> None:
    runs, seen = trained(2, DataParallel(), rounds=10)
    model = torch.nn.Linear(1, 1)
    torch.manual_seed(0)
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    for mine, theirs in zip(*(batches[:10] for batches in seen), strict=True):
        optimizer.zero_grad()
        ((loss_of(model, mine) + loss_of(model, theirs)) / 2).backward()
        optimizer.step()
    assert np.abs(committed(runs[0]) - flat(model)).max() <= 1e-6
    assert np.abs(weights(runs[0]) - flat(model)).max() <= 1e-6


class Partly(Cluster):
    """Peer b's work misses every other round."""

    def contributed(self, mesh, round, tokens, leases) -> None:
        if round % 2 == 0:
            self.leave_out = frozenset({"peer:b"})
        super().contributed(mesh, round, tokens, leases)


@pytest.mark.parametrize(
    "strategy",
    [
        DiLoCo(sync_every=H, outer_lr=1.0, outer_momentum=0.0),
        AsyncDiLoCo(sync_every=H, outer_lr=1.0, outer_momentum=0.0, variant="delayed"),
        AsyncDiLoCo(sync_every=H, outer_lr=1.0, outer_momentum=0.0, variant="rebased"),
        AsyncDiLoCo(sync_every=H, variant="eager"),
        StreamingDiLoCo(sync_every=H, fragments=1, overlap_steps=2, codec="fp32"),
        DecoupledDiLoCo(sync_every=H),
        SparseLoCo(sync_every=H),
    ],
    ids=lambda strategy: f"{strategy.name}-{getattr(strategy, 'variant', '')}",
)
def test_work_that_misses_a_round_is_counted_by_a_later_one(strategy: Strategy) -> None:
    """Every sample that a commit names was named once, and none in between is lost (I6, I7)."""
    cluster = Partly(2)
    _, seen = trained(2, strategy, rounds=6, cluster=cluster)
    for peer, batches in zip(("peer:a", "peer:b"), seen, strict=True):
        named = sorted(
            sample
            for entry in cluster.committed
            for one in entry.contributions
            if one.peer == peer
            for r in one.leases
            for sample in range(r.start, r.stop)
        )
        assert len(named) == len(set(named)), "a sample is counted twice"
        tokens = sum(
            one.tokens for e in cluster.committed for one in e.contributions if one.peer == peer
        )
        assert tokens == len(named) <= 2 * len(batches)
    assert sum(len(e.contributions) for e in cluster.committed) < 12, "some were left out"


@pytest.mark.parametrize("step_s", [0.0, 0.03], ids=["heard of at the end", "heard of midway"])
def test_delayed_work_that_missed_its_round_is_not_lost(step_s: float) -> None:
    """Delayed peers have left their Δ behind when it misses its round: the next one carries it,
    after a whole phase, whenever they hear of it."""

    class Misses(Cluster):
        def contributed(self, mesh, round, tokens, leases) -> None:
            if round == 2:
                self.leave_out = frozenset({"peer:b"})
            super().contributed(mesh, round, tokens, leases)

    strategy = AsyncDiLoCo(
        sync_every=H, outer_lr=0.8, outer_momentum=0.0, variant="delayed", weights="equal",
        staleness_power=0.0,
    )  # fmt: skip
    runs, seen = trained(2, strategy, rounds=4, cluster=Misses(2), step_s=step_s)
    theta = founder()
    queued = [np.zeros(2), np.zeros(2)]
    before: list[np.ndarray] = []
    for r in range(4):
        start = theta
        if r:
            # What boundary r offered is reduced while phase r + 1 is trained, from the θ before.
            start = theta
            theta = theta - 0.8 * np.mean(before, axis=0)
        ends = [phase(start, seen[m][r * H : (r + 1) * H]) for m in range(2)]
        offered = [queued[m] + start - ends[m] for m in range(2)]
        queued = [np.zeros(2), offered[1] if r == 1 else np.zeros(2)]
        before = offered[:1] if r == 1 else offered
    theta = theta - 0.8 * np.mean(before, axis=0)
    np.testing.assert_allclose(committed(runs[0]), theta, atol=3e-6)
