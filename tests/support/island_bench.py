"""The ranks of an island as threads, without torch: what `Talk` does between processes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class Bench:
    """Ranks as threads: what `Talk` does, without torch."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.rows: dict[int, Any] = {}
        self.barrier = threading.Barrier(size, timeout=10)

    def exchange(self, rank: int, value: Any) -> list[Any]:
        self.rows[rank] = value
        self.barrier.wait()
        everybody = [self.rows[one] for one in range(self.size)]
        self.barrier.wait()
        return everybody


class BenchTalk:
    def __init__(self, bench: Bench, rank: int) -> None:
        self.bench, self.rank, self.size = bench, rank, bench.size
        self.on_beat: Callable[[], None] = lambda: None

    def compare(self, row: list[int], meanwhile: Callable[[], None] | None = None) -> Any:
        if meanwhile is not None:
            meanwhile()
        return self.bench.exchange(self.rank, row)

    def share(self, data: bytes | None, root: int = 0) -> bytes:
        return self.bench.exchange(self.rank, data)[root]  # type: ignore[no-any-return]


def together(*lives: Callable[[], Any]) -> None:
    errors: list[BaseException] = []

    def live(one: Callable[[], Any]) -> None:
        try:
            one()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=live, args=(one,), daemon=True) for one in lives]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), "a rank waits for ever"
    assert not errors, errors
