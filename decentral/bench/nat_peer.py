"""A small peer in short rounds, that moves data over one link when its harness asks for it.

    python -P -m decentral.bench.nat_peer --home H [as decentral peer …]

    harness ── H/move: the other's peer id ──▶ both ends ── 16 MiB each way, a group of two ──▶
            ◀── {"event": "moved", "sent": hash, "received": hash, …} ─────────────────────────┘

The members of a group of two have nobody else to send to: what arrives came over their link. The
harness compares what each end received with what the other one sent.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from decentral.bench.sleep_peer import Nap, NumpyTensors
from decentral.cli import peer
from decentral.collectives import Group
from decentral.errors import DecentralError
from decentral.options import RunOptions
from decentral.run import Run
from decentral.strategies import DiLoCo
from decentral.types import PeerId, View

if TYPE_CHECKING:
    from decentral.peer.runtime import Mesh

PROGRAM = ("decentral.bench.nat_peer",)
MOVE_BYTES = 16 << 20
REQUEST = "move"
TAG = 4242
START_LIMIT_S = 10.0
LOOK_S = 0.02
STATE_BYTES = 16 << 10
STEPS = 10
ENDLESS = 1_000_000_000


def ask_to_move(home: Path, other: PeerId) -> None:
    """The harness's end. Whole at once: the peer may look at any moment."""
    draft = home / f"{REQUEST}.tmp"
    draft.write_text(other)
    draft.rename(home / REQUEST)


class Mover:
    """Looks for requests on a thread of its own: the training goes on meanwhile, as a round that
    one of the two has contributed to may wait for the other."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh, self._moves = mesh, 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mover", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(START_LIMIT_S)

    def _run(self) -> None:
        while not self._ended.wait(LOOK_S):
            self._look()

    def _look(self) -> None:
        request = self._mesh.home.path / REQUEST
        if not request.exists():
            return
        other = PeerId(request.read_text())
        request.unlink()
        self._moves += 1
        try:
            self._mesh.emit(self._move(other))
        except DecentralError as error:
            fault = {"event": "fault", "kind": "move", "number": self._moves}
            self._mesh.emit({**fault, "peer": other, "says": error.says})

    def _move(self, other: PeerId) -> dict[str, Any]:
        me, count = self._mesh.me, MOVE_BYTES // 4
        members = tuple(sorted((me, other)))
        group = Group(self._mesh.native, View(lineage="00" * 8, epoch=1, members=members), me)
        data = np.zeros(2 * count, np.float32)
        mine, theirs = group.part(2 * count), slice(0, count)
        if mine.start == 0:
            theirs = slice(count, None)
        data[mine] = np.random.default_rng().random(count, dtype=np.float32)
        before, began_s = self._mesh.traffic(), time.monotonic()
        work = group.all_gather(
            data, round=self._moves, attempt=1, tag=TAG, start_limit_s=START_LIMIT_S
        )
        work.wait()
        seconds, after = time.monotonic() - began_s, self._mesh.traffic()
        return {
            "event": "moved",
            "peer": other,
            "seconds": round(seconds, 4),
            "sent": hashlib.sha256(data[mine].data).hexdigest(),
            "received": hashlib.sha256(data[theirs].data).hexdigest(),
            "bytes_sent": after[0] - before[0],
            "bytes_received": after[1] - before[1],
        }


def train(mesh: Mesh, args: argparse.Namespace) -> None:
    tensors = NumpyTensors(STATE_BYTES, args.seed)
    options = RunOptions(
        rounds=ENDLESS, home=mesh.home.path, seed=args.seed, recipe="nat", recipe_version="1"
    )
    nap, strategy = Nap([tensors], args.round_s / STEPS, mesh.me), DiLoCo(sync_every=STEPS)
    with (
        Mover(mesh),
        Run(mesh, tensors, nap, strategy, options, founder=not args.join) as run,
    ):
        while run.finished is None:
            run.step(0.0, tokens=1)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="nat_peer", description=__doc__)
    peer.add_arguments(parser)
    parser.add_argument("--round-s", type=float, default=0.2, help="of steps between two rounds")
    try:
        return peer.take_part(parser.parse_args(argv), train)
    except DecentralError as error:
        print(f"nat_peer: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
