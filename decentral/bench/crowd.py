"""``decentral bench crowd``: many peers in one process join one run through a few entries.

    entries  ── one run of three ──┬── … ── 7 ── 14 ── … ── all are members of one view ── rest
    others   listen                └ start: dial all entries

Every peer is a whole one but for a trainer: its own identity, home, endpoint and sockets, links
with TLS and admission, votes on disk. They share one event loop, so that one interpreter and the
machine's cores carry all ends of all links. Nothing is trained: a small state is held.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import uvloop

from decentral import _native
from decentral.bench import machine
from decentral.bench.fleet import folder, percentiles
from decentral.errors import DecentralError
from decentral.peer.holding import Holding
from decentral.peer.home import Home
from decentral.peer.orders import MeshFailed, Order, StateArrived
from decentral.peer.protocol import Joined
from decentral.peer.runtime.addresses import reachable
from decentral.peer.runtime.card import MembershipCard
from decentral.peer.runtime.config import MeshConfig
from decentral.peer.runtime.events import EventLog
from decentral.peer.runtime.node import Node
from decentral.state import hash_state
from decentral.types import CommittedState, TensorSpec
from decentral.version import PROTOCOL_VERSIONS

LIMIT_S = 20.0
PATIENCE_S = 120.0
LOOK_S = 0.02
HOST = "127.0.0.1"
VALUES = 1024
FILES_PER_PEER = 80
"""Both ends of its links, its logs, its endpoint's descriptors."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--peers", type=int, default=200)
    parser.add_argument("--entries", type=int, default=3, help="members that join words name")
    parser.add_argument(
        "--full-mesh-up-to", type=int, default=MeshConfig().full_mesh_up_to, metavar="N"
    )
    parser.add_argument("--rest-s", type=float, default=5.0, help="watch them so long afterwards")
    parser.add_argument("--limit-s", type=float, default=LIMIT_S)
    parser.add_argument("--keep", type=Path, help="keep the peers' homes in this folder")


class CrowdPeer:
    """A node that holds the run's only state, and notes what happens to it."""

    def __init__(self, home: Path, config: MeshConfig, loop: asyncio.AbstractEventLoop) -> None:
        self.config, self._loop = config, loop
        self.happened: Counter[str] = Counter()
        self.error: DecentralError | None = None
        self.joined_at = 0.0
        self._home = Home(home)
        identity = self._home.identity()
        self._card = MembershipCard(
            self._home, identity, config.name, join=config.join, credential=None, open_run=False
        )
        self.endpoint = _native.Endpoint(identity.seed, versions=list(PROTOCOL_VERSIONS))
        port = self.endpoint.listen(HOST, 0)
        self._card.addresses = tuple(reachable(HOST, port))
        events = EventLog(self._home, self._note, lambda topic, record: None)
        self.node = Node(
            config, self._home, identity, self.endpoint, self._card, events, loop, port
        )

    def join_word(self) -> str:
        return self._card.join_word()

    def start(self, state: CommittedState, schema: Sequence[TensorSpec]) -> None:
        founds = not self.config.join
        self.node.start(
            holdings={"": Holding(schema=schema, initial=state if founds else None)},
            core_options={"fingerprint": bytes(32)},
            on_order=self._ordered,
        )

    def _note(self, event: Mapping[str, Any]) -> None:
        detail = event.get("state") or event.get("kind") or ""
        self.happened[f"{event['event']} {detail}".strip()] += 1

    def _ordered(self, order: Order) -> None:
        match order:
            case StateArrived(state):
                self._loop.call_soon(self.node.hold, "", state)
            case Joined():
                self.joined_at = self.joined_at or time.monotonic()
            case MeshFailed(error):
                self.error = error

    @property
    def standing(self) -> tuple[str, int, int]:
        """Lineage, epoch and number of members; none of it before it is one."""
        view = self.node.view
        inside = view is not None and self.node.me in view.members and self.node.joined
        return (view.lineage, view.epoch, len(view.members)) if view and inside else ("", 0, 0)

    def close(self) -> None:
        self.node.close()
        self.endpoint.close()
        self._home.close()


