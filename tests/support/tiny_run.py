"""Runs of a tiny model without a network, and a mesh whose orders a test writes itself."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from fake_mesh import Cluster, FakeMesh

from decentral.mesh_port import Order
from decentral.options import RunOptions
from decentral.peer.protocol import Committed, RoundEntry, StartReduce
from decentral.run import Run
from decentral.strategies import DiLoCo, Strategy
from decentral.types import Contribution, Range


class Numbers:
    """Sample i is (x, 2x)."""

    def __init__(self, n: int = 1000) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> tuple[float, float]:
        x = (index % 17) / 17
        return x, 2 * x


def loss_of(model: torch.nn.Module, batch) -> torch.Tensor:
    x, y = (part.float().unsqueeze(1) for part in batch)
    return (model(x) - y).square().mean()


def make_run(
    cluster: Cluster,
    index: int = 0,
    *,
    sync_every: int = 3,
    lr: float = 0.1,
    steps_alone: int = 0,
    strategy: Strategy | None = None,
    model: torch.nn.Module | None = None,
    **options,
) -> Run:
    torch.manual_seed(index)
    model = model if model is not None else torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    strategy = strategy or DiLoCo(
        sync_every=sync_every, outer_lr=1.0, outer_momentum=0.0, steps_alone=steps_alone
    )
    options.setdefault("rounds", 4)
    return Run(
        cluster.meshes[index],
        model,
        optimizer,
        strategy,
        RunOptions(**options),
        founder=index == 0,
        make_group=cluster.make_group,
    )


def train(run: Run, batch_size: int = 2, on_step: Callable[[Run], None] | None = None) -> None:
    for batch in run.data(Numbers(), batch_size):
        loss = loss_of(run.model, batch)
        loss.backward()
        run.step(loss)
        if on_step is not None:
            on_step(run)


def train_all(cluster: Cluster, **options) -> list[Run]:
    runs = [make_run(cluster, i, **options) for i in range(len(cluster.meshes))]
    errors: list[BaseException] = []

    def one(run: Run) -> None:
        try:
            train(run)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(run,), daemon=True) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a peer waits for ever"
    assert not errors, errors
    return runs


def weights(run: Run) -> np.ndarray:
    return torch.cat([p.detach().flatten() for p in run.model.parameters()]).numpy().copy()


FRESH_LEASE = (Range(100, 106),)


class _Probe:
    """An order that says nothing but when it is its turn."""

    def __init__(self) -> None:
        self.turn = threading.Event()

    @property
    def tag(self) -> str:
        self.turn.set()
        return ""


def taken_in(on_order: Callable[[Order], None]) -> Callable[[Order], None]:
    """The same, but whatever it leads to has reached the user's inbox when it returns."""

    def order(one: Order) -> None:
        on_order(one)
        if threading.current_thread().name != "decentral outer":
            probe: Any = _Probe()
            on_order(probe)
            assert probe.turn.wait(30)

    return order


class Script(Cluster):
    """A mesh of one whose orders the test writes itself."""

    def __init__(self) -> None:
        super().__init__(1)
        self.mesh: FakeMesh = self.meshes[0]
        self.offers: list[tuple[int, int, tuple[Range, ...]]] = []
        self.on_offer: Callable[[int], None] = lambda round: None

    def started(self, mesh, state) -> None:
        mesh.order = taken_in(mesh.order)
        super().started(mesh, state)

    def contributed(self, mesh, round, tokens, leases) -> None:
        self.offers.append((round, tokens, leases))
        self.on_offer(round)

    def start_reduce(self, round: int, attempt: int = 1, *, mine: bool = True) -> None:
        other = Contribution(peer="peer:x", tokens=1)
        contributions = (Contribution(peer="peer:a", tokens=6),) if mine else (other,)
        self.mesh.order(StartReduce(self.view, round, attempt, self.view.members, contributions))

    def entry(self, round: int, root: bytes, *, mine: bool, leases=FRESH_LEASE) -> None:
        taken = (Contribution(peer="peer:a", tokens=6, leases=self.offers[-1][2]),) if mine else ()
        entry = RoundEntry(
            round=round, attempt=1, contributions=taken, state_root=root, durable_round=0
        )
        self.mesh.order(Committed(round, entry, self.view, leases))

    def reduced(self, mesh, round, attempt, root) -> None:
        self.entry(round, root, mine=True)

    def reduce_failed(self, round, attempt) -> None:
        self.start_reduce(round, attempt + 1)


def another_state(round: int, *, target: int = 9):
    """What the others have committed without this peer."""
    other = Cluster(1)
    train(make_run(other, rounds=target))
    return other.meshes[0].held[round - 1]
