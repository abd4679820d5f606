"""Nonsense from an admitted peer, behind decryption: what `PeerCore.handle` makes of it.

    real and forged messages ──▶ Mutator ──▶ Received(insider, bytes) ──▶ one of four honest cores
                                                   refused: CloseLink(insider), which is ignored
                                                   here, so that thousands can be tried
    every so often the clock moves, so that what was believed has its consequences

An admitted peer's lies about votes and opinions can mislead (docs/protocol.md, "What is assumed").
Nothing whatever may raise.
"""

from __future__ import annotations

import traceback
from collections import Counter
from dataclasses import dataclass, field
from random import Random

import msgpack

from decentral.churn.hostile.forgery import KINDS, Forger, Scene
from decentral.churn.hostile.mutations import Mutator
from decentral.churn.hostile.small_mesh import FINGERPRINT, RUN, SmallMesh, StormError
from decentral.errors import ProtocolError
from decentral.peer import messages
from decentral.peer.protocol import Received
from decentral.types import PeerId

PEERS = 5
PER_MESH = 400
"""So many to one mesh: the next one is fresh, for lies may have led the former anywhere."""
PER_STEP = 20


@dataclass(slots=True)
class Tally:
    """What became of the messages."""

    sent: Counter[str] = field(default_factory=Counter)
    """Per kind of the message that was changed."""
    refused: int = 0
    """Answered with a closed link, the sender named."""
    heeded: int = 0
    """Well-formed after all, and handled as any other message."""
    raised: list[str] = field(default_factory=list)
    """What came out of `handle`: none of it should."""

    def note(self, says: str) -> None:
        if len(self.raised) < 50:
            self.raised.append(says)


def attack_cores(count: int, seed: int) -> Tally:
    """Throw so many mutated messages at the cores of small meshes."""
    tally = Tally()
    rng = Random(seed)
    while sum(tally.sent.values()) < count and len(tally.raised) < 50:
        _one_mesh(min(PER_MESH, count - sum(tally.sent.values())), rng, tally)
    return tally


def recorded(mesh: SmallMesh, rounds: int = 3) -> list[bytes]:
    """What the peers say to each other meanwhile; a link that breaks and comes back is in it."""
    mesh.sent.clear()
    mesh.record = True
    mesh.settle(rounds)
    first, second = list(mesh.seats)[1:3]
    mesh.unlink(first, second, "broken")
    mesh.settle(rounds)
    mesh.record = False
    return list(dict.fromkeys(payload for _, _, payload in mesh.sent))


def scene(mesh: SmallMesh, me: PeerId) -> Scene:
    """As the insider sees it."""
    state = mesh.seats[me].core.replica.state
    assert state is not None
    return Scene(RUN, FINGERPRINT, state, me)


def _one_mesh(count: int, rng: Random, tally: Tally) -> None:
    mesh = SmallMesh(PEERS, rng.randrange(1 << 30))
    corpus = recorded(mesh)
    insider, *honest = rng.sample(list(mesh.seats), PEERS)
    mesh.protected = insider
    mutate = Mutator(rng)
    last = ""
    for number in range(count):
        forger = Forger(rng, scene(mesh, insider))
        base = rng.choice(corpus) if rng.random() < 0.4 else forger.payload(rng.choice(KINDS))
        payload = mutate(base, rng.choice(corpus)) if rng.random() < 0.9 else base
        kind = kind_of(base)
        tally.sent[kind] += 1
        honest = [peer for peer in honest if not mesh.seats[peer].ended]
        if not honest:
            break
        victim = rng.choice(honest)
        last = f"{kind}: {payload[:60].hex()}"
        before = mesh.closed[insider]
        mesh.give(victim, Received(insider, payload))
        try:
            mesh.run()
            if number % PER_STEP == PER_STEP - 1:
                last = f"after {last}"
                mesh.step(rng.choice((0.05, 0.05, 0.3, 3.0)))
        except Exception as error:
            tally.note(f"{last}: {where(error)}")
            return
        if mesh.closed[insider] > before:
            tally.refused += 1
        else:
            tally.heeded += 1
    try:
        mesh.settle(3, most_s=5.0)
    except Exception as error:
        tally.note(f"later: {where(error)}")


def kind_of(payload: bytes) -> str:
    try:
        return type(messages.unpack(payload)).__name__
    except ProtocolError:
        return str(msgpack.unpackb(payload)[0])


def where(error: Exception) -> str:
    """The error and the last places it came through, in one line."""
    if isinstance(error, StormError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    at = " < ".join(f"{one.name}:{one.lineno}" for one in reversed(frames))
    return f"{type(error).__name__}: {str(error)[:100]} in {at}"