def measure(args: argparse.Namespace) -> dict[str, Any]:
    _allow_files(args.peers * FILES_PER_PEER)
    with folder(args.keep) as home, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_measure(args, home))


async def _measure(args: argparse.Namespace, home: Path) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    tensors = {"param/x": np.zeros(VALUES, np.float32)}
    root, leaves = hash_state(tensors)
    state = CommittedState(round=0, tensors=tensors, root=root, leaves=leaves)
    schema = (TensorSpec(name="param/x", dtype="float32", shape=(VALUES,)),)
    peers: list[CrowdPeer] = []

    def opened(join: tuple[str, ...]) -> CrowdPeer:
        name = f"peer-{len(peers) + 1}"
        config = MeshConfig(
            name=name,
            listen=f"{HOST}:0",
            join=join,
            join_timeout_s=PATIENCE_S,
            full_mesh_up_to=args.full_mesh_up_to,
        )
        peers.append(CrowdPeer(home / name, config, loop))
        return peers[-1]

    try:
        opened(()).start(state, schema)
        while len(peers) < args.entries:
            opened((peers[0].join_word(),)).start(state, schema)
        await _all_in(peers, PATIENCE_S)
        entries, words = list(peers), tuple(peer.join_word() for peer in peers)
        views_before = entries[0].standing[1]
        opening = time.monotonic()
        newcomers = [opened(words) for _ in range(args.peers - args.entries)]
        process = psutil.Process()
        started, cpu_s = time.monotonic(), _cpu_s(process)
        for peer in newcomers:
            peer.start(state, schema)
        whole = await _all_in(peers, PATIENCE_S)
        joined_s, joining_cpu_s = time.monotonic() - started, _cpu_s(process) - cpu_s
        report = {
            "peers": args.peers,
            "entries": args.entries,
            "opened_s": round(started - opening, 2),
            "all_in_s": round(joined_s, 2) if whole else None,
            "joined_s": percentiles([p.joined_at - started for p in newcomers if p.joined_at]),
            "views": entries[0].standing[1] - views_before,
            "cpu_s": round(joining_cpu_s, 2),
            **_links(peers),
            "rss_mib": round(process.memory_info().rss / 2**20, 1),
        }
        before, rest_cpu_s, rested_at = _events(peers), _cpu_s(process), time.monotonic()
        standing = peers[0].standing
        await asyncio.sleep(args.rest_s)
        report["rest_cores"] = round(
            (_cpu_s(process) - rest_cpu_s) / (time.monotonic() - rested_at), 3
        )
        stays = {peer.standing for peer in peers} == {standing}
        report["rest_events"] = dict(_events(peers) - before)
        report["one_view"] = whole and stays
        report["events"] = dict(before)
    finally:
        for peer in peers:
            peer.close()
    errors = [f"{peer.config.name}: {peer.error.says}" for peer in peers if peer.error]
    return {
        "bench": "crowd",
        "held": whole and stays and joined_s <= args.limit_s and not errors,
        "machine": machine.about(),
        "results": [report],
        "notes": errors[:20],
    }


async def _all_in(peers: Sequence[CrowdPeer], timeout_s: float) -> bool:
    """Wait until all are members of one view, of them all."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        standings = {peer.standing for peer in peers}
        if len(standings) == 1 and next(iter(standings))[2] == len(peers):
            return True
        await asyncio.sleep(LOOK_S)
    return False


def _links(peers: Sequence[CrowdPeer]) -> dict[str, Any]:
    """How many there are, of whom, and what they have carried since they came up."""
    counts = [len(peer.node.links.all()) for peer in peers]
    stats = [peer.endpoint.stats(link.id) for peer in peers for link in peer.node.links.all()]
    return {
        "links": sum(counts) // 2,
        "links_per_peer": {"median": statistics.median(counts), "max": max(counts)},
        "control_mib": round(sum(one.control_bytes_sent for one in stats) / 2**20, 2),
    }


def _events(peers: Sequence[CrowdPeer]) -> Counter[str]:
    return sum((peer.happened for peer in peers), Counter())


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _allow_files(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count and (hard == resource.RLIM_INFINITY or hard > soft):
        most = count if hard == resource.RLIM_INFINITY else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
