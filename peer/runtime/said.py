"""Failpoints of the log: a peer dies, stalls or loses a link just before it says something."""

from __future__ import annotations

from decentral import failpoints
from decentral.peer.runtime.links import LinkTable
from decentral.types import PeerId

POINTS = {b"hi": "hello", b"en": "enter", b"a1": "propose", b"c": "commit-tell"}
"""By the code of the message (`decentral.peer.messages`)."""


def may_be_said(links: LinkTable, peer: PeerId, payload: bytes) -> bool:
    """False: the link broke before this could be sent."""
    if not failpoints.some_armed():
        return True
    length = payload[1] & 0x1F  # [code, field, …] in msgpack: a list, then a short string
    point = POINTS.get(payload[2 : 2 + length])
    says = failpoints.failing(point) if point is not None else None
    if says is not None:
        links.close(peer, says)
    return says is None
