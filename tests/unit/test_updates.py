"""Committed updates: their bytes, and the trainer that applies them to an older state."""

from __future__ import annotations

import msgpack
import numpy as np
import pytest
from fake_mesh import Cluster, FakeMesh
from tiny_run import make_run, train

from decentral import _native
from decentral.errors import DivergenceError
from decentral.mesh_port import Order, StateArrived, UpdateArrived
from decentral.peer.protocol import Joined
from decentral.run import Run
from decentral.state import aligned_zeros
from decentral.types import Range
from decentral.updates import DATA, HOW, pack_update, unpack_update


@pytest.mark.parametrize("codec", ["fp32", "bf16", "int8", "int4"])
def test_an_update_keeps_every_bit(codec: str) -> None:
    mean = aligned_zeros(5000)
    mean[:] = np.random.default_rng(1).standard_normal(5000).astype(np.float32)
    _native.decode(codec, _native.encode(codec, mean), mean)  # what an all-reduce gives
    update = pack_update(3, mean, codec, 123)
    assert update.tensors[DATA].nbytes == _native.encoded_size(codec, 5000)
    back, tokens = unpack_update(update.tensors[DATA], update.tensors[HOW], 5000)
    assert tokens == 123 and np.array_equal(back.view(np.uint32), mean.view(np.uint32))


def test_what_a_codec_would_round_travels_as_fp32() -> None:
    mean = aligned_zeros(100)
    mean[:] = np.random.default_rng(1).standard_normal(100).astype(np.float32)
    assert pack_update(3, mean, "int8", 1).tensors[DATA].nbytes == 400


def test_a_sum_of_what_topk_sends_travels_as_fp32() -> None:
    mean = aligned_zeros(100)
    mean[::7] = 0.5
    update = pack_update(3, mean, "topk", 1)
    assert update.tensors[DATA].nbytes == 400
    back, _ = unpack_update(update.tensors[DATA], update.tensors[HOW], 100)
    assert np.array_equal(back, mean)


@pytest.mark.parametrize(
    "how",
    [b"", b"\xc1", msgpack.packb({"codec": "fp32"}), msgpack.packb({"codec": "no", "tokens": 1}),
     msgpack.packb({"codec": "fp32", "tokens": -1}), msgpack.packb([1, 2]),
     msgpack.packb({"codec": "int8", "tokens": 1})],
)  # fmt: skip
def test_nonsense_is_no_update(how: bytes) -> None:
    with pytest.raises(DivergenceError, match="cannot be read"):
        unpack_update(np.zeros(40, np.uint8), np.frombuffer(how, np.uint8), 10)
    infinite = np.full(10, np.inf, np.float32).view(np.uint8)
    packed = np.frombuffer(msgpack.packb({"codec": "fp32", "tokens": 1}), np.uint8)
    with pytest.raises(DivergenceError, match="not finite"):
        unpack_update(infinite, packed, 10)


def others_work(rounds: int = 3) -> FakeMesh:
    """A peer that has committed some rounds, and kept what led there."""
    cluster = Cluster(1)
    cluster.meshes[0].updates_wanted = True
    train(make_run(cluster, rounds=rounds))
    return cluster.meshes[0]


def arrival(mesh: FakeMesh, number: int, spoil: float = 0.0) -> UpdateArrived:
    root, update = mesh.updates[number - 1]
    assert update.round == number and root == mesh.held[number - 1].root
    data = update.tensors[DATA].copy()
    data.view(np.float32)[0] += spoil
    return UpdateArrived(number, root, data, update.tensors[HOW])


def joiner(orders: list[Order], member_from: int) -> tuple[Cluster, Run]:
    """A peer that trains from nothing but what arrives."""
    cluster = Cluster(1)
    cluster.started = lambda mesh, state: None  # type: ignore[method-assign]
    run = make_run(cluster, rounds=3)
    joined = Joined(cluster.view, member_from, (Range(0, 100),))
    for order in [*orders, joined]:
        run._loop.on_order(order)
    return cluster, run


def test_updates_lead_from_an_older_state_to_the_committed_one() -> None:
    mesh = others_work()
    cluster, run = joiner(
        [StateArrived(mesh.held[0]), arrival(mesh, 2), arrival(mesh, 2), arrival(mesh, 3)], 3
    )
    run._loop.begin()
    run._loop.wait_until_current()
    assert [state.root for state in cluster.meshes[0].held] == [s.root for s in mesh.held]
    assert cluster.meshes[0].refused_updates == []


def test_an_update_that_leads_elsewhere_is_refused_and_nothing_is_applied() -> None:
    mesh = others_work()
    cluster, run = joiner(
        [StateArrived(mesh.held[0]), arrival(mesh, 2, spoil=1.0), arrival(mesh, 2)], 2
    )
    run._loop.begin()
    run._loop.wait_until_current()
    assert cluster.meshes[0].refused_updates == [2]
    assert [state.root for state in cluster.meshes[0].held] == [s.root for s in mesh.held[:2]]


def test_nothing_is_kept_while_nobody_fetches() -> None:
    cluster = Cluster(1)
    train(make_run(cluster, rounds=2))
    assert cluster.meshes[0].updates == []
