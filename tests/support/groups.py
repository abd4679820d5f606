"""Groups over real endpoints in one process: a full mesh on loopback."""

from __future__ import annotations

import select
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from decentral import _native
from decentral.collectives import Group, Network
from decentral.types import View, peer_id


@contextmanager
def endpoints(members: int, *, encrypt: bool = True, **options: Any) -> Iterator[list[Any]]:
    """`members` endpoints that know each other. An option that is a list holds one value per
    member."""
    with ExitStack() as stack:
        endpoints = []
        for number in range(members):
            own = {
                name: value[number] if isinstance(value, list) else value
                for name, value in options.items()
            }
            endpoint = _native.Endpoint(
                bytes([number + 1]) * 32, encrypt_bulk=encrypt, **{"silence_limit_ms": 2000, **own}
            )
            stack.callback(endpoint.close)
            endpoints.append(endpoint)
        for number, endpoint in enumerate(endpoints):
            port = endpoint.listen("127.0.0.1", 0)
            for earlier in endpoints[:number]:
                earlier.dial("127.0.0.1", port, timeout_ms=20000)
        for endpoint in endpoints:
            links = 0
            deadline_s = time.monotonic() + 40
            while links < members - 1:
                assert time.monotonic() < deadline_s
                select.select([endpoint.event_fd], [], [], 1)
                for event in endpoint.take_events():
                    assert event.type == "link-up", event.error
                    endpoint.admit(event.link)
                    links += 1
        yield endpoints


def group_of(endpoints: Sequence[Any], rank: int, *, network: Network | None = None) -> Group:
    """The group of these endpoints, as member `rank` has it."""
    members = tuple(peer_id(endpoint.id) for endpoint in endpoints)
    view = View(lineage="00", epoch=1, members=members)
    return Group(endpoints[rank], view, members[rank], network=network)


@contextmanager
def mesh(members: int, **options: Any) -> Iterator[list[Group]]:
    """`endpoints` as groups in rank order. `group.close_endpoint` kills a peer."""
    with endpoints(members, **options) as ends:
        groups = [group_of(ends, rank) for rank in range(members)]
        for group, endpoint in zip(groups, ends, strict=True):
            group.close_endpoint = endpoint.close  # type: ignore[attr-defined]
        yield groups


def sources(members: int, count: int) -> list[Any]:
    """One array of standard normal fp32 per member, always the same."""
    return [
        np.random.default_rng(rank).standard_normal(count, np.float32) for rank in range(members)
    ]
