"""Groups over real endpoints in one process: a full mesh on loopback."""

from __future__ import annotations

import select
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from decentral import _native
from decentral.collectives import Group
from decentral.types import View, peer_id


@contextmanager
def mesh(members: int, *, encrypt: bool = True, **options: Any) -> Iterator[list[Group]]:
    """`members` endpoints that know each other, as groups in rank order. `group.close_endpoint`
    kills a peer."""
    with ExitStack() as stack:
        endpoints = []
        for number in range(members):
            endpoint = _native.Endpoint(
                bytes([number + 1]) * 32, encrypt_bulk=encrypt,
                **{"silence_limit_ms": 2000, **options},
            )  # fmt: skip
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
        view = View(lineage="00", epoch=1, members=tuple(peer_id(e.id) for e in endpoints))
        groups = [Group(endpoint, view, peer_id(endpoint.id)) for endpoint in endpoints]
        for group, endpoint in zip(groups, endpoints, strict=True):
            group.close_endpoint = endpoint.close  # type: ignore[attr-defined]
        yield groups


def sources(members: int, count: int) -> list[Any]:
    """One array of standard normal fp32 per member, always the same."""
    return [
        np.random.default_rng(rank).standard_normal(count, np.float32) for rank in range(members)
    ]
