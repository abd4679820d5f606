"""Reading in a committed state: some of its tensors, for whoever asks, not to be held afterwards.

    read ─▶ here already ──────────────────────────────────────────────────▶ the future
        └─▶ fetch from all linked members that hold it ─▶ every byte verified ─┘
                ▲        │ nobody has it (yet, or any more)
                └────────┘ asked again, ever less often, until the time is over

A round is often read as soon as it is committed, when some holders have yet to adopt it. So who
says that it has nothing is asked again, and so is whoever is met later; who lied is not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from decentral.errors import ConfigError, DecentralError, FingerprintError, StateError
from decentral.peer.credential import ROLES
from decentral.peer.fetcher import Done
from decentral.peer.runtime.fetching import Fetch, Fetching
from decentral.types import CommittedState, PeerId

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from decentral.peer.runtime.node import Node

    Arrays: TypeAlias = dict[str, NDArray[Any]]
else:
    Arrays: TypeAlias = dict

FIRST_LOOK_S, MOST_LOOK_S = 0.02, 0.5
"""How soon those that had nothing are asked again: first, and at last."""
_PHASE = "state transfer"


@dataclass(slots=True, eq=False)
class Read:
    """One wish. Its future is settled on the loop's thread."""

    round: int
    root: bytes
    prefix: str
    tag: str
    future: Future[Arrays]
    deadline: float = 0.0
    look_s: float = FIRST_LOOK_S
    fetch: Fetch | None = None
    liars: set[PeerId] = field(default_factory=set)
    why: str = "no member that may hold it is linked"
    """Why nothing has come so far."""

    def came(self, fetch: Fetch, done: Done) -> None:
        self.give(fetch.arrays)

    def failed(self, fetch: Fetch, error: DecentralError) -> None:
        self.fetch, self.why = None, error.says
        if isinstance(error, FingerprintError):
            self.fail(error)

    def give(self, tensors: Arrays) -> None:
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            self.future.set_result(tensors)

    def fail(self, error: DecentralError) -> None:
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


class Reads:
    """Of one tag. Lives on the loop's thread."""

    def __init__(
        self,
        fetching: Fetching,
        begin: Callable[[Read, tuple[PeerId, ...]], Fetch | CommittedState],
        members: Callable[[], Iterable[PeerId]],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """`begin(read, holders)`: a fetch of it, or the state itself where that is here."""
        self._fetching, self._begin, self._members, self._loop = fetching, begin, members, loop
        self._reads: list[Read] = []

    @property
    def idle(self) -> bool:
        return not self._reads

    def read(self, read: Read, timeout_s: float) -> None:
        read.deadline = self._loop.time() + timeout_s
        self._reads.append(read)
        read.future.add_done_callback(lambda _: self._loop.call_soon_threadsafe(self._over, read))
        self._look(read)

    def look(self) -> None:
        """Somebody was linked who may have what is wanted."""
        for read in list(self._reads):
            self._try(read)

    def close(self) -> None:
        for read in list(self._reads):
            read.fail(StateError("this peer has left the run", phase=_PHASE))

    def _look(self, read: Read) -> None:
        if read.future.done():
            return
        left = read.deadline - self._loop.time()
        if left <= 0:
            where = f" of {read.tag}" if read.tag else ""
            says = f"the state of round {read.round}{where} was not to be had in time: {read.why}"
            read.fail(StateError(says, phase=_PHASE))
            return
        self._try(read)
        self._loop.call_later(min(read.look_s, left), self._look, read)
        read.look_s = min(2 * read.look_s, MOST_LOOK_S)

    def _try(self, read: Read) -> None:
        """Begin, or ask those again who had nothing, and those who are new."""
        if read.future.done():
            return
        members = [peer for peer in sorted(self._members()) if peer not in read.liars]
        if read.fetch is not None:
            known = set(read.fetch.holders) - set(read.fetch.fetcher.without)
            for peer in members:
                if peer not in known and read.fetch is not None:
                    self._fetching.add_holder(read.fetch, peer)
            return
        begun = self._begin(read, tuple(members))
        if isinstance(begun, CommittedState):
            here = begun.tensors.items()
            read.give({name: one for name, one in here if name.startswith(read.prefix)})
        elif members:
            read.fetch = self._fetching.begin(begun)

    def _over(self, read: Read) -> None:
        """It came, failed or was cancelled: nothing more is wanted of it."""
        if read in self._reads:
            self._reads.remove(read)
        fetch, read.fetch = read.fetch, None
        if fetch is not None:
            self._fetching.abandon(fetch)


def read(
    node: Node,
    tag: str,
    round: int,
    root: bytes,
    prefix: str,
    timeout_s: float,
    future: Future[Arrays],
) -> None:
    """See `Mesh.read`; on the loop's thread."""
    if node.transfers is None or node.closed:
        says = "nothing can be read before this peer has started, or after it has closed"
        future.set_exception(ConfigError(says, phase="read"))
        return
    node.transfers.read(tag, round, root, prefix, timeout_s, future)


def who_trains(node: Node) -> list[PeerId]:
    """Of those that are linked: others hold no states."""
    linked = (link.peer for link in node.links.all())
    return [peer for peer in linked if node.card.role_of(peer) == ROLES[0]]
