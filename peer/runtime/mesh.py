"""A peer's place in a run, as the trainer sees it: thread-safe, and never waiting for the network
except where it says so.

    user's thread ── Mesh ──▶ loop's thread ── Node ──▶ PeerCore, links, transfers
                                    └────── orders ──▶ on_order (called on the loop's thread)
"""

from __future__ import annotations

import asyncio
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from decentral import _native, failpoints
from decentral.errors import ConfigError, DecentralError
from decentral.peer import protocol
from decentral.peer.credential import ROLES
from decentral.peer.holding import Holding
from decentral.peer.home import Home
from decentral.peer.identity import Identity
from decentral.peer.joinword import split_address
from decentral.peer.orders import MeshFailed, Order
from decentral.peer.runtime import reads
from decentral.peer.runtime.addresses import is_everywhere, reachable
from decentral.peer.runtime.calling import Handler
from decentral.peer.runtime.card import MembershipCard
from decentral.peer.runtime.clock import step_clock
from decentral.peer.runtime.config import MeshConfig, parse_listen_address
from decentral.peer.runtime.control import ControlServer
from decentral.peer.runtime.events import EventLog
from decentral.peer.runtime.gateway import is_hidden
from decentral.peer.runtime.loop import LoopThread
from decentral.peer.runtime.node import Node
from decentral.peer.runtime.port_mapping import PortMapper
from decentral.peer.runtime.port_mapping_ways import Mapping as PortMapping
from decentral.peer.runtime.report import doctor, status
from decentral.peer.runtime.spectator import Spectator, seen_by
from decentral.peer.runtime.wish import wish
from decentral.peer.views_log import LogState
from decentral.types import CommittedState, PeerId, Range, TensorSpec
from decentral.version import PROTOCOL_VERSIONS

if TYPE_CHECKING:
    from decentral.peer.runtime.neighbours import Neighbours

#: While the trainer is busy with something that is no inner step, it counts as making progress.
BUSY_BEAT_S = 1.0
#: Who makes a run waits so long for its router: the first join word should work from anywhere.
ROUTER_S = 1.5


#: For so long somebody who holds what is to be read is looked for.
READ_S = 60.0
#: Links that an operation needs are waited for so long, asked for again, and looked for, so often.
CONNECT_S, CONNECT_AGAIN_S, CONNECT_LOOK_S = 8.0, 2.0, 0.005


