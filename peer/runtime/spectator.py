"""A peer that does not train: what it sees of the log, as events.

core.join.target (the newest state of the log that a member has told) ──▶ view, round, fault events
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from decentral.errors import ConfigError
from decentral.peer.acceptor import read_record
from decentral.peer.holding import Holding
from decentral.peer.orders import Order
from decentral.peer.views_log import LogState
from decentral.types import TensorSpec

if TYPE_CHECKING:
    from decentral.peer.runtime.node import Node

LOOK_S = 0.1


class Spectator:
    """Lives on the loop's thread, from `start` until the node is closed."""

    def __init__(self, node: Node, loop: asyncio.AbstractEventLoop) -> None:
        self._node, self._loop = node, loop
        self._seen: LogState | None = None

    def start(
        self,
        *,
        holdings: Mapping[str, Holding],
        tags: Sequence[str],
        on_order: Callable[[Order], None],
        readable: Mapping[str, Sequence[TensorSpec]],
    ) -> None:
        """Have the node join without entering: it has no recipe that others could compare, so no
        fingerprint. Of the tags in `holdings` the committed state is fetched, too."""
        record = self._node.home.read_record()
        if record is not None and read_record(record).state is not None:
            raise ConfigError(
                f"{self._node.home.path} is of a peer that has trained: use another --home or "
                f"--name to {self._node.card.role}",
                phase="start",
            )
        options = {"tags": tags, "takes": tuple(holdings), "fingerprint": b"", "spectator": True}
        self._node.start(
            holdings=holdings, core_options=options, on_order=on_order, readable=readable
        )
        self._look()

    def _look(self) -> None:
        if self._node.closed:
            return
        now = seen_by(self._node)
        if now is not None and now is not self._seen:
            self._tell(self._seen, now)
            self._seen = now
        self._loop.call_later(LOOK_S, self._look)

    def _tell(self, before: LogState | None, now: LogState) -> None:
        node, view = self._node, now.view
        emit = node.events.emit
        where = {"lineage": view.lineage, "epoch": view.epoch}
        if before is None:
            name, round_, members = node.config.name, now.scopes[0].round, len(view.members)
            emit("watching", peer=node.me, name=name, role=node.card.role, **where,
                 round=round_, members=members)  # fmt: skip
            return
        if view != before.view:
            emit("view", **where, members=len(view.members), reason="")
        if now.paused != before.paused:
            kind, says = (
                ("pause", f"the run is paused: {now.paused}")
                if now.paused
                else ("resume", "the run goes on")
            )
            emit("fault", kind=kind, peer=None, says=says)
        for scope in now.scopes:
            last = next((one.round for one in before.scopes if one.tag == scope.tag), 0)
            rounds = {one.round: one.root for one in scope.history} | {scope.round: scope.root}
            for number in sorted(one for one in rounds if one > last):
                emit("round", **where, **self._round(number, rounds[number], scope.durable_round),
                     tokens=now.samples, **({"tag": scope.tag} if scope.tag else {}))  # fmt: skip

    def _round(self, number: int, root: bytes, durable_round: int) -> dict[str, Any]:
        """What only those who take part in a round know is null."""
        traffic = self._node.endpoint.counters()
        return {
            "round": number,
            "durable_round": durable_round,
            "participants": None,
            "state_hash": root.hex(),
            "loss": None,
            "bytes_sent": traffic.bytes_sent,
            "bytes_received": traffic.bytes_received,
            "seconds": None,
        }


def seen_by(node: Node) -> LogState | None:
    """The log's state as far as this peer knows: its own copy, or what it was told outside."""
    if node.core is None:
        return None
    return node.core.replica.state or node.core.join.target
