"""What a peer with a path's lease works out: one round, from modules and its state.

θ = modules + private ─▶ how good is it? ─┬─▶ H AdamW steps ─▶ Δ per module; private, moments
                                          └─▶ what it makes of reserved documents
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from decentral.dataflow.program import Arrays, Computed
from decentral.dipaco.flat import FlatModel
from decentral.dipaco.grid import Path
from decentral.dipaco.inner import Moments, derived, judge, seeded, train
from decentral.dipaco.phases import PathRound
from decentral.dipaco.router import SHARDS
from decentral.dipaco.split import PRIVATE

if TYPE_CHECKING:
    from decentral.dipaco.program import DiPaCo

BASE, ROUTER = "base", "router"
EXP_AVG, EXP_AVG_SQ = "adam/exp_avg", "adam/exp_avg_sq"


def pretraining_round(
    program: DiPaCo, round: int, before: Arrays, beat: Callable[[], None]
) -> Computed:
    """H steps of the base, on all documents."""
    split, steps = program.split, program.inner.steps
    theta = np.concatenate([before[f"theta/{group.name}"] for group in split.groups])
    with seeded(derived(program.seed, BASE, round)):
        model = program.build().load(theta)
        moments, loss = train(
            model,
            Moments(before[EXP_AVG], before[EXP_AVG_SQ]),
            program.documents.train,
            program.inner,
            first=(round - 1) * steps,
            steps=steps,
            of=program.total_steps,
            seed=derived(program.seed, BASE, "order"),
            beat=beat,
        )
    tensors: dict[str, NDArray[Any]] = {
        f"theta/{group.name}": model.theta[group.where] for group in split.groups
    }
    tensors |= {EXP_AVG: moments.exp_avg, EXP_AVG_SQ: moments.exp_avg_sq}
    return Computed(tensors=tensors, tokens=program.tokens_per_round, loss=loss)


def path_round(
    program: DiPaCo,
    path: Path,
    round: int,
    before: Arrays,
    inputs: Sequence[Arrays],
    beat: Callable[[], None],
) -> Computed:
    """`inputs`: the shards, θ per module; in round 1 also the base's moments and private part."""
    doing, split = program.plan.path[round - 1], program.split
    levels = len(split.levels)
    shards, modules, founding = inputs[0], inputs[1 : levels + 1], inputs[levels + 1 :]
    own, moments = before, Moments(before[EXP_AVG], before[EXP_AVG_SQ])
    if founding:
        moments = Moments(founding[0][EXP_AVG], founding[0][EXP_AVG_SQ])
        if split.private is not None:
            own = {**before, PRIVATE: founding[1][f"theta/{PRIVATE}"]}
    theta = program.joined([module["theta"] for module in modules], own)
    tensors: dict[str, NDArray[Any]] = {**own}
    with seeded(derived(program.seed, path.cell, round)):
        model = program.build().load(theta)
        tensors |= _validated(program, path, round, model, shards, own, beat)
        if not doing.train:
            tensors |= _scored(program, doing, model, tensors, beat)
            return Computed(tensors=tensors, loss=float(tensors["validation"][0]))
        mine, loss = program.shard(path, shards), None
        if len(mine):
            moments, loss = train(
                model,
                moments,
                program.documents.train[mine],
                program.inner,
                first=program.first_step + (doing.phase - 1) * program.inner.steps,
                steps=program.inner.steps,
                of=program.total_steps,
                seed=derived(program.seed, path.cell, "order"),
                beat=beat,
            )
    tensors |= {EXP_AVG: moments.exp_avg, EXP_AVG_SQ: moments.exp_avg_sq}
    for level, group in enumerate(split.levels):
        delta = theta[group.where] - model.theta[group.where]
        tensors |= program.outer.pack(level, delta, float(len(mine)))
    if split.private is not None:
        tensors[PRIVATE] = model.theta[split.private.where]
    return Computed(tensors=tensors, tokens=program.tokens_per_round if len(mine) else 0, loss=loss)


def _validated(
    program: DiPaCo,
    path: Path,
    round: int,
    model: FlatModel,
    shards: Arrays,
    own: Arrays,
    beat: Callable[[], None],
) -> dict[str, NDArray[Any]]:
    """How good the path is with averaged modules: its loss now, and its lowest since the router
    that chose these documents."""
    held_out = np.flatnonzero(shards[SHARDS + "validation"] == path.id)
    few = program.documents.validation[held_out[: program.validation_documents]]
    now = float(judge(model.model, few, program.routing.prefix, beat).mean()) if len(few) else 0.0
    lowest, plan = float(own["validation"][1]), program.plan.path
    if round == 1 or plan[round - 2].router_round != plan[round - 1].router_round:
        lowest = float(np.finfo(np.float32).max)
    found: dict[str, NDArray[Any]] = {"validation": np.array([now, min(now, lowest)], np.float32)}
    if program.early_stopping and (now < lowest or not len(few)):
        found["best"] = model.theta.copy()
    return found


def _scored(
    program: DiPaCo,
    doing: PathRound,
    model: FlatModel,
    tensors: Arrays,
    beat: Callable[[], None],
) -> dict[str, NDArray[Any]]:
    """Nothing more is given to modules; the reserved documents are judged if that is due."""
    made: dict[str, NDArray[Any]] = {
        name: np.zeros_like(one) for name, one in tensors.items() if name.startswith("delta/")
    }
    if doing.label:
        if program.early_stopping:
            model.load(tensors["best"])
        losses = judge(model.model, program.documents.reserved, program.routing.prefix, beat)
        made["scores"] = losses.mean(1)
    return made
