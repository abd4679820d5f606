"""Replays and stale claims from an admitted peer, behind decryption: nothing of it may count.

    rounds go on, all that is said is kept ──▶ two more rounds ──▶ it is all said again, by the
                                                                   insider, to anybody

Of what is over nothing is a lie about the present: the log must go on as if it had not been said,
with the same members, and each contribution once.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from random import Random

from decentral.churn.hostile.cores import PEERS, kind_of, scene, where
from decentral.churn.hostile.forgery import Forger
from decentral.churn.hostile.small_mesh import SmallMesh
from decentral.errors import ProtocolError
from decentral.peer import messages
from decentral.peer.protocol import Received
from decentral.types import PeerId

PER_MESH = 500
PER_STEP = 10
STALE = (
    *(messages.Prepare, messages.Promise, messages.Accept, messages.Accepted, messages.Nack),
    *(messages.Commit, messages.Learned, messages.Snapshot, messages.ForkPrepare),
    *(messages.ForkPromise, messages.ForkAccept, messages.ForkAccepted, messages.ForkCommit),
    *(messages.Offer, messages.Start, messages.Result, messages.Failed, messages.Abort),
    *(messages.Close, messages.Stuck),
)
"""Kinds with a place in the log or among the rounds."""
FORGED = tuple(kind for kind in STALE if kind not in (messages.Offer, messages.Snapshot))
"""Those that can be forged about what is over. Whom an offer calls unlinked, and what the book of a
snapshot says of others, is about now: a lie, not a stale thing."""


@dataclass(slots=True)
class Replayed:
    """What became of it."""

    sent: Counter[str] = field(default_factory=Counter)
    rounds: int = 0
    """Committed meanwhile."""
    accepted: list[str] = field(default_factory=list)
    """What should not have happened."""


def attack_with_replays(count: int, seed: int) -> Replayed:
    """Say so many old things again; half of them real, half forged about the past."""
    found = Replayed()
    rng = Random(seed)
    while sum(found.sent.values()) < count and len(found.accepted) < 20:
        _one_mesh(min(PER_MESH, count - sum(found.sent.values())), rng, found)
    return found


def _one_mesh(count: int, rng: Random, found: Replayed) -> None:
    mesh = SmallMesh(PEERS, rng.randrange(1 << 30))
    insider, *honest = rng.sample(list(mesh.seats), PEERS)
    mesh.settle(2)
    past = scene(mesh, insider)
    mesh.record = True
    mesh.settle(6)
    mesh.record = False
    old = list(dict.fromkeys(payload for _, _, payload in mesh.sent))
    mesh.settle(2)
    mesh.protected = insider
    members, epoch = _view(mesh, honest[0])
    begun = mesh.round()
    forger = Forger(rng, past)
    for number in range(count):
        payload = rng.choice(old) if rng.random() < 0.5 else forger.payload(rng.choice(FORGED))
        if not _is_stale(payload):
            continue
        found.sent[kind_of(payload)] += 1
        mesh.give(rng.choice(honest), Received(insider, payload))
        try:
            mesh.run()
            if number % PER_STEP == 0:
                mesh.step(0.05)
        except Exception as error:
            found.accepted.append(f"{kind_of(payload)}: {where(error)}")
            return
    if not mesh.settle(3, most_s=20.0):
        found.accepted.append(f"rounds stopped at {mesh.round()}: {_standing(mesh)}")
    found.rounds += mesh.round() - begun
    found.accepted += mesh.violations
    after = _view(mesh, honest[0])
    if not set(members) - {insider} <= set(after[0]) <= set(members):
        found.accepted.append(f"the view was {members} and is {after[0]}")
    if after[1] > epoch + 1:
        found.accepted.append(f"{after[1] - epoch} views for nothing")
    found.accepted += [
        f"{one.core.ctx.name}: {one.ended}" for one in mesh.seats.values() if one.ended
    ]


def _is_stale(payload: bytes) -> bool:
    """Whether it is of a kind that has a place in time: a greeting, or gossip, is of any time."""
    try:
        return isinstance(messages.unpack(payload), STALE)
    except ProtocolError:
        return False


def _view(mesh: SmallMesh, peer: PeerId) -> tuple[tuple[PeerId, ...], int]:
    state = mesh.seats[peer].core.replica.state
    assert state is not None
    return state.view.members, state.view.epoch


def _standing(mesh: SmallMesh) -> str:
    rows = [
        f"{seat.core.ctx.name} at {seat.core.status().round}, {len(seat.core.ctx.links)} links"
        for seat in mesh.seats.values()
    ]
    return "; ".join(rows)
