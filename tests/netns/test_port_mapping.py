"""Ports mapped by a real miniupnpd on a router between two hosts."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import Peers, same_bits
from router import Router, why_no_router

pytestmark = pytest.mark.netns

PORT = 4242
HELPER = Path(__file__).resolve().parent.parent / "support" / "map_port.py"


class Inside:
    """A process behind the router that listens on PORT and keeps it mapped."""

    def __init__(self, router: Router, *args: str) -> None:
        self.process = subprocess.Popen(
            [*router.inside.prefix, sys.executable, "-P", str(HELPER), str(PORT), *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def next(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found

    def end(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()


@pytest.fixture
def routers() -> Iterator[Any]:
    reason = why_no_router()
    if reason:
        pytest.skip(reason)
    made: list[Router] = []

    def make(**options: bool) -> Router:
        made.append(Router(**options))
        return made[-1]

    yield make
    for router in made:
        router.close()


@pytest.mark.parametrize("way", ["pcp", "nat-pmp", "upnp", "all"])
def test_a_mapped_port_lets_strangers_in_until_it_is_given_back(routers: Any, way: str) -> None:
    router = routers()
    assert router.hear(f"{router.wan_address}:{PORT}") == b"", "the router lets nobody in by itself"
    inside = Inside(router, *([] if way == "all" else [way]))
    mapped = inside.next()
    assert mapped["external"] == f"{router.wan_address}:{PORT}"
    assert mapped["how"] in (("pcp", "nat-pmp") if way == "all" else (way,))
    assert 0 < mapped["lifetime_s"] <= 86400 and not mapped["double_nat"]
    assert router.hear(mapped["external"]) == b"hello"
    inside.end()
    assert router.hear(mapped["external"]) == b"", "taken back"


def test_the_join_word_of_a_peer_behind_a_router_works_outside(routers: Any, peers: Peers) -> None:
    """And a peer that is stopped leaves no hole in the router."""
    router = routers()
    first, word = peers.first(prefix=router.inside.prefix, listen="0.0.0.0:0")
    mapped = first.wait_for("mapping", timeout_s=10)
    assert mapped["how"] in ("pcp", "nat-pmp") and word.startswith(mapped["address"])
    second = peers.start("peer-2", "--join", word, prefix=router.outside.prefix)
    event = second.wait_for("round", timeout_s=60, where=lambda e: e["participants"] == 2)
    same_bits([first, second], event["round"])
    assert not second.events("mapping"), "it has a public address, and listens on another"
    assert first.stop() == 0
    assert "removed" in router.log().splitlines()[-1]


def test_a_router_that_only_knows_upnp(routers: Any) -> None:
    inside = Inside(routers(natpmp=False))
    assert inside.next()["how"] == "upnp"
    inside.end()


def test_a_router_that_has_restarted_is_asked_again(routers: Any) -> None:
    router = routers()
    inside = Inside(router, "--renew-s", "0.3")
    mapped = inside.next()
    router.stop_daemon()
    assert router.hear(mapped["external"], timeout_s=0.3) == b""
    router.start_daemon()
    deadline = time.monotonic() + 15
    while router.hear(mapped["external"], timeout_s=0.3) != b"hello":
        assert time.monotonic() < deadline, "it was not mapped again"
    inside.end()


def test_a_router_behind_another_nat_says_so(routers: Any) -> None:
    """miniupnpd maps nothing then; routers that do are tested with bytes."""
    inside = Inside(routers(public=False))
    refused = inside.next()
    assert "external" not in refused and "behind another NAT" in refused["says"]
    inside.end()


def test_no_router_at_all(routers: Any) -> None:
    router = routers(natpmp=False, upnp=False)
    inside = Inside(router)
    refused = inside.next()
    assert "external" not in refused and refused["seconds"] < 8
    assert all(f"{way}: " in refused["says"] for way in ("pcp", "nat-pmp", "upnp"))
    inside.end()
