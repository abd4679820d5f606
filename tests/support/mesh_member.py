"""A member of a run of two tags that trains nothing: it holds the states, and serves some methods.

python mesh_member.py NAME TAKES MAX_UPLOAD_MBIT [JOIN WORD]

The first one founds the run. It prints JSON lines: where it listens, and what it holds.
"""

from __future__ import annotations

import json
import sys
import threading
import time

import numpy as np

from decentral.mesh_port import Holding, MeshFailed, Order, StateArrived
from decentral.peer.credential import Role
from decentral.peer.manifest import specs_of
from decentral.peer.protocol import Joined
from decentral.peer.runtime import Mesh, MeshConfig
from decentral.state import hash_state
from decentral.types import CommittedState, PeerId

TAGS = ("a", "b")
PART_BYTES = 2 << 20


def initial(tag: str) -> CommittedState:
    """Round 0 of a tag: two parts of two tensors each, the same in every process."""
    rng = np.random.default_rng(TAGS.index(tag))
    tensors = {
        f"{which}/{kind}": rng.integers(0, 256, PART_BYTES, np.uint8)
        for which in ("delta", "own")
        for kind in "vw"
    }
    root, leaves = hash_state(tensors)
    return CommittedState(round=0, tensors=tensors, root=root, leaves=leaves)


def holdings(takes: str, founder: bool) -> dict[str, Holding]:
    """What a peer that takes part in these tags brings along."""
    states = {tag: initial(tag) for tag in TAGS}
    return {
        tag: Holding(
            schema=specs_of(states[tag]),
            initial=states[tag] if founder else None,
            takes=tag in takes,
        )
        for tag in TAGS
        if founder or tag in takes
    }


def config(
    name: str, word: str = "", *, max_upload_mbit: float = 0.0, role: Role | None = None
) -> MeshConfig:
    return MeshConfig(
        name=name, listen="127.0.0.1:0", join=(word,) if word else (), lan_discovery=False,
        port_mapping=False, max_upload_mbit=max_upload_mbit, role=role,
    )  # fmt: skip


def serve(mesh: Mesh) -> None:
    """The methods that tests call."""

    def echo(caller: PeerId, body: bytes) -> bytes:
        return body

    def who(caller: PeerId, body: bytes) -> bytes:
        return f"{caller} {threading.current_thread().name}".encode()

    def nap(caller: PeerId, body: bytes) -> bytes:
        say(event="napping")
        time.sleep(float(body))
        return body

    def fails(caller: PeerId, body: bytes) -> bytes:
        raise ValueError(f"cannot do\nwith {len(body)} bytes")

    def grow(caller: PeerId, body: bytes) -> bytes:
        return bytes(int(body))

    for handler in (echo, who, nap, fails, grow):
        mesh.serve(handler.__name__, handler)


def say(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


def main() -> None:
    name, takes, upload, *words = sys.argv[1:]
    mesh = Mesh(config(name, *words, max_upload_mbit=float(upload)))
    serve(mesh)
    ended = threading.Event()

    def on_order(order: Order) -> None:
        match order:
            case StateArrived(state, tag):
                mesh.hold(state, tag=tag)
                say(event="holds", tag=tag)
            case Joined():
                say(event="joined")
            case MeshFailed(error):
                say(event="failed", says=str(error))
                ended.set()

    say(event="listening", join=mesh.join_word, peer=mesh.me)
    mesh.start(
        holdings=holdings(takes, founder=not words),
        fingerprint=bytes(32),
        lease_samples=1,
        on_order=on_order,
        tags=TAGS,
    )
    ended.wait()
    mesh.close()


if __name__ == "__main__":
    main()
