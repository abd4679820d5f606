"""Reading in states that other processes hold: by a member, by a spectator, while holders die."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from typing import Any

import numpy as np
import pytest
from mesh_member import PART_BYTES, TAGS, config, holdings, initial
from mesh_members import Crew, linked, until

from decentral.errors import ConfigError, StateError
from decentral.mesh_port import MeshFailed, Order, StateArrived
from decentral.peer.manifest import specs_of
from decentral.peer.protocol import Joined
from decentral.peer.runtime import Mesh, MeshConfig

A = initial("a")
SCHEMAS = {tag: specs_of(initial(tag)) for tag in TAGS}


@pytest.fixture
def crew() -> Iterator[Crew]:
    made = Crew()
    yield made
    made.close()


def member(crew: Crew, takes: str) -> Mesh:
    """A member in this process, once it has joined."""
    mesh = crew.add(Mesh(config("reader", crew.members[0].word)))
    joined: Future[None] = Future()

    def on_order(order: Order) -> None:
        match order:
            case StateArrived(state, tag):
                mesh.hold(state, tag=tag)
            case Joined() if not joined.done():
                joined.set_result(None)
            case MeshFailed(error):
                joined.set_exception(error)

    mesh.start(
        holdings=holdings(takes, founder=False),
        fingerprint=bytes(32),
        lease_samples=1,
        on_order=on_order,
        tags=TAGS,
        schemas=SCHEMAS,
    )
    joined.result(30)
    return mesh


def spectator(crew: Crew) -> Mesh:
    word = crew.members[0].word
    settings = config("watcher", word)
    mesh = crew.add(Mesh(MeshConfig(**{**vars(settings), "role": "observe"})))
    mesh.watch(lambda order: None, tags=TAGS, schemas=SCHEMAS)
    linked(mesh, *crew.members)
    return mesh


def check(got: dict[str, Any], prefix: str) -> None:
    assert sorted(got) == sorted(name for name in A.tensors if name.startswith(prefix))
    assert all(np.array_equal(array, A.tensors[name]) for name, array in got.items())


@pytest.mark.parametrize("who", [member, spectator], ids=["member", "spectator"])
def test_a_part_is_read_while_a_holder_dies(crew: Crew, who: Any) -> None:
    first, second = (crew.start("a", upload_mbit=20) for _ in range(2))
    second.wait_for("holds", tag="a")
    reader = who(crew, "b") if who is member else who(crew)
    linked(reader, first, second)
    before = reader.traffic()[1]
    read = reader.read("a", 0, A.root, "delta/")
    until(lambda: reader.traffic()[1] > before + (1 << 20), 20, "nothing came")
    first.kill()
    check(read.result(30), "delta/")
    assert reader.traffic()[1] - before < 2 * PART_BYTES * 1.7, "the rest travelled, too"


def test_what_is_not_to_be_had_says_why(crew: Crew) -> None:
    first = crew.start("ab")
    reader = member(crew, "b")
    linked(reader, first)
    check(reader.read("a", 0, A.root).result(20), "")
    with pytest.raises(StateError, match="not to be had in time"):
        reader.read("a", 5, bytes(32), timeout_s=0.5).result(5)
    with pytest.raises(ConfigError, match="'c'"):
        reader.read("c", 0, A.root).result(5)
    waiting = reader.read("a", 5, bytes(32))
    assert waiting.cancel()
    waiting = reader.read("a", 5, bytes(32))
    reader.close()
    with pytest.raises(StateError, match="has left the run"):
        waiting.result(5)
    with pytest.raises(CancelledError):
        reader.read("a", 0, A.root).result(5)
