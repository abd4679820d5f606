"""What was used last, up to so many bytes. What several threads want at once is made once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Cache(Generic[K, V]):
    """Thread-safe. A value that is larger than all of it is made, given out, and not kept."""

    def __init__(self, limit_bytes: int, size_of: Callable[[V], int]) -> None:
        self._limit, self._size_of = limit_bytes, size_of
        self._lock = threading.Lock()
        self._kept: OrderedDict[K, Future[V]] = OrderedDict()
        self._sizes: dict[K, int] = {}

    def __contains__(self, key: K) -> bool:
        with self._lock:
            return key in self._sizes

    @property
    def size_bytes(self) -> int:
        with self._lock:
            return sum(self._sizes.values())

    def get(self, key: K, make: Callable[[], V]) -> V:
        """The value; `make` is called where there is none. What it raises, all who wait get."""
        with self._lock:
            found = self._kept.get(key)
            future = self._kept.setdefault(key, Future())
            self._kept.move_to_end(key)
        if found is not None:
            return found.result()
        try:
            value = make()
        except BaseException as error:
            with self._lock:
                del self._kept[key]
            future.set_exception(error)
            raise
        future.set_result(value)
        with self._lock:
            self._sizes[key] = self._size_of(value)
            self._forget_some()
        return value

    def _forget_some(self) -> None:
        for key in list(self._kept):
            if sum(self._sizes.values()) <= self._limit:
                return
            if key in self._sizes:  # else it is being made
                del self._kept[key], self._sizes[key]
