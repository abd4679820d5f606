"""Parts of states: from where they are, once; and what was used last."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from decentral.errors import StateError
from decentral.serving import parts as parts_module
from decentral.serving.cache import Cache
from decentral.serving.parts import Part, Parts, Version


class World:
    """States of one cell, as a mesh gives them: after a while, or never."""

    def __init__(self) -> None:
        self.states: dict[bytes, dict[str, np.ndarray[Any, Any]]] = {}
        self.newest = (0, b"")
        self.reads: list[tuple[str, bytes, str]] = []
        self.asked: list[Future[dict[str, Any]]] = []
        self.slow = threading.Event()
        self.slow.set()

    def commit(self, round: int, **tensors: float) -> Version:
        root = round.to_bytes(32, "big")
        self.states[root] = {name: np.full(8, x, np.float32) for name, x in tensors.items()}
        self.newest = (round, root)
        return Version("cell", round, root)

    def read(
        self, tag: str, round: int, root: bytes, prefix: str = "", *, timeout_s: float = 1
    ) -> Future[dict[str, Any]]:
        self.reads.append((tag, root, prefix))
        future: Future[dict[str, Any]] = Future()
        self.asked.append(future)

        def give() -> None:
            self.slow.wait(5)
            if root in self.states and future.set_running_or_notify_cancel():
                here = self.states[root].items()
                future.set_result({name: one for name, one in here if name.startswith(prefix)})

        threading.Thread(target=give, daemon=True).start()
        return future

    def log(self) -> Any:
        round, root = self.newest
        return SimpleNamespace(scope=lambda cell: SimpleNamespace(round=round, root=root))


def test_the_same_bytes_are_fetched_once() -> None:
    world = World()
    version = world.commit(3, theta=1.0, momentum=2.0)
    parts, part = Parts(world), Part(version, "theta")
    assert not parts.here(part)
    first = parts.get(part)
    assert list(first) == ["theta"] and first["theta"][0] == 1.0
    world.commit(4, theta=5.0)  # a later round does not make it wrong
    assert parts.here(part) and parts.get(part) is first
    assert world.reads == [("cell", version.root, "theta")]
    assert parts.fetched_bytes == 32 and parts.fetching_s > 0


def test_many_who_want_it_at_once_share_one_fetch() -> None:
    world = World()
    part = Part(world.commit(1, theta=1.0), "")
    parts = Parts(world)
    world.slow.clear()
    with ThreadPoolExecutor(6) as pool:
        wanted = [pool.submit(parts.get, part) for _ in range(6)]
        while not world.reads:
            time.sleep(0.001)
        world.slow.set()
        assert len({id(one.result(5)) for one in wanted}) == 1
    assert len(world.reads) == 1


def test_what_a_worker_holds_is_not_fetched() -> None:
    world = World()
    version = world.commit(2, theta=1.0, other=2.0)
    held: dict[str, Any] = {}
    parts = Parts(world, held)
    tensors = {"theta": np.zeros(2, np.float32), "other": np.zeros(2, np.float32)}
    held["cell"] = SimpleNamespace(root=version.root, tensors=tensors)
    assert parts.get(Part(version, "theta"))["theta"] is tensors["theta"]
    assert list(parts.get(Part(version, "theta"))) == ["theta"]
    assert not world.reads and parts.fetched_bytes == 0
    held["cell"] = SimpleNamespace(root=b"another", tensors=tensors)
    assert parts.get(Part(version, "theta"))["theta"][0] == 1.0 and len(world.reads) == 1


def test_a_round_that_is_history_is_an_error_at_once() -> None:
    world = World()
    old = world.commit(1, theta=1.0)
    world.commit(2, theta=2.0)
    parts = Parts(world)
    with pytest.raises(StateError, match="round 1 of cell is not the newest"):
        parts.get(Part(old, ""))
    assert not world.reads


def test_one_that_becomes_history_meanwhile_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts_module, "LOOK_S", 0.005)
    world = World()
    world.slow.clear()
    parts, version = Parts(world), world.commit(1, theta=1.0)
    with ThreadPoolExecutor(1) as pool:
        wanted = pool.submit(parts.get, Part(version, ""))
        while not world.asked:
            time.sleep(0.001)
        assert not wanted.done()
        world.commit(2, theta=2.0)
        with pytest.raises(StateError, match="round 1 of cell"):
            wanted.result(5)
    assert world.asked[0].cancelled()
    world.slow.set()
    assert not parts.here(Part(version, "")), "a failure is not kept"


def test_one_that_is_ahead_of_the_log_here_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts_module, "LOOK_S", 0.005)
    monkeypatch.setattr(parts_module, "LATE_S", 0.05)
    world = World()
    world.commit(1, theta=1.0)
    parts = Parts(world)
    ahead = Version("cell", 2, b"nobody has this one".ljust(32))
    began = time.monotonic()
    with pytest.raises(StateError, match="round 2 of cell"):
        parts.get(Part(ahead, ""))
    assert time.monotonic() - began >= 0.05 and world.asked[0].cancelled()


def test_several_parts_come_in_their_order_and_at_once() -> None:
    world = World()
    version = world.commit(1, a=1.0, b=2.0, c=3.0)
    parts = Parts(world)
    world.slow.clear()
    wanted = [Part(version, name) for name in "cab"]
    with ThreadPoolExecutor(1) as pool:
        gathered = pool.submit(parts.gather, wanted)
        while len(world.reads) < 3:
            time.sleep(0.001)
        world.slow.set()
        assert [list(one) for one in gathered.result(5)] == [["c"], ["a"], ["b"]]


def test_a_cache_forgets_what_was_used_longest_ago() -> None:
    cache: Cache[str, bytes] = Cache(10, len)
    made: list[str] = []

    def get(key: str, size: int) -> bytes:
        return cache.get(key, lambda: made.append(key) or bytes(size))

    get("a", 4), get("b", 4), get("a", 4)
    get("c", 4)
    assert "a" in cache and "b" not in cache and "c" in cache and cache.size_bytes == 8
    assert len(get("large", 11)) == 11
    assert "large" not in cache and cache.size_bytes == 0
    assert made == ["a", "b", "c", "large"]


def test_what_making_raises_all_who_wait_get_and_nobody_later() -> None:
    cache: Cache[str, int] = Cache(10, lambda _: 1)
    begun, go = threading.Event(), threading.Event()

    def fail() -> int:
        begun.set()
        go.wait(5)
        raise StateError("gone")

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.get, "a", fail)
        begun.wait(5)
        second = pool.submit(cache.get, "a", lambda: 2)
        time.sleep(0.02)
        go.set()
        for one in (first, second):
            with pytest.raises(StateError, match="gone"):
                one.result(5)
    assert cache.get("a", lambda: 3) == 3
