"""Reading in states that other processes hold: by a member, by a spectator, while holders die."""

from __future__ import annotations

from concurrent.futures import CancelledError
from typing import Any

import numpy as np
import pytest
from mesh_member import PART_BYTES, initial
from mesh_members import Crew, linked, until

from decentral.errors import ConfigError, StateError

A = initial("a")


def check(got: dict[str, Any], prefix: str) -> None:
    assert sorted(got) == sorted(name for name in A.tensors if name.startswith(prefix))
    assert all(np.array_equal(array, A.tensors[name]) for name, array in got.items())


@pytest.mark.parametrize("who", ["member", "spectator"])
def test_a_part_is_read_while_a_holder_dies(crew: Crew, who: str) -> None:
    first, second = (crew.start("a", upload_mbit=20) for _ in range(2))
    second.wait_for("holds", tag="a")
    reader = crew.member("b") if who == "member" else crew.spectator()
    linked(reader, first, second)
    before = reader.traffic()[1]
    read = reader.read("a", 0, A.root, "delta/")
    until(lambda: reader.traffic()[1] > before + (1 << 20), 20, "nothing came")
    first.kill()
    check(read.result(30), "delta/")
    assert reader.traffic()[1] - before < 2 * PART_BYTES * 1.7, "the rest travelled, too"


def test_what_is_not_to_be_had_says_why(crew: Crew) -> None:
    first = crew.start("ab")
    reader = crew.member("b")
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
