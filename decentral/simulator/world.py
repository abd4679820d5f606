"""A discrete-event world: one clock, one random source, many unmodified peers.

    heap of (time, order, call) ──▶ node.deliver(event) ──▶ PeerCore.handle ──▶ actions
            ▲                                                                     │
            └──────────── network, disks, trainers, faults ◀─────────────────────┘

Everything follows from the seed: the same seed gives the same trace hash.
"""

from __future__ import annotations

import base64
import hashlib
import heapq
from collections.abc import Callable
from random import Random
from typing import Any

from decentral.peer.core import PeerCore
from decentral.peer.protocol import (
    Action,
    CloseLink,
    Committed,
    CoreConfig,
    Dial,
    Event,
    Fault,
    Left,
    LinkDown,
    Persist,
    Probe,
    ProbeAcked,
    Received,
    Send,
    Tick,
)
from decentral.simulator.checker import Checker
from decentral.simulator.network import Network
from decentral.simulator.trainer import Reduces, Trainer
from decentral.types import PeerId

RUN = hashlib.sha256(b"simulated run").digest()
FINGERPRINT = hashlib.sha256(b"simulated recipe").digest()


def peer_id(index: int) -> PeerId:
    raw = hashlib.sha256(f"peer {index}".encode()).digest()
    return "peer:" + base64.b32encode(raw).decode().lower().rstrip("=")


class Node:
    """A machine: what survives its crashes is `disk` and `checkpoint`."""

    def __init__(self, world: World, index: int) -> None:
        self.world = world
        self.index = index
        self.peer = peer_id(index)
        self.core: PeerCore | None = None
        self.life = 0
        self.disk: bytes | None = None
        self.checkpoint: tuple[int, bytes] | None = None
        self.incarnation = 1
        self.paused_until = 0.0
        self.waiting: list[Event] = []
        self.crash_after: int | None = None
        self.left = False
        self.faults: list[Fault] = []
        self.trainer = Trainer(self)
        self.speed = 0.7 + 0.6 * world.rng.random()
        self._timer = -1.0

    @property
    def up(self) -> bool:
        return self.core is not None

    @property
    def paused(self) -> bool:
        return self.world.now < self.paused_until

    # -------------------------------------------------------------- life and death

    def boot(self, *, found: bool = False, entries: tuple[PeerId, ...] = ()) -> None:
        world = self.world
        self.life += 1
        self.left = False
        self.incarnation = 1
        self.paused_until = 0.0
        self.trainer = Trainer(self)
        boot = hashlib.sha256(f"{self.index} {self.life}".encode()).digest()[:16]
        seed = world.seed * 1_000_003 + self.index * 1009 + self.life
        self.core = PeerCore(
            world.config,
            self.peer,
            f"n{self.index}",
            f"10.0.0.{self.index}:1",
            boot,
            self.disk,
            seed,
        )
        self._timer = -1.0
        self.execute(self.core.start(world.now, found))
        self.trainer.boot(self.checkpoint)
        self._knock(self.life, entries)

    def _knock(self, life: int, entries: tuple[PeerId, ...]) -> None:
        """Try the addresses of the invite until there is a link, as the runtime does."""
        if self.life != life or not entries:
            return
        if not any(self.peer in pair for pair in self.world.network.links):
            for peer in entries:
                self.world.network.dial(self, peer)
            self.world.after(3.0, self._knock, life, entries)

    def crash(self) -> None:
        """The process dies at once (SIGKILL, power): only what is on disk stays."""
        if self.core is None:
            return
        self.core = None
        self.life += 1
        self.waiting.clear()
        self.crash_after = None
        self.world.trace(self, "crash", b"")
        self.world.network.died(self)
        self.world.reduces.gone(self.peer)

    def pause(self, seconds: float) -> None:
        self.paused_until = max(self.paused_until, self.world.now + seconds)
        self.world.network.paused(self, seconds)
        self.world.after(seconds + 1e-6, self._resume, self.life)

    def _resume(self, life: int) -> None:
        if life != self.life or self.paused:
            return
        waiting, self.waiting = self.waiting, []
        for event in waiting:
            self.deliver(event)
        self.deliver(Tick())

    # -------------------------------------------------------------- events and actions

    def deliver(self, event: Event) -> None:
        core = self.core
        if core is None:
            return
        if self.paused:
            self.waiting.append(event)
            return
        self.world.trace(
            self, type(event).__name__, event.payload if isinstance(event, Received) else b""
        )
        self.execute(core.handle(event, self.world.now))

    def execute(self, actions: list[Action]) -> None:
        life = self.life
        for action in actions:
            if self.crash_after is not None:
                self.crash_after -= 1
                if self.crash_after < 0:
                    self.crash()
            if self.life != life:
                return
            self._do(action)
        self._set_timer()

    def _do(self, action: Action) -> None:
        world = self.world
        match action:
            case Send(peer, payload, _):
                world.checker.sent(self, payload)
                world.network.send(self, peer, payload)
            case Probe():
                world.network.probe(self, action)
            case Persist(record):
                if not world.drop_persist:
                    self.disk = record
            case Dial(peer, _):
                world.network.dial(self, peer)
            case CloseLink(peer, says):
                world.network.close(self, peer, says)
            case Fault():
                self.faults.append(action)
            case Left():
                self.left = True
                self.crash()
            case _:
                if isinstance(action, Committed):
                    world.checker.committed(self, action)
                self.trainer.on(action)

    def _set_timer(self) -> None:
        if self.core is None:
            return
        due = self.core.next_timer()
        if due is None:
            return
        due = max(due, self.world.now + 1e-4)
        if not self.world.now < self._timer <= due:
            self._timer = due
            self.world.at(due, self._tick, self.life)

    def _tick(self, life: int) -> None:
        if life == self.life and self.world.now >= self._timer:
            self._timer = -1.0
            self.deliver(Tick()) if not self.paused else None


