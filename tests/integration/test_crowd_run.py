"""A run of more peers than are all linked to all: links to a few, and to others when data goes to
them."""

from __future__ import annotations

import json
import time
from itertools import combinations
from pathlib import Path

import pytest

from decentral.bench.fleet import Fleet
from decentral.bench.sleep_peer import PROGRAM
from decentral.cli.fork_server import ForkServer
from decentral.cli.processes import PeerProcess
from decentral.collectives.agreement import assumed
from decentral.collectives.codecs import codec_named
from decentral.collectives.cost import choose
from decentral.collectives.group import SPARSE
from decentral.collectives.schedules import SCHEDULES
from decentral.peer.overlay import Neighbourhood

PEERS = 12
FULL_MESH_UP_TO = 4
STATE_KIB = 64
Pairs = set[frozenset[str]]


def linked(peers: list[PeerProcess]) -> Pairs:
    """Whom each says it is linked to, if both say so."""
    told: dict[str, set[str]] = {}
    for peer in peers:
        up = told.setdefault(peer.peer_id, set())
        for event in peer.events("link"):
            (up.add if event["state"] == "up" else up.discard)(event["peer"])
    return {frozenset(two) for two in combinations(told, 2) if two[0] in told[two[1]]}


def members(peer: PeerProcess) -> tuple[str, ...]:
    """Of the newest view that it knows, in rank order."""
    lines = (peer.home / "events.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return tuple(next(e["peers"] for e in reversed(records) if e["event"] == "members"))


def wanted(view: tuple[str, ...]) -> Pairs:
    pairs: Pairs = set()
    for me in view:
        around = Neighbourhood(me, FULL_MESH_UP_TO)
        around.look(view, set())
        pairs |= {frozenset((me, other)) for other in around.links}
    return pairs


def used(view: tuple[str, ...]) -> Pairs:
    """Between whom an all-reduce of the run's state moves data."""
    network, count = assumed(len(view)), STATE_KIB * 256
    schedule = SCHEDULES[choose(network, count, codec_named("fp32"), allowed=SPARSE).schedule]
    return {
        frozenset((view[rank], view[other]))
        for rank in range(len(view))
        for other in schedule.plan(network, rank, count).partners()
    }


@pytest.mark.timeout(100)
def test_a_crowd_trains_over_few_links(tmp_path: Path) -> None:
    how = ["--step-s", "0.1", "--state-kib", str(STATE_KIB)]
    how += ["--full-mesh-up-to", str(FULL_MESH_UP_TO)]
    with ForkServer(PROGRAM[0]) as server, Fleet(tmp_path, *how, launch=server.launch) as fleet:
        peers = fleet.found(PEERS)
        view = members(peers[0])
        assert len(view) == PEERS
        links = linked(peers)
        assert wanted(view) <= links, "a member lacks links that it wants"
        assert used(view) <= links, "rounds were committed over links that are not there"
        assert used(view) - wanted(view), "this view does not show that links come on demand"
        assert len(links) < PEERS * (PEERS - 1) // 2, "this is a full mesh"

        lost = peers.pop(PEERS // 2)
        lost.kill()
        fleet.complete(peers, time.monotonic())
        word = peers[3].invite()
        peers.append(fleet.start(PEERS // 2, "--join", word))
        fleet.complete(peers, time.monotonic())
        assert used(members(peers[0])) <= linked(peers)
        for peer in peers:
            peer.wait_round(peer.round + 2, timeout_s=30)
        assert not fleet.violations()
