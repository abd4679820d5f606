"""A discrete-event world: one clock, one random source, many unmodified peers.

    heap of (time, order, call) ──▶ node.deliver(event) ──▶ PeerCore.handle ──▶ actions
            ▲                                                                     │
            └──────────── network, disks, trainers, faults ◀─────────────────────┘

Everything follows from the seed: the same seed gives the same trace hash.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable
from random import Random
from struct import Struct
from typing import Any

from decentral.peer.protocol import CoreConfig
from decentral.simulator.checker import Checker
from decentral.simulator.conditions import Conditions
from decentral.simulator.network import Network
from decentral.simulator.node import Node, peer_id
from decentral.simulator.recorder import Recorder
from decentral.simulator.reduces import Reduces
from decentral.types import PeerId

RUN = hashlib.sha256(b"simulated run").digest()
FINGERPRINT = hashlib.sha256(b"simulated recipe").digest()
TRACE_BATCH = 4096
_HEAD = Struct("<dI")


class World:
    def __init__(self, seed: int, config: CoreConfig, conditions: Conditions | None = None) -> None:
        self.seed = seed
        self.config = config
        self.conditions = conditions or Conditions()
        self.rng = Random(seed)
        self.now = 0.0
        self.events = 0
        self.drop_persist = False
        """Break the disks: nothing is ever written."""
        self.nodes: dict[PeerId, Node] = {}
        self.heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self.order = 0
        """Of the events that are due at the same time."""
        self.network = Network(self)
        self.reduces = Reduces(self)
        self.checker = Checker(self)
        self.recorder: Recorder | None = None
        """Is told what a person may want to see afterwards; changes nothing."""
        self.tokens = 0
        """Numbers the pieces of work, so that each counts once."""
        self._hash = hashlib.sha256()
        self._traced: list[bytes] = []

    def add(self) -> Node:
        node = Node(self, len(self.nodes))
        self.nodes[node.peer] = node
        return node

    def node(self, index: int) -> Node:
        return self.nodes[peer_id(index)]

    def alive(self) -> list[Node]:
        return [node for node in self.nodes.values() if node.core is not None]

    # -------------------------------------------------------------- time

    def at(self, time: float, call: Callable[..., None], *args: Any) -> None:
        self.order += 1
        heapq.heappush(self.heap, (time, self.order, call, args))

    def after(self, seconds: float, call: Callable[..., None], *args: Any) -> None:
        self.order += 1
        heapq.heappush(self.heap, (self.now + seconds, self.order, call, args))

    def run(self, until: float, done: Callable[[], bool] | None = None) -> bool:
        """Let time pass; True as soon as `done` holds, False if `until` comes first."""
        heap, pop = self.heap, heapq.heappop
        while heap and heap[0][0] <= until:
            self.now, _, call, args = pop(heap)
            call(*args)
            if done is not None and done():
                return True
        self.now = until
        return False

    # -------------------------------------------------------------- what happened

    def trace(self, node: Node, kind: bytes, payload: bytes = b"") -> None:
        self.events += 1
        traced = self._traced
        traced += (_HEAD.pack(self.now, node.index), kind, payload)
        if len(traced) > TRACE_BATCH:
            self._hash.update(b"".join(traced))
            traced.clear()

    def trace_hash(self) -> str:
        self._hash.update(b"".join(self._traced))
        self._traced.clear()
        return self._hash.hexdigest()


__all__ = ["Node", "World", "peer_id"]
