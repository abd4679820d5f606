"""Peers of one process that move states over real links: without a log, told what to fetch."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from fetch_world import CHUNK

from decentral.bench.state_worker import StateMember
from decentral.errors import DecentralError
from decentral.peer.orders import Order
from decentral.peer.protocol import FetchState
from decentral.peer.runtime.links import LinkTable
from decentral.peer.runtime.transfer_router import TransferRouter
from decentral.types import CommittedState, raw_id

SIZE = 6 * CHUNK


class Peer(StateMember):
    """Collects the orders that a trainer would get."""

    def __init__(self, upload_mbit: float = 0) -> None:
        self.orders: queue.Queue[Order] = queue.Queue()
        self.errors: list[DecentralError] = []
        self.changed = threading.Condition()
        super().__init__("127.0.0.1", SIZE, upload_mbit)

    def _done(self, order: Any) -> None:
        self.orders.put(order)

    def _failed(self, error: DecentralError) -> None:
        with self.changed:
            self.errors.append(error)
            self.changed.notify_all()

    def _events(self) -> None:
        super()._events()
        with self.changed:
            self.changed.notify_all()

    def wait_until(self, condition: Callable[[], bool], says: str) -> None:
        """Looked at whenever something has come in."""
        with self.changed:
            assert self.changed.wait_for(condition, 20), f"{says}; faults: {self.errors}"

    def commit(self, state: CommittedState, update: CommittedState | None = None) -> None:
        if update is not None:
            self.loop.call(self.transfers.hold_update, state.root, update)
        self.loop.call(self.transfers.publish, state)

    def fetch(self, goal: CommittedState, holders: list[Peer], *past: CommittedState) -> None:
        history = tuple((one.round, one.root) for one in past)
        wanted = FetchState(goal.round, goal.root, tuple(h.me for h in holders), history)
        self.loop.call(lambda: self.transfers.fetch(wanted, self.transfers._held))

    def received(self) -> int:
        return sum(
            self.endpoint.stats(link.id).bulk_bytes_received for link in self.links.up.values()
        )

    async def _shut(self) -> None:
        self.loop.loop.remove_reader(self.endpoint.event_fd)
        self.transfers.close()

    def close(self) -> None:
        self.loop.wait(self._shut())
        self.endpoint.close()
        self.loop.stop()


def link(joiner: Peer, holders: Sequence[Peer]) -> None:
    for holder in holders:
        address = holder.address
        joiner.endpoint.dial(address["host"], address["port"], expected=raw_id(holder.me))
    for peer, wanted in ((joiner, len(holders)), *((holder, 1) for holder in holders)):
        peer.wait_until(lambda p=peer, n=wanted: len(p.links.up) == n, "no links")  # type: ignore


def arrived(peer: Peer, timeout_s: float = 20.0) -> Any:
    try:
        return peer.orders.get(timeout=timeout_s)
    except queue.Empty:
        raise AssertionError(f"nothing arrived; faults: {peer.errors}") from None


class ModulePeer(Peer):
    """Holds, or wants to hold, some modules."""

    def __init__(self, tags: str, upload_mbit: float = 0) -> None:
        self.tags = tags
        super().__init__(upload_mbit)

    async def _make(self) -> Any:
        schemas: Mapping[str, Any] = dict.fromkeys(self.tags, self.schema)
        links = cast(LinkTable, self.links)
        return TransferRouter(
            self.endpoint, links, schemas, self.loop.loop, self._done, self._failed
        )

    def publish(self, tag: str, state: CommittedState) -> None:
        self.loop.call(lambda: self.transfers[tag].publish(state))  # type: ignore[index]

    def want(self, tag: str, goal: CommittedState, holders: Sequence[Peer]) -> None:
        wanted = FetchState(goal.round, goal.root, tuple(h.me for h in holders), (), tag)
        self.loop.call(lambda: self.transfers[tag].fetch(wanted, None))  # type: ignore[index]
