"""The ways to reach a peer, through the bindings: each ends in a link that both ends describe."""

from __future__ import annotations

import select
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from decentral import _native
from decentral.errors import ConfigError

TOKEN = bytes(range(32))


class Node:
    """An endpoint that listens, and its events."""

    def __init__(self, seed: int, **how: Any) -> None:
        self.endpoint = _native.Endpoint(bytes([seed]) * 32, **how)
        self.port = self.endpoint.listen("127.0.0.1", 0)
        self._events: list[Any] = []

    def wait(self, kind: str, timeout_s: float = 10.0) -> Any:
        deadline = time.monotonic() + timeout_s
        while True:
            self._events += self.endpoint.take_events()
            for event in self._events:
                if event.type == kind:
                    self._events.remove(event)
                    return event
            left_s = deadline - time.monotonic()
            assert left_s > 0, f"no {kind}: {[(e.type, e.error) for e in self._events]}"
            select.select([self.endpoint.event_fd], [], [], left_s)

    def dial(self, other: Node, port: int, **how: Any) -> int:
        number: int = self.endpoint.dial("127.0.0.1", port, expected=other.endpoint.id, **how)
        return number


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    three = [Node(seed) for seed in (1, 2, 3)]
    yield three
    for node in three:
        node.endpoint.close()


def linked(a: Node, b: Node) -> tuple[Any, Any]:
    """Both ends' events, admitted; a blob has gone over the link."""
    up_a, up_b = a.wait("link-up"), b.wait("link-up")
    assert up_a.peer == b.endpoint.id
    assert up_b.peer == a.endpoint.id
    assert up_a.inbound != up_b.inbound
    assert up_a.carrier == up_b.carrier == a.endpoint.stats(up_a.link).carrier
    a.endpoint.admit(up_a.link)
    b.endpoint.admit(up_b.link)
    sent = np.random.default_rng(0).integers(0, 256, 3_000_000, np.uint8)
    came = np.zeros_like(sent)
    b.endpoint.post_blob(up_b.link, 9, came)
    a.endpoint.send_blob(up_a.link, 9, sent)
    b.wait("blob")
    assert (sent == came).all()
    return up_a, up_b


def test_a_carrier_on_an_ordinary_dial(nodes: list[Node]) -> None:
    a, b, _ = nodes
    number = a.dial(b, b.port, carrier=True)
    up_a, up_b = linked(a, b)
    assert (up_a.dial, up_a.carrier, up_b.inbound) == (number, True, True)


def test_a_simultaneous_open_by_id(nodes: list[Node]) -> None:
    a, b, _ = nodes
    a.dial(b, b.port, local_port=a.port, role="by-id", carrier=True)
    b.dial(a, a.port, local_port=b.port, role="by-id", carrier=True)
    up_a, _ = linked(a, b)
    assert up_a.inbound == (a.endpoint.id > b.endpoint.id)


@pytest.mark.parametrize("server", [0, 1])
def test_a_relayed_link_with_either_end_as_server(nodes: list[Node], server: int) -> None:
    a, b, relay = nodes
    relay.endpoint.offer_relay(TOKEN, ttl_ms=5000)
    for side, (one, other) in enumerate(((a, b), (b, a))):
        one.dial(
            other,
            relay.port,
            role="server" if side == server else "client",
            carrier=True,
            relay_token=TOKEN,
            relay_side=side,
        )
    up_a, _ = linked(a, b)
    assert up_a.inbound == (server == 0)
    (session,) = relay.endpoint.relay_stats()
    assert session.spliced
    assert session.token == TOKEN[:8]
    assert min(session.bytes) > 0
    assert max(session.bytes) > 3_000_000
    relay.endpoint.set_relay_limit(1 << 20)
    relay.endpoint.end_relay(TOKEN)
    ended = relay.wait("relay-ended")
    assert ended.exporter == TOKEN
    assert ended.seq > 3_000_000
    assert ended.error[0] == "aborted"
    assert a.wait("link-down").error[0] == b.wait("link-down").error[0] == "closed"
    assert relay.endpoint.relay_stats() == []


def test_an_offer_that_nobody_takes_ends(nodes: list[Node]) -> None:
    *_, relay = nodes
    relay.endpoint.offer_relay(TOKEN, max_bytes_s=1000, ttl_ms=50)
    assert relay.wait("relay-ended").error[0] == "unreachable"
    with pytest.raises(ConfigError, match="32 bytes"):
        relay.endpoint.offer_relay(b"short")


def test_many_sockets_against_a_spray(nodes: list[Node]) -> None:
    a, b, _ = nodes
    a.dial(b, 1, role="by-id", carrier=True, local_port=a.port, spray=2)
    b.dial(a, a.port, role="by-id", carrier=True, sockets=16)
    linked(a, b)


def test_what_an_observer_sees(nodes: list[Node]) -> None:
    a, b, _ = nodes
    for _ in range(2):  # the port is free again at once
        number = a.endpoint.reflexive("127.0.0.1", b.port, local_port=a.port)
        told = a.wait("reflexive")
        assert (told.dial, told.address) == (number, f"127.0.0.1:{a.port}")
    number = a.endpoint.knock("127.0.0.1", b.port)
    assert a.wait("knocked").dial == number
    number = a.endpoint.knock("127.0.0.1", 1)
    failed = a.wait("dial-failed")
    assert (failed.dial, failed.error[0]) == (number, "unreachable")


def test_a_role_has_one_of_three_names(nodes: list[Node]) -> None:
    a, b, _ = nodes
    with pytest.raises(ValueError, match="by-id"):
        a.dial(b, b.port, role="referee")
