"""Coming to a run only to use what it has trained: an observer with a home for the time being.

join word ─▶ Mesh (role observe) ─▶ the log ─▶ Visit: parts, keepers ─▶ generate, sample
"""

from __future__ import annotations

import argparse
import os
import queue
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from decentral.errors import ConnectError, FingerprintError
from decentral.recipes import ProgramRecipe, load

if TYPE_CHECKING:
    from decentral.dataflow.program import Program
    from decentral.peer.orders import Order
    from decentral.peer.runtime import Mesh
    from decentral.peer.views_log import LogState
    from decentral.serving.keepers import Keepers
    from decentral.serving.parts import Parts

JOIN_S = 30.0
LOOK_S = 0.005


def add_arguments(parser: argparse.ArgumentParser, recipe: str) -> None:
    parser.add_argument(
        "--join", action="append", required=True, metavar="WORD",
        help="a join word from a member (any role's); may be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--recipe", default=recipe,
        help=f"what the run trains: a name or module:function on this machine (default: {recipe})",
    )  # fmt: skip
    parser.add_argument("--run-seed", type=int, default=0, help="the --seed of the run's peers")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn here (default 0)")
    parser.add_argument("--listen", default="[::]:0", metavar="HOST:PORT")
    parser.add_argument("--json", action="store_true", help="one JSON object a line on stdout")


@dataclass(frozen=True, slots=True)
class Visit:
    """A run as a visitor sees it."""

    program: Program
    mesh: Mesh
    parts: Parts
    keepers: Keepers

    def log(self) -> LogState:
        """The newest one."""
        log = self.mesh.log()
        assert log is not None, "a visit begins when there is one"
        return log


@contextmanager
def visit(args: argparse.Namespace) -> Iterator[Visit]:
    """ConnectError, FingerprintError (another recipe), ConfigError."""
    from decentral.peer.runtime import Mesh, MeshConfig

    program = _program(args)
    mesh = Mesh(
        MeshConfig(
            name=f"visitor-{os.getpid()}",
            listen=args.listen,
            join=tuple(args.join),
            role="observe",
            lan_discovery=False,
            port_mapping=False,
        )
    )
    try:
        yield _enter(mesh, program)
    finally:
        mesh.close()


def _program(args: argparse.Namespace) -> Program:
    from decentral.errors import ConfigError

    recipe = load(args.recipe)
    if not isinstance(recipe, ProgramRecipe):
        raise ConfigError(f"recipe {args.recipe!r} is no program: there is nothing to ask of it")
    return recipe.build(args.run_seed)


def _enter(mesh: Mesh, program: Program) -> Visit:
    from decentral.peer.orders import MeshFailed
    from decentral.serving.keepers import Keepers
    from decentral.serving.parts import Parts

    orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
    schemas = {cell: program.schema(cell) for cell in program.cells}
    mesh.watch(orders.put, tags=program.cells, schemas=schemas)
    deadline = time.monotonic() + JOIN_S
    while (log := mesh.log()) is None or not log.founded:
        if time.monotonic() > deadline:
            raise ConnectError(f"nobody has told of the run for {JOIN_S:.0f} s", phase="join")
        try:
            order = orders.get(timeout=LOOK_S)
        except queue.Empty:
            continue
        if isinstance(order, MeshFailed):
            raise order.error
    if set(log.tags()) != set(program.cells):
        says = "this run is of another recipe: say --recipe as its peers do"
        raise FingerprintError(says, phase="join")
    return Visit(program, mesh, Parts(mesh), Keepers(mesh, program))
