"""Getting a state: from all holders at once, each chunk verified before it counts. Sans-IO.

    start ─▶ Tell(x/pin) to all ─▶ Tell(x/want) to one ─▶ manifest verified ─▶ Allocate
          ─▶ AskChunk … from all holders, each as much as it carries (`holders.py`) ─▶ Done

A holder that dies or stalls loses its chunks to the others; one that sends
wrong bytes is named (`Blame`) and never asked again. Chunks that are here already do not travel.
Near the end whoever is done takes over what a slower one still owes. `only`: of the tensors those
whose names begin so; the manifest is checked as a whole all the same.
A chunk is asked of one holder at a time: `CancelChunk` always goes before it is asked elsewhere,
because two blobs must not write to the same memory.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from decentral.errors import (
    ConfigError,
    DecentralError,
    FingerprintError,
    ProtocolError,
    StateError,
)
from decentral.peer.donor import Tell
from decentral.peer.holders import Debt, Holders
from decentral.peer.manifest import (
    Manifest,
    check_schema,
    decode_manifest,
    max_manifest_bytes,
    specs_of,
)
from decentral.peer.merkle import CHUNK_BYTES, HASH_BYTES, chunk_bytes, chunk_count, tensor_bytes
from decentral.peer.transfer import (
    PAGE_BYTES,
    ChunkMissing,
    ChunkUnwanted,
    ChunkWanted,
    KeyMaker,
    ManifestMissing,
    ManifestPage,
    Pin,
    Read,
    Release,
    StateWanted,
    unpack_message,
)
from decentral.types import CommittedState, PeerId, TensorSpec, short

_PHASE = "state transfer"


@dataclass(frozen=True, slots=True)
class LetGo(Tell):
    """A holder need not keep the state: not to be said while another fetch from it goes on."""


@dataclass(frozen=True, slots=True)
class Allocate:
    """Make arrays for these tensors; start those in `keep` as copies of the held ones."""

    specs: tuple[TensorSpec, ...]
    keep: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AskChunk:
    """Post a buffer for blob `key` at [offset, offset + size) of a tensor, then send `message`.

    Answer with `chunk_done` and the leaf hash of what arrived, or with `chunk_failed`.
    """

    peer: PeerId
    key: int
    tensor: str
    index: int
    offset: int
    size: int
    message: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class CancelChunk:
    """Take the buffer of blob `key` back; nothing may write to it when this returns."""

    key: int


@dataclass(frozen=True, slots=True)
class Blame:
    """A holder sent something that cannot be right."""

    peer: PeerId
    says: str


@dataclass(frozen=True, slots=True)
class Done:
    """Every byte is here and verified against the root."""

    round: int
    root: bytes
    manifest: Manifest = field(repr=False)


@dataclass(frozen=True, slots=True)
class Failed:
    """It will not come. The fetcher is finished."""

    error: DecentralError


FetchAction: TypeAlias = Tell | LetGo | Allocate | AskChunk | CancelChunk | Blame | Done | Failed


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchConfig:
    """Patience and width."""

    max_window: int = 64
    """Chunks outstanding per holder at most: 64 MiB fill 1 Gbit/s over half a second."""
    stall_s: float = 10.0
    """A holder that owes something and sends nothing for so long loses its chunks, and rests."""
    give_up_s: float = 60.0
    """No progress from anybody for so long: failed."""

    def __post_init__(self) -> None:
        if self.max_window < 1 or self.stall_s <= 0 or self.give_up_s <= 0:
            raise ConfigError("a fetch needs a positive window and positive times")


class Fetcher:
    """Fetches one committed state. Every method returns actions to carry out in order."""

    def __init__(
        self,
        *,
        schema: Sequence[TensorSpec],
        round: int,
        root: bytes,
        holders: Iterable[PeerId],
        keys: KeyMaker,
        seed: int,
        held: CommittedState | None = None,
        config: FetchConfig | None = None,
        tag: str = "",
        only: str | None = None,
    ) -> None:
        """`schema` is this peer's model; `held` is state that may match in part (with leaves);
        `only`: how the names begin that are wanted (None: the whole state, and what follows it)."""
        self._config = config or FetchConfig()
        self._tag = tag
        self._only = only
        self._schema = tuple(schema)
        self._round = round
        self._root = root
        self._keys = keys
        self._held = held
        order = sorted(set(holders))
        random.Random(seed).shuffle(order)  # so that joiners do not all start with the same one
        self._holders = Holders(order, self._config.max_window, self._config.stall_s)
        self._pages: list[bytes] = []
        self._asked: PeerId | None = None  # whom the manifest is being asked of
        self._manifest: Manifest | None = None
        self._todo: deque[tuple[int, int]] = deque()
        self._progress_at = 0.0
        self._finished = False
        self.chunks_total = 0
        """Chunks that had to travel (known once the manifest is)."""
        self.chunks_done = 0
        self.bytes_fetched = 0

    @property
    def finished(self) -> bool:
        return self._finished

    @property
    def deserted(self) -> bool:
        """Nobody whom we are linked to has it. There is hope where somebody may come back."""
        return not self._finished and not self._holders.help_at_hand()

    @property
    def without(self) -> list[PeerId]:
        """Who says that it does not hold the state."""
        return [peer for peer in self._holders.peers() if self._holders[peer].missing]

    def abandon(self) -> list[FetchAction]:
        """Somebody else knows that nobody will come back with it."""
        return self._fail(self._nobody("any more")) if not self._finished else []

    # ---------------------------------------------------------------------- events

    def start(self, now: float) -> list[FetchAction]:
        """Begin."""
        self._progress_at = now
        held = self._held
        if held is not None and held.root == self._root and held.leaves:
            specs = specs_of(held)
            manifest = Manifest(tuple((spec, held.leaves[spec.name]) for spec in specs))
            self._manifest, self._finished = manifest, True
            names = tuple(spec.name for spec in specs)
            return [Allocate(specs, names), Done(self._round, self._root, manifest)]
        pins: list[FetchAction] = [Tell(peer, self._pin()) for peer in self._holders.peers()]
        return pins + self._go_on(now)

    def holder_up(self, peer: PeerId, now: float) -> list[FetchAction]:
        """A holder can be reached (again)."""
        if self._finished:
            return []
        actions = self._take_back(peer)
        if self._holders.up(peer, now):
            actions.append(Tell(peer, self._pin()))
        return actions + self._go_on(now)

    def holder_down(self, peer: PeerId, now: float) -> list[FetchAction]:
        """The link to a holder is gone."""
        holder = self._holders.get(peer)
        if self._finished or holder is None:
            return []
        actions = self._take_back(peer)
        holder.up = False
        return actions + self._go_on(now)

    def received(self, peer: PeerId, payload: bytes, now: float) -> list[FetchAction]:
        """A state transfer message that is an answer. Never raises: nonsense is blamed."""
        holder = self._holders.get(peer)
        if self._finished or holder is None or holder.liar:
            return []
        try:
            message = unpack_message(payload)
            if not isinstance(message, ManifestPage | ManifestMissing | ChunkMissing):
                raise ProtocolError(f"{type(message).__name__} is no answer")
            if (message.round, message.root) != (self._round, self._root):
                return []  # an answer to an earlier fetch
            if isinstance(message, ManifestPage):
                return self._on_page(peer, message, now) + self._go_on(now)
        except ProtocolError as error:
            return self._blame(peer, f"sent a bad answer: {error.says}") + self._go_on(now)
        except FingerprintError as error:
            return self._fail(error)
        if isinstance(message, ChunkMissing) and message.busy:
            if message.key not in holder.owes:
                return []
            holder.rests_until = now + self._config.stall_s / 10
            return [*self._take_back(peer, message.key), *self._go_on(now)]
        holder.missing = True
        return self._take_back(peer) + self._go_on(now)

    def chunk_done(self, key: int, leaf: bytes, now: float) -> list[FetchAction]:
        """Blob `key` has arrived whole; `leaf` is the hash of the bytes (`merkle.leaf_hash`)."""
        peer = self._holders.owner(key)
        if self._finished or peer is None:
            return []
        holder = self._holders[peer]
        debt = holder.owes.pop(key)
        tensor, index = debt.tensor, debt.index
        spec, leaves = self._tensors[tensor]
        holder.heard_at = now
        if leaf != leaves[index * HASH_BYTES : (index + 1) * HASH_BYTES]:
            self._todo.appendleft((tensor, index))
            says = f"sent wrong bytes for chunk {index} of {spec.name!r}"
            return self._blame(peer, says) + self._go_on(now)
        holder.stalls = 0
        holder.delivered(debt, now, self._config.max_window)
        self._progress_at = now
        self.chunks_done += 1
        self.bytes_fetched += debt.size
        return self._go_on(now)

    def chunk_failed(self, key: int, now: float) -> list[FetchAction]:
        """Blob `key` will not arrive."""
        peer = self._holders.owner(key)
        if self._finished or peer is None:
            return []
        debt = self._holders[peer].owes.pop(key)
        self._todo.appendleft((debt.tensor, debt.index))
        self._holders.rest(peer, now)
        return self._go_on(now)

    def heard(self, peer: PeerId, now: float) -> None:
        """Something is coming from a holder: it is slow, perhaps, but not silent."""
        holder = self._holders.get(peer)
        if holder is not None and holder.owes:
            holder.heard_at = self._progress_at = now

    def tick(self, now: float) -> list[FetchAction]:
        """Look for holders that stall. Due at `next_timer`."""
        if self._finished:
            return []
        actions: list[FetchAction] = []
        for peer in self._holders.stalled(now, self._asked):
            actions += self._take_back(peer)
            self._holders.rest(peer, now)
        if now >= self._progress_at + self._config.give_up_s:
            return actions + self._fail(self._nobody(f"for {self._config.give_up_s:g} s"))
        return actions + self._go_on(now)

    def next_timer(self) -> float | None:
        """When `tick` has something to do."""
        if self._finished:
            return None
        give_up_at = self._progress_at + self._config.give_up_s
        return min([give_up_at, *self._holders.timers(self._asked)])

    # ---------------------------------------------------------------------- manifest

    def _on_page(self, peer: PeerId, page: ManifestPage, now: float) -> list[FetchAction]:
        holder = self._holders[peer]
        if self._manifest is not None or peer != self._asked or page.page != len(self._pages):
            return []  # late: it was asked of somebody else meanwhile
        if (page.pages - 1) * PAGE_BYTES > max_manifest_bytes(self._schema):
            raise ProtocolError(f"a manifest of {page.pages} pages is more than this model needs")
        holder.heard_at = self._progress_at = now
        self._pages.append(page.data)
        if len(self._pages) < page.pages:
            return [Tell(peer, self._want())]
        data = b"".join(self._pages)
        self._pages, self._asked = [], None
        manifest = decode_manifest(data, self._schema)
        if manifest.root != self._root:
            raise ProtocolError("its manifest does not match the committed root")
        check_schema(manifest, self._schema)
        self._manifest = manifest
        return [self._allocate(manifest)]

    def _allocate(self, manifest: Manifest) -> Allocate:
        """Plan what must travel: every chunk whose hash is not here already."""
        here: dict[TensorSpec, bytes] = {}
        if self._held is not None:
            here = {spec: self._held.leaves.get(spec.name, b"") for spec in specs_of(self._held)}
        keep = []
        wanted = []
        for number, (spec, leaves) in enumerate(manifest.tensors):
            if not spec.name.startswith(self._only or ""):
                continue
            wanted.append(spec)
            nbytes = tensor_bytes(spec)
            mine = here.get(spec, b"")
            if len(mine) == len(leaves):
                keep.append(spec.name)
            for index in range(chunk_count(nbytes) if nbytes else 0):
                leaf = slice(index * HASH_BYTES, (index + 1) * HASH_BYTES)
                if len(mine) != len(leaves) or mine[leaf] != leaves[leaf]:
                    self._todo.append((number, index))
        self.chunks_total = len(self._todo)
        return Allocate(tuple(wanted), tuple(keep))

    # ---------------------------------------------------------------------- holders

    def _go_on(self, now: float) -> list[FetchAction]:
        """Ask for as much as may be asked now; notice the end."""
        if self._finished:
            return []
        if self._manifest is not None and self.chunks_done == self.chunks_total:
            self._finished = True
            done = Done(self._round, self._root, self._manifest)
            return [*self._releases(), done]
        if not self._holders.hope():
            return self._fail(self._nobody("any more"))
        if self._manifest is None:
            if self._asked is not None:
                return []
            self._asked = self._holders.pick(now)
            return [] if self._asked is None else [Tell(self._asked, self._want())]
        actions: list[FetchAction] = []
        while self._todo and (peer := self._holders.pick(now)) is not None:
            actions.append(self._ask(peer, now))
        while not self._todo and (late := self._holders.late(now)) is not None:
            slow, key, sooner = late
            actions += self._take_back(slow, key)
            actions.append(self._ask(sooner, now))
        return actions

    def _ask(self, peer: PeerId, now: float) -> AskChunk:
        tensor, index = self._todo.popleft()
        key = self._keys()
        spec = self._tensors[tensor][0]
        size = chunk_bytes(tensor_bytes(spec), index)
        self._holders[peer].asked(key, Debt(tensor, index, size, now))
        return AskChunk(
            peer=peer,
            key=key,
            tensor=spec.name,
            index=index,
            offset=index * CHUNK_BYTES,
            size=size,
            message=ChunkWanted(
                self._round, self._root, spec.name, index, key, tag=self._tag
            ).pack(),
        )

    def _take_back(self, peer: PeerId, key: int | None = None) -> list[FetchAction]:
        """What a holder owes (or one chunk of it) goes back to the head of the queue."""
        holder = self._holders.get(peer)
        if holder is None:
            return []
        if key is None and peer == self._asked:
            self._asked, self._pages = None, []
        keys = list(holder.owes) if key is None else [key]
        debts = [holder.owes.pop(k) for k in keys]
        self._todo.extendleft(reversed([(debt.tensor, debt.index) for debt in debts]))
        actions: list[FetchAction] = [CancelChunk(k) for k in keys]
        if holder.may_help:
            unwanted = (ChunkUnwanted(self._round, self._root, k, tag=self._tag) for k in keys)
            actions += [Tell(peer, message.pack()) for message in unwanted]
        return actions

    def _blame(self, peer: PeerId, says: str) -> list[FetchAction]:
        self._holders[peer].liar = True
        return [*self._take_back(peer), Blame(peer, f"{short(peer)} {says}")]

    def _nobody(self, when: str) -> StateError:
        asked = len(self._holders.peers())
        return StateError(
            f"no peer could give the state of round {self._round} {when} "
            f"({asked} asked, {self.chunks_done} of {self.chunks_total} chunks came)",
            phase=_PHASE,
        )

    def _fail(self, error: DecentralError) -> list[FetchAction]:
        self._finished = True
        error.phase = error.phase or _PHASE
        cancels = [action for peer in self._holders.peers() for action in self._take_back(peer)]
        return [*cancels, *self._releases(), Failed(error)]

    def _releases(self) -> list[FetchAction]:
        message = Release(self._round, self._root, tag=self._tag).pack()
        return [LetGo(peer, message) for peer in self._holders.peers(pinned=True)]

    @property
    def _tensors(self) -> tuple[tuple[TensorSpec, bytes], ...]:
        assert self._manifest is not None  # nothing is owed before
        return self._manifest.tensors

    def _pin(self) -> bytes:
        kind = Pin if self._only is None else Read
        return kind(self._round, self._root, tag=self._tag).pack()

    def _want(self) -> bytes:
        return StateWanted(self._round, self._root, len(self._pages), tag=self._tag).pack()
