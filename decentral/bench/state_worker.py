"""One member of a state transfer: ``python -m decentral.bench.state_worker``, told what to do by
its parent (workers.py).

    parent's words ─▶ main thread: connect, hold, fetch, reduce
    network's events ─▶ loop thread: the product's own `Transfers` over the product's own links

Members hold the state and reduce in a group; the joiner, the last rank, fetches and is in no group.
"""

from __future__ import annotations

import argparse
import threading
import time
from typing import Any, cast

import numpy as np

from decentral import _native
from decentral.bench.member import CONNECT_TIMEOUT_S, Member
from decentral.bench.workers import cpu_seconds, die_with_parent, hear, say, sleep_until
from decentral.collectives import Group
from decentral.errors import DecentralError, UnreachableError
from decentral.peer.orders import StateArrived, UpdateArrived
from decentral.peer.protocol import FetchState
from decentral.peer.runtime.link import Link
from decentral.peer.runtime.links import CAME_IN, LinkTable
from decentral.peer.runtime.loop import LoopThread
from decentral.peer.runtime.transfers import Transfers
from decentral.state import hash_state
from decentral.types import CommittedState, PeerId, TensorSpec, View, peer_id, raw_id

TENSOR_BYTES = 64 << 20
ROUND = 7


class Links:
    """What `Transfers` needs of a link table, for peers that trust each other."""

    def __init__(self, endpoint: _native.Endpoint) -> None:
        self._endpoint = endpoint
        self.up: dict[PeerId, Link] = {}

    def get(self, peer: PeerId) -> Link | None:
        return self.up.get(peer)

    def send(self, peer: PeerId, payload: bytes, priority: int) -> None:
        if peer in self.up:
            self._endpoint.send(self.up[peer].id, payload, priority)

    def refuse(self, peer: PeerId, says: str) -> None:
        self._endpoint.refuse(self.up[peer].id, says)