class World:
    def __init__(self, seed: int, config: CoreConfig) -> None:
        self.seed = seed
        self.config = config
        self.rng = Random(seed)
        self.now = 0.0
        self.events = 0
        self.drop_persist = False
        self.compute_s = 4.0
        self.reduce_s = 0.6
        self.checkpoint_s = 1.5
        self.nodes: dict[PeerId, Node] = {}
        self.network = Network(self)
        self.reduces = Reduces(self)
        self.checker = Checker(self)
        self.tokens = 0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = 0
        self._hash = hashlib.sha256()

    def add(self) -> Node:
        node = Node(self, len(self.nodes))
        self.nodes[node.peer] = node
        return node

    def node(self, index: int) -> Node:
        return self.nodes[peer_id(index)]

    def at(self, time: float, call: Callable[..., None], *args: Any) -> None:
        self._order += 1
        heapq.heappush(self._heap, (time, self._order, call, args))

    def after(self, seconds: float, call: Callable[..., None], *args: Any) -> None:
        self.at(self.now + seconds, call, *args)

    def run(self, until: float, done: Callable[[], bool] | None = None) -> bool:
        """Let time pass; True as soon as `done` holds, False if `until` comes first."""
        while self._heap and self._heap[0][0] <= until:
            self.now, _, call, args = heapq.heappop(self._heap)
            call(*args)
            if done is not None and done():
                return True
        self.now = until
        return False

    def trace(self, node: Node, kind: str, payload: bytes) -> None:
        self.events += 1
        self._hash.update(f"{self.now:.6f} {node.index} {kind} ".encode())
        self._hash.update(payload)

    def trace_hash(self) -> str:
        return self._hash.hexdigest()

    def alive(self) -> list[Node]:
        return [node for node in self.nodes.values() if node.up]


__all__ = ["LinkDown", "Node", "ProbeAcked", "World", "peer_id"]
