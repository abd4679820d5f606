"""A peer of `decentral bench strategies`: trains a recipe with a strategy of its command line.

    python -P -m decentral.bench.training_peer --strategy diloco,outer_momentum=0.6 --members 4 …

It differs from ``decentral peer`` in what a comparison needs: all begin together, nothing goes to
disk, the loss is taken once, at the end (event `trained`), a peer may be slowed down by sleeping,
and contributions may be lost (`LossyDiLoCo`).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import zlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch

from decentral.cli import peer
from decentral.errors import DecentralError
from decentral.recipes import load_training
from decentral.recipes.train import adjusted, run_options
from decentral.run import Run
from decentral.strategies.diloco import DiLoCo
from decentral.strategies.named import STRATEGIES, parse
from decentral.strategies.outer import within
from decentral.types import Contribution

if TYPE_CHECKING:
    from decentral.peer.runtime import Mesh

PROGRAM = ("decentral.bench.training_peer",)
"""For `decentral.cli.processes.PeerProcess`."""

_MEDIAN_OF = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class LossyDiLoCo(DiLoCo):
    """DiLoCo in which a coin takes contributions away: they are reduced with weight 0, so that
    their work is lost, and the peer goes on from the others' average."""

    name: ClassVar[str] = "lossy-diloco"

    drop: float = 0.25
    """Probability that a contribution is lost."""
    coin: int = 0
    """Seed of the coin, which is tossed for the samples that a contribution names: everybody sees
    the same, and the same samples are lost in every run of a seed."""

    def __post_init__(self) -> None:
        DiLoCo.__post_init__(self)
        within("drop", self.drop, 0, 1)

    def weight_of(self, contribution: Contribution) -> float:
        tossed = zlib.crc32(f"{self.coin} {contribution.leases}".encode()) / (1 << 32)
        return 0.0 if tossed < self.drop else DiLoCo.weight_of(self, contribution)


KNOWN = (*STRATEGIES, LossyDiLoCo)


def prepare() -> None:
    """In the fork server: the corpus is read, and what torch imports with its first optimizer is
    there, before the first peer is forked. Both take longer than a peer's start."""
    load_training("gpt").build(0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--slow", type=float, default=1.0, metavar="F", help="a step takes F times as long"
    )
    parser.add_argument(
        "--tokens", type=int, metavar="N", help="end the run at so many tokens, not at a round"
    )


def train(mesh: Mesh, args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    recipe = load_training(args.recipe)
    task = adjusted(recipe.build(args.seed), lr=args.lr)
    if args.strategy:
        task = replace(task, strategy=parse(args.strategy, KNOWN))
    options = run_options(recipe, task, rounds=args.rounds, seed=args.seed)
    if args.tokens:
        options = replace(options, rounds=None, target_tokens=args.tokens)
    founder = not args.join
    steps, naps = 0, _Naps(args.slow)
    with Run(mesh, task.model, task.optimizer, task.strategy, options, founder=founder) as run:
        task.model.train()
        batches = run.data(task.dataset, task.batch_size)
        run.wait_for_members(args.members)
        began, (sent_before, _) = time.monotonic(), mesh.traffic()
        for batch in batches:
            step_began = time.monotonic()
            loss = task.loss_fn(task.model, batch)
            loss.backward()  # type: ignore[no-untyped-call]
            naps.after(time.monotonic() - step_began)
            run.step(loss, tokens=task.tokens_of(batch))
            steps += 1
        seconds, (sent, _) = time.monotonic() - began, mesh.traffic()
        val_loss = None
        if founder:  # the others hold the same bits
            with run.busy("eval"), run.outer():
                val_loss = task.evaluate(task.model)
        mesh.emit(
            {
                "event": "trained",
                "val_loss": val_loss,
                "steps": steps,
                "tokens": run.tokens,
                "rounds": run.round,
                "seconds": round(seconds, 3),
                "bytes_sent": sent - sent_before,
                "state_hashes": run.state_hashes,
            }
        )


class _Naps:
    """Sleep after each step so that it takes so many times as long as this peer's usual one."""

    def __init__(self, factor: float) -> None:
        self._factor = factor
        self._usual: deque[float] = deque(maxlen=_MEDIAN_OF)

    def after(self, took_s: float) -> None:
        self._usual.append(took_s)
        if self._factor > 1:
            time.sleep((self._factor - 1) * statistics.median(self._usual))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="training_peer", description=__doc__)
    peer.add_arguments(parser)
    add_arguments(parser)
    try:
        return peer.take_part(parser.parse_args(argv), train)
    except DecentralError as error:
        print(f"training_peer: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