class Mesh:
    """Opens the home, listens, and waits for `start`. See `decentral.mesh_port.MeshPort`."""

    def __init__(self, config: MeshConfig) -> None:
        """Raises ConfigError (home in use, port taken, papers that do not fit), DiskError."""
        failpoints.arm_from_environment()
        self.config = config
        self.name, self.full_mesh_up_to = config.name, config.full_mesh_up_to
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
            role=config.role,
        )
        self.role = self._card.role
        self.native = _native.Endpoint(
            identity.seed,
            versions=list(PROTOCOL_VERSIONS),
            bulk_streams=config.bulk_streams,
            encrypt_bulk=config.encrypt_bulk,
            silence_limit_ms=int(config.silence_limit_s * 1000),
            max_upload_bytes_s=round(config.max_upload_mbit * 125_000),
            relay_max_bytes_s=round(config.max_relay_mbit * 125_000),
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
        self._mapper: PortMapper | None = None
        self._asked_router = threading.Event()
        self._neighbours: Neighbours | None = None
        self._shown: dict[str, dict[str, Any]] = {}
        self.events = EventLog(self.home, config.on_event, self._publish)
        self._node = self._loop.wait(self._make_node(identity))
        if self._mapper is not None and not config.join:
            self._asked_router.wait(ROUTER_S)
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
        if host == "::" and not socket.has_dualstack_ipv6():
            host = "0.0.0.0"
        self._host = host
        kept = self.home.path / "port"
        if port:
            self.native.listen(host, port)
        else:
            with suppress(OSError, ValueError, DecentralError):
                port = self.native.listen(host, int(kept.read_text()))
            port = port or self.native.listen(host, 0)
        if str(port) != (kept.read_text() if kept.exists() else ""):
            with suppress(OSError):  # a hint for the next start
                kept.write_text(str(port))
        self._card.addresses = tuple(reachable(host, port))
        return port

    async def _make_node(self, identity: Identity) -> Node:
        loop = self._loop.loop
        node = Node(
            self.config, self.home, identity, self.native, self._card, self.events, loop, self.port
        )
        self._control = ControlServer(
            self.home,
            {
                "status": lambda request: status(node, self._shown),
                "doctor": lambda request: doctor(node),
                "invite": self._invite,
                "revoke": node.revoking.by_command,
                "leave": self._leave_by_command,
                "pause": lambda request: wish(node, "pause", request),
                "resume": lambda request: wish(node, "resume", request),
                "rollback": lambda request: wish(node, "rollback", request),
                "failpoint": failpoints.command,
                "clock": lambda request: step_clock(node, request),
            },
        )
        await self._control.start()
        everywhere = is_everywhere(parse_listen_address(self.config.listen)[0])
        if self._card.by_lan or (self.config.lan_discovery and everywhere):
            from decentral.peer.runtime.neighbours import Neighbours

            self._neighbours = Neighbours(node, loop, self.port)
            await self._neighbours.start()
        if self.config.port_mapping and self._needs_mapping():
            told = partial(self._mapped, node)
            self._mapper = PortMapper(self.port, told)
            self._mapper.start()
        return node

    def _needs_mapping(self) -> bool:
        host, _ = parse_listen_address(self.config.listen)
        hosts = [split_address(address)[0] for address in self._card.addresses]
        v4 = [one for one in hosts if ":" not in one]
        return is_everywhere(host) and bool(v4) and all(map(is_hidden, v4))

    def _mapped(self, node: Node, mapping: PortMapping | None, says: str) -> None:
        node.reaching.mapped_at(mapping.external if mapping else "", says)
        address, how = (mapping.external, mapping.how) if mapping else (None, None)
        self.events.emit("mapping", address=address, how=how, says=says)
        self._asked_router.set()

    # -------------------------------------------------------------------------- the trainer

    def start(
        self,
        *,
        holdings: Mapping[str, Holding],
        fingerprint: bytes,
        lease_samples: int,
        on_order: Callable[[Order], None],
        tags: tuple[str, ...] = ("",),
        schemas: Mapping[str, Sequence[TensorSpec]] = MappingProxyType({}),
        min_contributors: int = 0,
        grace_s: float = 0.0,
        copies: int = 0,
    ) -> None:
        """Make the run, go on with it, or join it. Returns at once; orders say how it went.

        `tags`: of the run, the same in the same order on all peers; `holdings`: those of them that
        this peer takes part in, and a founder's initial states of the others; `schemas`: of tags
        that it may `read` without taking part.
        """
        if self.role != ROLES[0]:
            raise ConfigError(f"this peer's role is {self.role}: it cannot train", phase="start")
        takes = tuple(tag for tag in tags if tag in holdings and holdings[tag].takes)

        def tell(order: Order) -> None:
            if isinstance(order, protocol.Left | MeshFailed):
                self._left.set()  # there is nothing left to leave
            on_order(order)

        def begin() -> None:
            try:
                self._node.start(
                    holdings=holdings,
                    on_order=tell,
                    core_options={
                        "tags": tags,
                        "takes": takes,
                        "fingerprint": fingerprint,
                        "lease_samples": lease_samples,
                        "min_contributors": min_contributors,
                        "grace_s": grace_s,
                        "copies": copies,
                    },
                    readable=schemas,
                )
            except DecentralError as error:
                tell(MeshFailed(error))

        self._enter(begin, tell)

    def _enter(self, begin: Callable[[], None], tell: Callable[[Order], None]) -> None:
        """Now, or once there is somebody on the local network to begin with."""
        neighbours = self._neighbours
        if neighbours is None or not self._card.by_lan or self._card.entry_addresses():
            self._loop.call(begin)
            return

        def found(error: DecentralError | None) -> None:
            begin() if error is None else tell(MeshFailed(error))

        self._loop.call(neighbours.wait_for_entry, self.config.join_timeout_s, found)

    def watch(
        self,
        on_order: Callable[[Order], None],
        *,
        holdings: Mapping[str, Holding] = MappingProxyType({}),
        tags: tuple[str, ...] = ("",),
        schemas: Mapping[str, Sequence[TensorSpec]] = MappingProxyType({}),
    ) -> None:
        """Be linked and follow the run without training in it: for a relay, or to observe.

        `holdings`: of which tags the committed states are fetched, too (StateArrived); `schemas`:
        of tags that it may `read`.
        """

        def begin() -> None:
            try:
                spectator = Spectator(self._node, self._loop.loop)
                spectator.start(holdings=holdings, tags=tags, on_order=on_order, readable=schemas)
            except DecentralError as error:
                on_order(MeshFailed(error))

        self._enter(begin, on_order)

    def contribute(
        self,
        round: int,
        tokens: int,
        leases: tuple[Range, ...],
        *,
        staleness: int = 0,
        steps: int = 0,
        step_s: float = 0.0,
        tag: str = "",
    ) -> None:
        work = protocol.Contribute(round, tokens, leases, staleness, step_s, tag, steps)
        self._loop.call(self._node.feed, work)

    def reduced(self, round: int, attempt: int, state_root: bytes, *, tag: str = "") -> None:
        self._loop.call(self._node.feed, protocol.Reduced(round, attempt, state_root, tag))

    def reduce_failed(
        self, round: int, attempt: int, suspect: PeerId | None, says: str, *, tag: str = ""
    ) -> None:
        self._loop.call(self._node.feed, protocol.ReduceFailed(round, attempt, suspect, says, tag))

    def connect(self, peers: Sequence[PeerId], wanted: Callable[[], bool]) -> None:
        """See to it that there are links to these members; waits for at most `CONNECT_S`. Never on
        the mesh's own thread, which makes them."""
        missing = [peer for peer in peers if peer != self.me and not self.linked(peer)]
        deadline = time.monotonic() + CONNECT_S
        asked_at = float("-inf")
        while missing and wanted() and time.monotonic() < deadline:
            if time.monotonic() >= asked_at + CONNECT_AGAIN_S:
                asked_at = time.monotonic()
                self._loop.call(self._node.want_links, tuple(missing))
            time.sleep(CONNECT_LOOK_S)
            missing = [peer for peer in missing if not self.linked(peer)]

    def linked(self, peer: PeerId) -> bool:
        return self._node.links.get(peer) is not None

    def read(
        self, tag: str, round: int, root: bytes, prefix: str = "", *, timeout_s: float = READ_S
    ) -> Future[reads.Arrays]:
        """The tensors of a tag's committed state whose names begin with `prefix`, from all linked
        members that hold it (or from here), verified against `root`. Nobody may write to them.

        For tags of `holdings` or `schemas`. Whoever does not hold the state yet is asked again.
        The future can be cancelled; it fails with a StateError once `timeout_s` are over, with a
        FingerprintError if the schema is not the run's, with a ConfigError for what there is not.
        """
        future: Future[reads.Arrays] = Future()
        self._loop.call(reads.read, self._node, tag, round, root, prefix, timeout_s, future)
        if self._closed and not future.done():  # after its last words nobody settles it any more
            future.cancel()
        return future

    def serve(self, method: str, handler: Handler) -> None:
        """Have `handler(caller, body)` answer calls of this method: on other threads, for whoever
        is linked, at most 4 at once for each of them. It may be called before `start`.

        What it returns (up to 16 MiB) is the answer; what it raises reaches the caller as a
        CallError with its message. It must be done at some time: nothing can stop it.
        """
        self._node.calling.serve(method, handler)

    def call(self, peer: PeerId, method: str, body: bytes, timeout_s: float) -> Future[bytes]:
        """Have another peer's handler do this; its answer, or a CallError that names the peer and
        the phase. A link is made first where there is none. Bodies have up to 16 MiB.

        Nothing is tried twice: what a handler has done before its link died is not known here.
        """
        future: Future[bytes] = Future()
        self._loop.call(self._node.calling.call, peer, method, body, timeout_s, future)
        if self._closed and not future.done():
            future.cancel()
        return future

    def hold(self, state: CommittedState, *, tag: str = "") -> None:
        self._loop.call(self._node.hold, tag, state)

    def take_part(self, tag: str, takes: bool) -> None:
        self._loop.call(self._node.take_part, tag, takes)

    def wants_updates(self, tag: str = "") -> bool:
        transfers = self._node.transfers
        return transfers is not None and transfers.wants_updates(tag)

    def hold_update(self, state_root: bytes, update: CommittedState, *, tag: str = "") -> None:
        self._loop.call(self._node.hold_update, tag, state_root, update)

    def refuse_update(self, round: int, *, tag: str = "") -> None:
        self._loop.call(self._node.refuse_update, tag, round)

    def checkpointed(self, round: int, kept: tuple[int, ...] = (), *, tag: str = "") -> None:
        self._loop.call(self._node.feed, protocol.Checkpointed(round, tag, kept))

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

    def log(self) -> LogState | None:
        """What is committed, as far as this peer knows; None before it knows anything."""
        return seen_by(self._node)

    def traffic(self) -> tuple[int, int]:
        counters = self.native.counters()
        return counters.bytes_sent, counters.bytes_received

    # --------------------------------------------------------------------------- telemetry

    def emit(self, event: dict[str, Any]) -> None:
        fields = dict(event)
        self.events.emit(fields.pop("event"), **fields)

    def record(self, event: dict[str, Any]) -> None:
        fields = dict(event)
        self.events.record(fields.pop("event"), **fields)

    def telemetry(self, *, tag: str = "", **fields: Any) -> None:
        """What `decentral status` shows of the training: strategy, loss, tokens, …"""
        self._shown = {**self._shown, tag: {**self._shown.get(tag, {}), **fields}}

    def _publish(self, topic: str, record: dict[str, Any]) -> None:
        if self._control is not None:
            self._loop.call(self._control.publish, topic, record)

    def _invite(self, request: dict[str, Any]) -> dict[str, Any]:
        role = request.get("role")
        if role not in (None, *ROLES):
            raise ConfigError(f"a role is one of {', '.join(ROLES)}")
        return {"join": self._card.join_word(role)}

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
        await asyncio.gather(
            *(one.close() for one in (self._mapper, self._neighbours) if one is not None)
        )
        if self._control is not None:
            await self._control.close()
            self._control = None
