"""Nonsense for those who take bytes before the core does: admission, and state transfer.

    Admission.receive        a stranger's and a guest's words on a fresh link
    Donor, Fetcher, Replay   an admitted peer's words about states and chunks

Whatever is wrong ends in a `Refused` verdict or a ProtocolError that names the sender.
"""

from __future__ import annotations

import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any

import msgpack
import numpy as np

from decentral.churn.hostile.mutations import Mutator
from decentral.errors import ProtocolError
from decentral.peer.admission import Admission, Admitted, Hello, RunContext
from decentral.peer.credential import RunAuthority
from decentral.peer.donor import Donor
from decentral.peer.fetcher import Fetcher
from decentral.peer.identity import Identity
from decentral.peer.joinword import Invite, mint_invite
from decentral.peer.manifest import manifest_of
from decentral.peer.transfer import (
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
    UpdateOffer,
    UpdateWanted,
    unpack_message,
)
from decentral.state import hash_state
from decentral.types import CommittedState, PeerId, TensorSpec


@dataclass(slots=True)
class Refusals:
    """What became of the messages."""

    sent: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    heeded: int = 0
    raised: list[str] = field(default_factory=list)

    def note(self, kind: str, error: Exception) -> None:
        frames = traceback.extract_tb(error.__traceback__)[-3:]
        at = " < ".join(f"{one.name}:{one.lineno}" for one in reversed(frames))
        self.raised.append(f"{kind}: {type(error).__name__}: {str(error)[:100]} in {at}")


# ------------------------------------------------------------------ admission


class _Door:
    """A member's end of admission, and what an honest guest would say to it."""

    def __init__(self) -> None:
        self.now = time.time()
        self.authority = RunAuthority(Identity.generate())
        self.member, self.guest = Identity.generate(), Identity.generate()
        chain = self.authority.issue(self.member.public, now=self.now)
        self.run = RunContext(authority=self.authority.public, chain=chain)
        self.invite = mint_invite(self.authority.key, (), now=self.now)

    def end(self, *, inbound: bool, exporter: bytes) -> Admission:
        me, other = (self.member, self.guest) if inbound else (self.guest, self.member)
        return Admission(
            me,
            inbound=inbound,
            peer=other.peer_id,
            exporter=exporter,
            hello=Hello(name="x", addresses=("127.0.0.1:9",)),
            run=self.run if inbound else self._guest_run(self.invite),
            now=self.now,
            invite=None if inbound else self.invite,
        )

    def _guest_run(self, invite: Invite) -> RunContext:
        chain = invite.credential_for(self.guest.public, now=self.now)
        return RunContext(authority=invite.authority, chain=chain)


def attack_admission(count: int, seed: int) -> Refusals:
    """Mutated presentations to a member, and mutated offers to a guest. The proofs of other links
    are among what is said: none may count."""
    found = Refusals()
    rng = Random(seed)
    mutate = Mutator(rng)
    door = _Door()
    for _ in range(count):
        exporter = rng.randbytes(32)
        member, guest = (door.end(inbound=inbound, exporter=exporter) for inbound in (True, False))
        (offer,) = member.start()
        (present,) = guest.receive(offer)
        replayed = rng.random() < 0.2
        if rng.random() < 0.5:
            kind, target, genuine = "present", member, present
            if replayed:
                target = door.end(inbound=True, exporter=rng.randbytes(32))
                target.start()
        else:
            kind, genuine = "offer", offer
            other = rng.randbytes(32) if replayed else exporter
            target = door.end(inbound=False, exporter=other)
        payload = genuine if replayed else mutate(genuine, rng.choice((offer, present)))
        kind = f"{'replayed' if replayed else 'mutated'} {kind}"
        found.sent[kind] += 1
        try:
            answers = target.receive(payload)
        except Exception as error:
            found.note(kind, error)
            continue
        if isinstance(target.verdict, Admitted) or (answers and kind.endswith("offer")):
            found.heeded += 1
            if _proves_nothing(payload, genuine, replayed):
                found.raised.append(f"{kind}: admitted on {payload[:80].hex()}")
        else:
            found.refused += 1
    return found


def _proves_nothing(payload: bytes, genuine: bytes, replayed: bool) -> bool:
    """Whether a credential or a proof in it is another one than the genuine: what else it says of
    its sender (a name, an address) may be anything."""
    if replayed:
        return True
    said, meant = msgpack.unpackb(payload), msgpack.unpackb(genuine)
    return any(isinstance(one, bytes) and one and one not in meant for one in said)


# ------------------------------------------------------------------ state transfer


def attack_transfer(count: int, seed: int) -> Refusals:
    """Mutated requests to a donor, and mutated answers to a fetcher."""
    found = Refusals()
    rng = Random(seed)
    mutate = Mutator(rng)
    peer: PeerId = Identity(rng.randbytes(32)).peer_id
    state = _state(rng)
    specs = tuple(
        TensorSpec(name=name, dtype=str(array.dtype), shape=array.shape)
        for name, array in state.tensors.items()
    )
    corpus = _transfer_messages(state)
    while sum(found.sent.values()) < count:
        donor = Donor()
        donor.hold(state)
        fetcher = Fetcher(
            schema=specs, round=state.round, root=state.root, holders=(peer,),
            keys=KeyMaker(rng.getrandbits(32)), seed=rng.getrandbits(32),
        )  # fmt: skip
        fetcher.start(0.0)
        handlers: tuple[Callable[[bytes, float], Any], ...] = (
            partial(donor.handle, peer),
            partial(fetcher.received, peer),
            _parse,
        )
        for number in range(50):
            base = rng.choice(corpus)
            payload = mutate(base, rng.choice(corpus)) if rng.random() < 0.9 else base
            kind = str(msgpack.unpackb(base)[0])
            found.sent[kind] += 1
            try:
                rng.choice(handlers)(payload, number * 0.01)
                found.heeded += 1
            except ProtocolError:
                found.refused += 1
            except Exception as error:
                found.note(kind, error)
        donor.tick(100.0)
        fetcher.tick(100.0)
    return found


def _parse(payload: bytes, now: float) -> object:
    return unpack_message(payload)


def _state(rng: Random) -> CommittedState:
    arrays = {
        "first": np.frombuffer(rng.randbytes(4096), dtype=np.float32).copy(),
        "second": np.frombuffer(rng.randbytes(3 << 20), dtype=np.float32).copy(),
    }
    root, leaves = hash_state(arrays)
    return CommittedState(round=7, tensors=arrays, root=root, leaves=leaves)


def _transfer_messages(state: CommittedState) -> list[bytes]:
    number, root = state.round, state.root
    page = manifest_of(state).encode()
    made = (
        Pin(number, root),
        Read(number, root),
        Release(number, root),
        StateWanted(number, root, 0),
        ManifestPage(number, root, 0, 1, page),
        ManifestMissing(number, root),
        ChunkWanted(number, root, "second", 1, 77),
        ChunkUnwanted(number, root, 77),
        ChunkMissing(number, root, 77, True),
        UpdateWanted(number + 1, root),
        UpdateOffer(number + 1, root, root, 100, 10),
    )
    return [one.pack() for one in made]
