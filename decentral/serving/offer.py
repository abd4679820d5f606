"""A peer's side: what it answers while it trains, and after.

    DiPaCo      "generate"   a path's next bytes
    diffusion   "denoise"    an expert's velocities
                "solve"      an expert's samples, all steps of them

Any peer of a run answers for any path or expert: for what it keeps from memory, for others it
fetches the parts. Answers are worked out on the mesh's few threads for calls.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from decentral.dataflow.program import Program
from decentral.dataflow.worker import Worker
from decentral.diffusion.sampling import How
from decentral.errors import ProtocolError
from decentral.mesh_port import MeshPort
from decentral.serving.messages import (
    DENOISE,
    GENERATE,
    SOLVE,
    SolveRequest,
    TextRequest,
    VelocityRequest,
)
from decentral.serving.parts import Parts, Version
from decentral.types import PeerId

if TYPE_CHECKING:
    from decentral.diffusion.program import DiffusionProgram
    from decentral.dipaco.program import DiPaCo


def offer(mesh: MeshPort, worker: Worker, program: Program) -> None:
    """Before the worker runs. A program of another kind has nothing to offer."""
    from decentral.diffusion.program import DiffusionProgram
    from decentral.dipaco.program import DiPaCo

    parts = Parts(mesh, worker.held)
    if isinstance(program, DiPaCo):
        mesh.serve(GENERATE, Generate(program, parts))
    elif isinstance(program, DiffusionProgram):
        experts = Denoise(program, parts)
        mesh.serve(DENOISE, experts)
        mesh.serve(SOLVE, experts.solve)


class Generate:
    """Answers `TextRequest`s."""

    def __init__(self, program: DiPaCo, parts: Parts) -> None:
        from decentral.serving.paths import Paths

        self._paths = Paths(program, parts)

    def __call__(self, caller: PeerId, body: bytes) -> bytes:
        from decentral.serving.writer import answer

        paths, asked = self._paths, TextRequest.unpack(body)
        if asked.path not in paths.program.paths:
            raise ProtocolError(f"there is no path {asked.path[:80]!r}", phase="body")
        wanted = [cell for cell, _ in paths.needs(asked.path)]
        if [one.cell for one in asked.versions] != wanted:
            raise ProtocolError(f"{asked.path} is made of {', '.join(wanted)}", phase="body")
        if len(asked.context) > paths.room or max(asked.context) >= paths.vocabulary:
            says = f"a context has up to {paths.room} bytes, each below {paths.vocabulary}"
            raise ProtocolError(says, phase="body")
        return answer(paths, asked)


class Denoise:
    """Answers `VelocityRequest`s; `solve`: `SolveRequest`s."""

    def __init__(self, program: DiffusionProgram, parts: Parts) -> None:
        from decentral.serving.experts import Networks

        self._experts = frozenset(program.experts)
        self._networks = Networks(program, parts)

    def __call__(self, caller: PeerId, body: bytes) -> bytes:
        networks = self._networks
        asked = VelocityRequest.unpack(body, networks.dim, networks.classes)
        self._check(asked.version)
        return networks.velocity(asked.version, asked.x, asked.t, asked.classes).tobytes()

    def solve(self, caller: PeerId, body: bytes) -> bytes:
        networks = self._networks
        asked = SolveRequest.unpack(body, networks.dim, networks.classes)
        self._check(asked.version)
        how = How(steps=asked.steps, solver=asked.solver, guidance=asked.guidance)
        return networks.solve(asked.version, asked.x, asked.classes, how).tobytes()

    def _check(self, version: Version) -> None:
        if version.cell not in self._experts:
            raise ProtocolError(f"there is no expert {version.cell[:80]!r}", phase="body")
