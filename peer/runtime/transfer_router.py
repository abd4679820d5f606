"""State transfer of several tags over the same links: each message and chunk to the tag it is of.

x/want "a" ──▶ Transfers "a"       x/page "b" ──▶ Transfers "b"       blob key ──▶ who posted it
x/want "c" ──▶ "not held": this peer has no part in c, and reads nothing of it
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future

from decentral import _native
from decentral.errors import ConfigError, DecentralError, ProtocolError
from decentral.peer.donor import ASKS, not_held
from decentral.peer.manifest import META
from decentral.peer.orders import StateArrived, UpdateArrived
from decentral.peer.runtime.fetching import BULK_PRIORITY
from decentral.peer.runtime.links import LinkTable
from decentral.peer.runtime.reads import Arrays
from decentral.peer.runtime.transfers import Transfers
from decentral.peer.transfer import KeyMaker, unpack_message
from decentral.types import PeerId, TensorSpec


class TransferRouter:
    """One `Transfers` per tag whose states come or go here. Lives on the loop's thread."""

    def __init__(
        self,
        endpoint: _native.Endpoint,
        links: LinkTable,
        schemas: Mapping[str, Sequence[TensorSpec]],
        loop: asyncio.AbstractEventLoop,
        on_order: Callable[[StateArrived | UpdateArrived], None],
        on_failed: Callable[[DecentralError], None],
        members: Callable[[], Iterable[PeerId]] = tuple,
        keys: KeyMaker | None = None,
    ) -> None:
        """`schemas`: of every tag that this peer holds or may read; `members()`: who is linked and
        may hold a state; `keys`: where others draw blob keys in this process, too."""
        self._links, self._schemas = links, dict(schemas)
        keys = keys or KeyMaker(secrets.randbits(32))
        self._make: Callable[[str], Transfers] = lambda tag: Transfers(
            endpoint, links, self._schemas[tag], loop, on_order, on_failed, tag, keys, members
        )
        self._tags: dict[str, Transfers] = {}

    def __getitem__(self, tag: str) -> Transfers:
        """Made when it is first needed: a run may have many more tags than one peer deals with."""
        if tag not in self._tags:
            self._tags[tag] = self._make(tag)
        return self._tags[tag]

    def wants_updates(self, tag: str) -> bool:
        """On any thread."""
        transfers = self._tags.get(tag)
        return transfers is not None and transfers.wants_updates

    def read(
        self,
        tag: str,
        round: int,
        root: bytes,
        prefix: str,
        timeout_s: float,
        future: Future[Arrays],
    ) -> None:
        """See `Transfers.read`. A ConfigError in the future: a tag or prefix that there is not."""
        schema = self._schemas.get(tag)
        if schema is None:
            says = f"cannot read tag {tag!r}: its schema was not given at the start"
        elif not any(name.startswith(prefix) for name in (META, *(spec.name for spec in schema))):
            says = f"tag {tag!r} has no tensor whose name begins with {prefix!r}"
        else:
            self[tag].read(round, root, prefix, timeout_s, future)
            return
        future.set_exception(ConfigError(says, phase="read"))

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

    def blob(self, key: int, error: str | None) -> bool:
        """False: it was not ours."""
        return any(transfers.blob(key, error) for transfers in self._tags.values())

    def blob_sent(self, key: int) -> bool:
        """False: it was not ours."""
        return any(transfers.blob_sent(key) for transfers in self._tags.values())

    def close(self) -> None:
        for transfers in self._tags.values():
            transfers.close()
