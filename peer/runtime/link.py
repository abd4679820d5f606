"""An admitted link, as the runtime sees it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from decentral.peer.reach.ways import RANK, Way
from decentral.types import PeerId


@dataclass(slots=True)
class Link:
    id: int
    peer: PeerId
    name: str
    inbound: bool
    """The other end is the TLS client."""
    addresses: tuple[str, ...]
    """Where the other end says that it can be dialled."""
    way: Way
    """How it came about."""
    remote: str
    """The address at the other end of the connection, ``IP:PORT``."""
    since: float = field(default_factory=time.monotonic)
    """When it was admitted."""

    @property
    def dialled(self) -> str:
        """Where the other end answered when we dialled it; "": it was not so."""
        return "" if self.inbound or self.rank else self.remote

    @property
    def rank(self) -> int:
        return RANK[self.way.kind]