class StateMember(Member):
    """An endpoint, its links, and state transfer over them."""

    def __init__(self, host: str, size_bytes: int, upload_mbit: float) -> None:
        super().__init__(
            host, encrypt=True, streams=0, congestion="", silence_limit_s=5.0,
            max_upload_bytes_s=round(upload_mbit * 125_000),
        )  # fmt: skip
        counts = [TENSOR_BYTES] * (size_bytes // TENSOR_BYTES)
        counts += [size_bytes % TENSOR_BYTES] if size_bytes % TENSOR_BYTES else []
        self.schema = tuple(
            TensorSpec(name=f"param/{n:04}", dtype="uint8", shape=(count,))
            for n, count in enumerate(counts)
        )
        self.state: CommittedState | None = None
        self.faults: list[tuple[float, PeerId | None, str]] = []
        self.arrived = threading.Event()
        self.arrived_at = 0.0
        self.links = Links(self.endpoint)
        self.loop = LoopThread("bench state")
        self.transfers = self.loop.wait(self._make())
        self.loop.call(self.loop.loop.add_reader, self.endpoint.event_fd, self._events)

    def start_over(self) -> None:
        """Nothing was fetched, nobody is known to lie."""
        self.state = None
        self.arrived.clear()
        self.faults.clear()
        self.loop.call(self.transfers.close)
        self.transfers = self.loop.wait(self._make())

    async def _make(self) -> Transfers:
        links = cast(LinkTable, self.links)
        return Transfers(
            self.endpoint, links, self.schema, self.loop.loop, self._done, self._failed
        )

    def _done(self, order: StateArrived | UpdateArrived) -> None:
        assert isinstance(order, StateArrived), "nobody commits rounds here"
        self.state, self.arrived_at = order.state, time.monotonic()
        self.arrived.set()

    def _failed(self, error: DecentralError) -> None:
        self.faults.append((time.monotonic(), error.peer, error.says))

    def _events(self) -> None:
        for event in self.endpoint.take_events():
            peer = peer_id(event.peer) if any(event.peer) else ""
            match event.type:
                case "link-up":
                    self.endpoint.admit(event.link)
                    self.links.up[peer] = Link(
                        event.link, peer, "", event.inbound, (), CAME_IN, event.address
                    )
                    self.transfers.holder_up(peer)
                case "link-down" if peer in self.links.up:
                    del self.links.up[peer]
                    self.transfers.peer_down(peer)
                case "message":
                    self.transfers.message(peer, event.data)
                case "blob":
                    self.transfers.blob(event.seq, None)
                case "blob-failed":
                    self.transfers.blob(event.seq, "it failed")
                case "blob-sent":
                    self.transfers.blob_sent(event.seq)


class Duties:
    """What a parent can ask. Every answer is one dict."""

    def __init__(self, rank: int, member: StateMember) -> None:
        self.rank, self.member = rank, member
        self.roster: list[str] = []
        self._group: Group | None = None
        self._source = self._result = np.empty(0, np.float32)

    def connect(self, *, roster: list[dict[str, Any]], dial: list[int]) -> dict[str, Any]:
        """Dial some; wait until all are linked. All but the last are a group."""
        member = self.member
        self.roster = [one["peer"] for one in roster]
        for rank in dial:
            one = roster[rank]
            member.endpoint.dial(one["host"], one["port"], expected=raw_id(one["peer"]))
        deadline_s = time.monotonic() + CONNECT_TIMEOUT_S
        while missing := set(self.roster) - set(member.links.up) - {member.me}:
            if time.monotonic() > deadline_s:
                raise UnreachableError("no link came up", peer=missing.pop(), phase="bench")
            time.sleep(0.01)
        if member.me != self.roster[-1] and len(roster) > 2:
            view = View(lineage="00" * 8, epoch=1, members=tuple(self.roster[:-1]))
            self._group = Group(member.endpoint, view, member.me)
        return {}

    def hold(self, *, corrupt: bool = False) -> dict[str, Any]:
        """Have the state to give away; `corrupt`: what is served is not what its hashes say."""
        rng = np.random.default_rng(1)
        tensors = {s.name: rng.integers(0, 256, s.shape, np.uint8) for s in self.member.schema}
        root, leaves = hash_state(tensors)
        if corrupt:
            for array in tensors.values():
                array[:: 1 << 18] ^= 1
        state = CommittedState(round=ROUND, tensors=tensors, root=root, leaves=leaves)
        self.member.loop.call(self.member.transfers.publish, state)
        return {"root": root.hex()}

    def fetch(self, *, root: str, holders: list[int], start_at: float) -> dict[str, Any]:
        """Fetch the state from those; how long it took, and who gave what."""
        member, endpoint = self.member, self.member.endpoint
        names = [self.roster[rank] for rank in holders]
        member.start_over()
        links = {peer: member.links.up[peer].id for peer in names}
        before = {peer: endpoint.stats(link).bulk_bytes_received for peer, link in links.items()}
        sleep_until(start_at)
        cpu, start_s = cpu_seconds(), time.monotonic()
        wanted = FetchState(ROUND, bytes.fromhex(root), tuple(names))
        member.loop.call(member.transfers.fetch, wanted, None)
        while not member.arrived.wait(0.05):
            for peer, link in links.items():  # a link that goes takes its figures with it
                if peer in member.links.up:
                    before.setdefault(f"last {peer}", 0)
                    before[f"last {peer}"] = endpoint.stats(link).bulk_bytes_received
        state = member.state
        assert state is not None
        for peer, link in links.items():
            if peer in member.links.up:
                before[f"last {peer}"] = endpoint.stats(link).bulk_bytes_received
        given = [before.get(f"last {peer}", before[peer]) - before[peer] for peer in names]
        return {
            "seconds": member.arrived_at - start_s,
            "cpu_seconds": cpu_seconds() - cpu,
            "given_bytes": given,
            "verified": hash_state(state.tensors)[0].hex() == root,
            "faults": [
                {
                    "after_s": round(at - start_s, 3),
                    "rank": self.roster.index(peer) if peer in self.roster else None,
                    "says": says,
                }
                for at, peer, says in member.faults
            ],
        }

    def prepare(self, *, count: int) -> dict[str, Any]:
        self._source = np.full(count, self.rank, np.float32)
        self._result = np.zeros_like(self._source)
        return {}

    def reduce(self, *, round: int, start_at: float) -> dict[str, Any]:
        """One all-reduce of the members' group."""
        assert self._group is not None
        sleep_until(start_at)
        start_s = time.monotonic()
        work = self._group.all_reduce(
            self._source, self._result, "fp32", round=round, attempt=1, tag=10
        )
        work.wait()
        return {"seconds": time.monotonic() - start_s}


def main() -> None:
    die_with_parent()
    parser = argparse.ArgumentParser()
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--peers", type=int, required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--size-bytes", type=int, required=True)
    parser.add_argument("--upload-mbit", type=float, default=0)
    args = parser.parse_args()
    member = StateMember(args.host, args.size_bytes, args.upload_mbit)
    duties = Duties(args.rank, member)
    say(address=member.address)
    while True:
        asked = hear()
        say(**getattr(duties, asked.pop("do"))(**asked))


if __name__ == "__main__":
    main()
