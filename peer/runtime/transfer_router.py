"""State transfer of several tags over the same links: each message and chunk to the tag it is of.

x/want "a" ──▶ Transfers "a"       x/page "b" ──▶ Transfers "b"       blob key ──▶ who posted it
x/want "c" ──▶ "not held": this peer has no part in c
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping, Sequence

from decentral import _native
from decentral.errors import DecentralError, ProtocolError
from decentral.peer.donor import ASKS, not_held
from decentral.peer.orders import StateArrived, UpdateArrived
from decentral.peer.runtime.links import LinkTable
from decentral.peer.runtime.transfers import BULK_PRIORITY, Transfers
from decentral.peer.transfer import KeyMaker, unpack_message
from decentral.types import PeerId, TensorSpec


class TransferRouter:
    """One `Transfers` per tag that this peer holds. Lives on the loop's thread."""

    def __init__(
        self,
        endpoint: _native.Endpoint,
        links: LinkTable,
        schemas: Mapping[str, Sequence[TensorSpec]],
        loop: asyncio.AbstractEventLoop,
        on_order: Callable[[StateArrived | UpdateArrived], None],
        on_failed: Callable[[DecentralError], None],
    ) -> None:
        self._links = links
        keys = KeyMaker(secrets.randbits(32))
        self._tags = {
            tag: Transfers(endpoint, links, schema, loop, on_order, on_failed, tag, keys)
            for tag, schema in schemas.items()
        }

    def __getitem__(self, tag: str) -> Transfers:
        return self._tags[tag]

    def message(self, peer: PeerId, payload: bytes) -> None:
        try:
            message = unpack_message(payload)
        except ProtocolError as error:
            self._links.refuse(peer, error.says)
            return
        transfers = self._tags.get(message.tag)
        if transfers is not None:
            transfers.take(peer, message, payload)
        elif isinstance(message, ASKS):
            self._links.send(peer, not_held(message), BULK_PRIORITY)

    def holder_up(self, peer: PeerId) -> None:
        for transfers in self._tags.values():
            transfers.holder_up(peer)

    def peer_down(self, peer: PeerId) -> None:
        for transfers in self._tags.values():
            transfers.peer_down(peer)

    def blob(self, key: int, error: str | None) -> None:
        any(transfers.blob(key, error) for transfers in self._tags.values())

    def blob_sent(self, key: int) -> None:
        any(transfers.blob_sent(key) for transfers in self._tags.values())

    def close(self) -> None:
        for transfers in self._tags.values():
            transfers.close()
