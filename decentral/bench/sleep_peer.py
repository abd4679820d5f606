"""A whole peer whose compute is a nap: real mesh, rounds, all-reduce, hashes and checkpoints, no
torch. Small and quick enough that one machine runs dozens.

    python -P -m decentral.bench.sleep_peer --state-kib 64 --step-s 0.05 [as decentral peer …]

The parameters move by noise of this peer's own, so that everybody's contribution differs, and a
wrong sum shows in the hash. ``--modules a,b,c --takes a,b``: a run of three modules with rounds of
their own, of which this peer trains two.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from decentral.cli import peer
from decentral.compute import StepResult
from decentral.errors import DecentralError
from decentral.modules import Modules
from decentral.options import RunOptions
from decentral.run import Run
from decentral.schedule import Progress
from decentral.state import TRAINABLE, Layout, aligned_zeros
from decentral.strategies import DiLoCo, Strategy
from decentral.strategies.named import parse
from decentral.types import PeerId

if TYPE_CHECKING:
    from decentral.peer.runtime import Mesh
    from decentral.types import Array

PROGRAM = ("decentral.bench.sleep_peer",)
"""For `decentral.cli.processes.PeerProcess`."""

ENDLESS = 1_000_000_000
BATCH_SIZE = 4
STEP_SIZE = np.float32(0.01)


class NumpyTensors:
    """One flat array in place of a model (`decentral.compute.Tensors`)."""

    lossy = False

    def __init__(self, size_bytes: int, seed: int) -> None:
        half = size_bytes // 8
        shapes = {"first": half, "second": size_bytes // 4 - half}
        self.layout = Layout.of((name, TRAINABLE, (size,)) for name, size in shapes.items())
        self.theta = aligned_zeros(self.layout.total)
        chance = np.random.default_rng(seed)
        for slot in self.layout.slots:  # the padding between them stays zero
            where = slice(slot.offset, slot.offset + slot.size)
            self.theta[where] = chance.standard_normal(slot.size, dtype=np.float32)

    def read(self, flat: Array) -> None:
        flat[:] = self.theta[: len(flat)]

    def write(self, flat: Array) -> None:
        self.theta[:] = flat

    def as_read(self) -> Array:
        flat = aligned_zeros(len(self.theta))
        self.read(flat)
        return flat

    def save(self) -> Array:
        return self.theta.copy()

    def restore(self, saved: Array) -> None:
        self.write(saved)


class Nap:
    """An inner step that takes a set time (`decentral.compute.Inner`): ten times as long from
    SIGUSR1 on, until SIGUSR2."""

    def __init__(self, parts: Sequence[NumpyTensors], step_s: float, me: PeerId) -> None:
        self._parts, self._step_s = parts, step_s
        self._slower = 1.0
        signal.signal(signal.SIGUSR1, lambda number, frame: self._take_longer(10.0))
        signal.signal(signal.SIGUSR2, lambda number, frame: self._take_longer(1.0))
        # Of each process its own: what a restarted peer adds must not look like what it had added.
        self._chance = np.random.default_rng([zlib.crc32(me.encode()), time.time_ns()])

    def __call__(self, loss: float, tokens: int, progress: Progress) -> StepResult:
        time.sleep(self._step_s * self._slower)
        for part in self._parts:
            for slot in part.layout.slots:
                own = part.theta[slot.offset : slot.offset + slot.size]
                own += STEP_SIZE * (self._chance.random(dtype=np.float32) - np.float32(0.5))
        return StepResult(tokens, loss)

    def _take_longer(self, times: float) -> None:
        self._slower = times

    def forget(self) -> None:
        """Keeps nothing between steps."""

    def state(self) -> dict[str, Array]:
        return {}

    def load(self, state: Mapping[str, Array]) -> None:
        """Likewise."""


class SampleIds:
    """A dataset whose samples are their own indices: leases without data."""

    digest = "ids"

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, index: int) -> int:
        return index


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--state-kib", type=int, default=64, help="size of the parameters")
    parser.add_argument("--step-s", type=float, default=0.05, help="what an inner step takes")
    parser.add_argument("--sync-every", type=int, default=4, metavar="H", help="steps per round")
    parser.add_argument("--codec", default="fp32")
    parser.add_argument(
        "--leases", choices=("on", "off"), default="on", help="off: samples without ids"
    )
    parser.add_argument("--modules", type=_tags, default=(), metavar="A,B,…", help="of the run")
    parser.add_argument(
        "--takes", type=_tags, default=(), metavar="A,…", help="those that this peer trains (all)"
    )


def _tags(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _modules(args: argparse.Namespace) -> Modules | None:
    """Every module has the size and, on every peer, the initial parameters that its tag gives."""
    if not args.modules:
        return None
    parts = {
        tag: NumpyTensors(args.state_kib * 1024, args.seed + zlib.crc32(tag.encode()))
        for tag in args.modules
    }
    takes = args.takes or args.modules
    return Modules(
        tags=args.modules,
        held={tag: parts[tag] for tag in takes},
        given={} if args.join else {tag: parts[tag] for tag in args.modules if tag not in takes},
    )


def train(mesh: Mesh, args: argparse.Namespace) -> None:
    tensors = NumpyTensors(args.state_kib * 1024, args.seed)
    modules = _modules(args)
    options = RunOptions(
        rounds=args.rounds or ENDLESS,
        home=mesh.home.path,
        seed=args.seed,
        recipe="sleep",
        recipe_version="1",
        witness=args.witness,
    )
    strategy: Strategy = DiLoCo(sync_every=args.sync_every, outer_momentum=0.6, codec=args.codec)
    if args.strategy:
        strategy = parse(args.strategy)
    parts = [tensors] if modules is None else [*modules.held.values()]
    nap = Nap([part for part in parts if isinstance(part, NumpyTensors)], args.step_s, mesh.me)
    founder = not args.join
    with Run(mesh, tensors, nap, strategy, options, founder=founder, modules=modules) as run:
        if args.leases == "on":
            data = run.data(SampleIds(), BATCH_SIZE, collate=_as_is)
            run.wait_for_members(args.members)
            for _ in data:
                run.step(0.0)
        else:
            run.step(0.0, tokens=BATCH_SIZE)  # the first one only enters the run
            run.wait_for_members(args.members)
            while run.finished is None:
                run.step(0.0, tokens=BATCH_SIZE)
    assert "torch" not in sys.modules, "a sleeping peer is there to be small"


def _as_is(batch: list[Any]) -> list[Any]:
    return batch


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="sleep_peer", description=__doc__)
    peer.add_arguments(parser)
    add_arguments(parser)
    try:
        return peer.take_part(parser.parse_args(argv), train)
    except DecentralError as error:
        print(f"sleep_peer: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
