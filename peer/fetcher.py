"""Getting a state: from all holders at once, each chunk verified before it counts. Sans-IO.

    start ─▶ Tell(x/pin) to all ─▶ Tell(x/want) to one ─▶ manifest verified ─▶ Allocate
          ─▶ AskChunk … spread over all holders, `window` outstanding each ─▶ Done

A holder that dies, stalls or runs out of patience loses its chunks to the others; one that sends
wrong bytes is named (`Blame`) and never asked again. Chunks that are here already do not travel.
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
    ChunkWanted,
    KeyMaker,
    ManifestMissing,
    ManifestPage,
    Pin,
    Release,
    StateWanted,
    unpack_message,
)
from decentral.types import CommittedState, PeerId, TensorSpec, short

_PHASE = "state transfer"


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


FetchAction: TypeAlias = Tell | Allocate | AskChunk | CancelChunk | Blame | Done | Failed


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchConfig:
    """Patience and width."""

    window: int = 4
    """Chunks outstanding per holder."""
    stall_s: float = 10.0
    """A holder that owes something and sends nothing for so long loses its chunks, and rests."""
    give_up_s: float = 60.0
    """No progress from anybody for so long: failed."""

    def __post_init__(self) -> None:
        if self.window < 1 or self.stall_s <= 0 or self.give_up_s <= 0:
            raise ConfigError("a fetch needs a positive window and positive times")


@dataclass(slots=True)
class _Holder:
    up: bool = True
    missing: bool = False  # says it does not hold the state
    liar: bool = False
    stalls: int = 0
    rests_until: float = 0.0  # 0: it does not
    heard_at: float = 0.0  # last time it owed nothing, or something came
    owes: dict[int, tuple[int, int]] = field(default_factory=dict)  # key → (tensor, chunk)


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
    ) -> None:
        """`schema` is this peer's model; `held` is state that may match in part (with leaves)."""
        self._config = config or FetchConfig()
        self._schema = tuple(schema)
        self._round = round
        self._root = root
        self._keys = keys
        self._held = held
        order = sorted(set(holders))
        random.Random(seed).shuffle(order)  # so that joiners do not all start with the same one
        self._holders = {peer: _Holder() for peer in order}
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
        pins: list[FetchAction] = [Tell(peer, self._pin()) for peer in self._holders]
        return pins + self._go_on(now)

    def holder_up(self, peer: PeerId, now: float) -> list[FetchAction]:
        """A holder can be reached (again)."""
        if self._finished:
            return []
        liar = peer in self._holders and self._holders[peer].liar
        actions = self._take_back(peer)
        self._holders[peer] = _Holder(liar=liar, heard_at=now)
        if not liar:
            actions.append(Tell(peer, self._pin()))
        return actions + self._go_on(now)

    def holder_down(self, peer: PeerId, now: float) -> list[FetchAction]:
        """The link to a holder is gone."""
        if self._finished or peer not in self._holders:
            return []
        actions = self._take_back(peer)
        self._holders[peer].up = False
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
        peer = self._owner(key)
        if self._finished or peer is None:
            return []
        holder = self._holders[peer]
        tensor, index = holder.owes.pop(key)
        spec, leaves = self._tensors[tensor]
        holder.heard_at = now
        if leaf != leaves[index * HASH_BYTES : (index + 1) * HASH_BYTES]:
            self._todo.appendleft((tensor, index))
            says = f"sent wrong bytes for chunk {index} of {spec.name!r}"
            return self._blame(peer, says) + self._go_on(now)
        holder.stalls = 0
        self._progress_at = now
        self.chunks_done += 1
        self.bytes_fetched += chunk_bytes(tensor_bytes(spec), index)
        return self._go_on(now)

    def chunk_failed(self, key: int, now: float) -> list[FetchAction]:
        """Blob `key` will not arrive."""
        peer = self._owner(key)
        if self._finished or peer is None:
            return []
        self._todo.appendleft(self._holders[peer].owes.pop(key))
        self._rest(peer, now)
        return self._go_on(now)

    def tick(self, now: float) -> list[FetchAction]:
        """Look for holders that stall. Due at `next_timer`."""
        if self._finished:
            return []
        actions: list[FetchAction] = []
        for peer, holder in self._holders.items():
            if holder.rests_until <= now:
                holder.rests_until = 0.0
            owing = holder.owes or peer == self._asked
            if owing and now >= holder.heard_at + self._config.stall_s:
                actions += self._take_back(peer)
                self._rest(peer, now)
        if now >= self._progress_at + self._config.give_up_s:
            return actions + self._fail(self._nobody(f"for {self._config.give_up_s:g} s"))
        return actions + self._go_on(now)

    def next_timer(self) -> float | None:
        """When `tick` has something to do."""
        if self._finished:
            return None
        times = [self._progress_at + self._config.give_up_s]
        for peer, holder in self._holders.items():
            if holder.owes or peer == self._asked:
                times.append(holder.heard_at + self._config.stall_s)
            if holder.rests_until and self._may_help(holder):
                times.append(holder.rests_until)
        return min(times)

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
        for number, (spec, leaves) in enumerate(manifest.tensors):
            nbytes = tensor_bytes(spec)
            mine = here.get(spec, b"")
            if len(mine) == len(leaves):
                keep.append(spec.name)
            for index in range(chunk_count(nbytes) if nbytes else 0):
                leaf = slice(index * HASH_BYTES, (index + 1) * HASH_BYTES)
                if len(mine) != len(leaves) or mine[leaf] != leaves[leaf]:
                    self._todo.append((number, index))
        self.chunks_total = len(self._todo)
        return Allocate(tuple(spec for spec, _ in manifest.tensors), tuple(keep))

    # ---------------------------------------------------------------------- holders

    def _go_on(self, now: float) -> list[FetchAction]:
        """Ask for as much as may be asked now; notice the end."""
        if self._finished:
            return []
        if self._manifest is not None and self.chunks_done == self.chunks_total:
            self._finished = True
            done = Done(self._round, self._root, self._manifest)
            return [*self._releases(), done]
        if not any(self._may_help(h) or not (h.up or h.liar) for h in self._holders.values()):
            return self._fail(self._nobody("any more"))
        ready = [
            peer
            for peer, holder in self._holders.items()
            if self._may_help(holder) and holder.rests_until <= now
        ]
        if self._manifest is None:
            if self._asked is not None or not ready:
                return []
            self._asked = ready[0]
            self._holders[ready[0]].heard_at = now
            return [Tell(ready[0], self._want())]
        actions: list[FetchAction] = []
        while self._todo and ready:
            peer = min(ready, key=lambda p: len(self._holders[p].owes))
            if len(self._holders[peer].owes) >= self._config.window:
                break
            actions.append(self._ask(peer, now))
        return actions

    def _ask(self, peer: PeerId, now: float) -> AskChunk:
        tensor, index = self._todo.popleft()
        holder, key = self._holders[peer], self._keys()
        if not holder.owes:
            holder.heard_at = now
        holder.owes[key] = (tensor, index)
        spec = self._tensors[tensor][0]
        return AskChunk(
            peer=peer,
            key=key,
            tensor=spec.name,
            index=index,
            offset=index * CHUNK_BYTES,
            size=chunk_bytes(tensor_bytes(spec), index),
            message=ChunkWanted(self._round, self._root, spec.name, index, key).pack(),
        )

    def _may_help(self, holder: _Holder) -> bool:
        return holder.up and not (holder.missing or holder.liar)

    def _take_back(self, peer: PeerId, key: int | None = None) -> list[FetchAction]:
        """What a holder owes (or one chunk of it) goes back to the head of the queue."""
        holder = self._holders.get(peer)
        if holder is None:
            return []
        if key is None and peer == self._asked:
            self._asked, self._pages = None, []
        keys = list(holder.owes) if key is None else [key]
        self._todo.extendleft(reversed([holder.owes.pop(k) for k in keys]))
        return [CancelChunk(k) for k in keys]

    def _rest(self, peer: PeerId, now: float) -> None:
        holder = self._holders[peer]
        holder.stalls += 1
        holder.heard_at = now
        rest_s = self._config.stall_s * min(1.0, 2 ** min(holder.stalls, 4) / 10)
        holder.rests_until = now + rest_s

    def _blame(self, peer: PeerId, says: str) -> list[FetchAction]:
        self._holders[peer].liar = True
        return [*self._take_back(peer), Blame(peer, f"{short(peer)} {says}")]

    def _owner(self, key: int) -> PeerId | None:
        return next((peer for peer, h in self._holders.items() if key in h.owes), None)

    def _nobody(self, when: str) -> StateError:
        return StateError(
            f"no peer could give the state of round {self._round} {when} "
            f"({len(self._holders)} asked, {self.chunks_done} of {self.chunks_total} chunks came)",
            phase=_PHASE,
        )

    def _fail(self, error: DecentralError) -> list[FetchAction]:
        self._finished = True
        error.phase = error.phase or _PHASE
        cancels = [action for peer in self._holders for action in self._take_back(peer)]
        return [*cancels, *self._releases(), Failed(error)]

    def _releases(self) -> list[FetchAction]:
        message = Release(self._round, self._root).pack()
        return [Tell(p, message) for p, h in self._holders.items() if h.up and not h.missing]

    @property
    def _tensors(self) -> tuple[tuple[TensorSpec, bytes], ...]:
        assert self._manifest is not None  # nothing is owed before
        return self._manifest.tensors

    def _pin(self) -> bytes:
        return Pin(self._round, self._root).pack()

    def _want(self) -> bytes:
        return StateWanted(self._round, self._root, len(self._pages)).pack()
