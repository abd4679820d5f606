"""What a run costs: 6 FLOPs per parameter and sample trained on, 2 per parameter and pass.

Matrix products are counted, nothing else is; embeddings are rounding errors here.
"""

from __future__ import annotations

from decentral.diffusion.program import ROUTER, STUDENT, DiffusionProgram

TRAIN, PASS = 6, 2


def training_flops(program: DiffusionProgram) -> dict[str, float]:
    """Of all experts together, of the router, of the student (with its teachers' passes)."""
    config = program.config
    per_expert = _parameters(program, "expert/0")
    steps = config.rounds * config.steps
    flops = {"experts": float(TRAIN * per_expert * config.batch * steps)}
    if config.experts > 1:
        flops["router"] = float(TRAIN * _parameters(program, ROUTER) * config.router_batch * steps)
    if config.student_rounds:
        samples = config.student_batch * config.student_rounds * config.steps
        flops[STUDENT] = float((TRAIN + PASS) * per_expert * samples)
    return flops


def router_share(program: DiffusionProgram) -> float:
    """Of the training FLOPs of experts and router together."""
    flops = training_flops(program)
    router = flops.get("router", 0.0)
    return router / (flops["experts"] + router)


def _parameters(program: DiffusionProgram, cell: str) -> int:
    return len(program.initial(cell)["param"])
