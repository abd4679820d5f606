"""A peer's place in a run, as the trainer sees it: thread-safe, and never waiting for the network
except where it says so.

    user's thread ── Mesh ──▶ loop's thread ── Node ──▶ PeerCore, links, transfers
                                    └────── orders ──▶ on_order (called on the loop's thread)
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from decentral import _native
from decentral.errors import DecentralError
from decentral.peer import protocol
from decentral.peer.home import Home
from decentral.peer.identity import Identity
from decentral.peer.orders import MeshFailed, Order
from decentral.peer.runtime.addresses import reachable
from decentral.peer.runtime.card import MembershipCard
from decentral.peer.runtime.config import MeshConfig, parse_listen_address
from decentral.peer.runtime.control import ControlServer
from decentral.peer.runtime.events import EventLog
from decentral.peer.runtime.loop import LoopThread
from decentral.peer.runtime.node import Node
from decentral.peer.runtime.report import status
from decentral.types import CommittedState, PeerId, Range, TensorSpec
from decentral.version import PROTOCOL_VERSIONS

#: While the trainer is busy with something that is no inner step, it counts as making progress.
BUSY_BEAT_S = 1.0


class Mesh:
    """Opens the home, listens, and waits for `start`. See `decentral.mesh_port.MeshPort`."""

    def __init__(self, config: MeshConfig) -> None:
        """Raises ConfigError (home in use, port taken, papers that do not fit), DiskError."""
        self.config = config
        self.name = config.name
        self._scratch = (
            tempfile.TemporaryDirectory(prefix="decentral-") if config.home is None else None
        )
        self.home = Home(config.home or Path(self._scratch.name if self._scratch else ""))
        try:
            self._open()
        except BaseException:
            self._let_go()
            raise

    def _let_go(self) -> None:
        self.home.close()
        if self._scratch is not None:
            self._scratch.cleanup()

    def _open(self) -> None:
        config = self.config
        identity = self.home.identity()
        self.me: PeerId = identity.peer_id
        self._card = MembershipCard(
            self.home,
            identity,
            config.name,
            join=config.join,
            credential=config.credential,
            open_run=config.open_run,
        )
        self.native = _native.Endpoint(
            identity.seed,
            versions=list(PROTOCOL_VERSIONS),
            bulk_streams=config.bulk_streams,
            encrypt_bulk=config.encrypt_bulk,
            silence_limit_ms=int(config.silence_limit_s * 1000),
            max_upload_bytes_s=round(config.max_upload_mbit * 125_000),
        )
        try:
            self.port = self._listen()
            self._card.entry_addresses()  # SelfJoinError before anything is started
        except BaseException:
            self.native.close()
            raise
        self._loop = LoopThread(f"decentral mesh of {config.name}")
        self._left = threading.Event()
        self._busy: str | None = None
        self._step = 0
        self._closed = False
        self._control: ControlServer | None = None
        self._shown: dict[str, Any] = {}
        self.events = EventLog(self.home, config.on_event, self._publish)
        self._node = self._loop.wait(self._make_node(identity))
        self.join_word = "" if self._card.run is None else self._card.join_word()
        self.emit(
            {
                "event": "listening",
                "peer": self.me,
                "name": self.name,
                "port": self.port,
                "join": self.join_word,
            }
        )

    def _listen(self) -> int:
        """On the port asked for; if any will do, on the last one, so that others find us again."""
        host, port = parse_listen_address(self.config.listen)
        kept = self.home.path / "port"
        if port == 0:
            with suppress(OSError, ValueError, DecentralError):
                port = self.native.listen(host, int(kept.read_text()))
        port = port or self.native.listen(host, 0)
        if port == 0 or str(port) != (kept.read_text() if kept.exists() else ""):
            kept.write_text(str(port))
        self._card.addresses = tuple(reachable(host, port))
        return port

    async def _make_node(self, identity: Identity) -> Node:
        loop = self._loop.loop
        node = Node(self.config, self.home, identity, self.native, self._card, self.events, loop)
        self._control = ControlServer(
            self.home,
            {
                "status": lambda request: status(node, self._shown),
                "invite": lambda request: {"join": self._card.join_word()},
                "leave": self._leave_by_command,
            },
        )
        await self._control.start()
        return node

    # -------------------------------------------------------------------------- the trainer

    def start(
        self,
        *,
        schema: Sequence[TensorSpec],
        fingerprint: bytes,
        initial: CommittedState | None,
        resumed: CommittedState | None,
        lease_samples: int,
        on_order: Callable[[Order], None],
    ) -> None:
        """Make the run, go on with it, or join it. Returns at once; orders say how it went."""

        def tell(order: Order) -> None:
            if isinstance(order, protocol.Left):
                self._left.set()
            on_order(order)

        def begin() -> None:
            try:
                self._node.start(
                    schema=schema,
                    fingerprint=fingerprint,
                    initial=initial,
                    resumed=resumed,
                    lease_samples=lease_samples,
                    on_order=tell,
                )
            except DecentralError as error:
                tell(MeshFailed(error))

        self._loop.call(begin)

    def contribute(self, round: int, tokens: int, leases: tuple[Range, ...]) -> None:
        self._loop.call(self._node.feed, protocol.Contribute(round, tokens, leases))

    def reduced(self, round: int, attempt: int, state_root: bytes) -> None:
        self._loop.call(self._node.feed, protocol.Reduced(round, attempt, state_root))

    def reduce_failed(self, round: int, attempt: int, suspect: PeerId | None, says: str) -> None:
        self._loop.call(self._node.feed, protocol.ReduceFailed(round, attempt, suspect, says))

    def hold(self, state: CommittedState) -> None:
        self._loop.call(self._node.hold, state)

    def checkpointed(self, round: int) -> None:
        self._loop.call(self._node.feed, protocol.Checkpointed(round))

    def progress(self, step: int) -> None:
        self._step = max(self._step + 1, step)
        self.native.set_progress(self._step)

    def busy(self, phase: str | None) -> None:
        idle = self._busy is None
        self._busy = phase
        if phase is not None and idle:
            self._loop.call(self._beat)

    def _beat(self) -> None:
        if self._busy is not None and not self._closed:
            self.progress(0)
            self._loop.loop.call_later(BUSY_BEAT_S, self._beat)

    def leave(self, reason: str, timeout_s: float) -> None:
        """Blocks until the leave is committed, or for `timeout_s`."""
        self._loop.call(self._node.feed, protocol.Leave(reason))
        self._left.wait(timeout_s)

    def stop(self, reason: str) -> None:
        self._loop.call(self._node.feed, protocol.Stop(reason))

    @property
    def run_id(self) -> bytes:
        """32 bytes; empty while nobody has told a joiner of an open run."""
        return self._card.run or b""

    def traffic(self) -> tuple[int, int]:
        counters = self.native.counters()
        return counters.bytes_sent, counters.bytes_received

    # --------------------------------------------------------------------------- telemetry

    def emit(self, event: dict[str, Any]) -> None:
        fields = dict(event)
        self.events.emit(fields.pop("event"), **fields)

    def telemetry(self, **fields: Any) -> None:
        """What `decentral status` shows of the training: strategy, loss, tokens, …"""
        self._shown = {**self._shown, **fields}

    def _publish(self, topic: str, record: dict[str, Any]) -> None:
        if self._control is not None:
            self._loop.call(self._control.publish, topic, record)

    def _leave_by_command(self, request: dict[str, Any]) -> dict[str, Any]:
        self._node.feed(protocol.Leave("asked to by a local command"))
        return {}

    def close(self) -> None:
        """Close links and stop the mesh's thread. Idempotent; blocks."""
        if self._closed:
            return
        self._closed = True
        self._loop.wait(self._shut())
        self.native.close()
        self._loop.stop()
        self._let_go()

    async def _shut(self) -> None:
        self._node.close()
        if self._control is not None:
            await self._control.close()
            self._control = None
