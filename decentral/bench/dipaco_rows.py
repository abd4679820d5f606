"""What `decentral bench dipaco` trains: one program per run, several rows of the table from each.

base ─┬─▶ dense       one path, plain AdamW: as many steps of the same batch
      ├─▶ diloco      one path with four replicas on random shards: as many tokens as 2×2
      ├─▶ 2x2         k-means shards to the end
      ├─▶ 2x2-em      shards by what the paths know best, from half-way
      ├─▶ flat        four paths that share nothing, on the shards of 2x2
      └─▶ 4x4         sixteen paths, four times the documents
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from decentral.dataflow.alone import run_alone
from decentral.dataflow.program import Arrays, Computed
from decentral.dipaco import corpus, evaluate, recipe, traffic
from decentral.dipaco.outer import Outer
from decentral.dipaco.path_round import BASE, ROUTER
from decentral.dipaco.program import DiPaCo
from decentral.dipaco.router import Routing
from decentral.dipaco.split import Split, split

TRAIN, RESERVED, VALIDATION = recipe.DOCUMENTS
WINDOW = 64
PEERS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How long the runs are: equal for all rows."""

    phases: int = 10
    steps: int = 30
    """H."""
    pretraining: int = 6
    """Rounds of H."""
    momentum: float = 0.5
    """μ, for all rows that have an outer optimizer."""


def _split(levels: list[int], replicas: int = 1, *, shared: bool = False) -> Split:
    model = recipe.build(recipe.CONFIG)
    if shared:
        return split(model, [], shared=[*recipe.PRIVATE, "blocks"], replicas=replicas)
    return split(model, levels, private=recipe.PRIVATE)


def base(seed: int, scale: Scale) -> Arrays:
    """What all rows of a seed start from: pretrained, with its optimizer's moments."""
    program = _program(seed, scale, split=_split([1]), pretraining=scale.pretraining)
    states: Arrays = program.initial(BASE)
    for round in range(1, scale.pretraining + 1):
        states = program.compute(BASE, round, states, (), lambda: None).tensors
    return states


def _program(seed: int, scale: Scale, **changes: Any) -> DiPaCo:
    made = recipe.program(
        seed,
        documents=corpus.documents(TRAIN, RESERVED, VALIDATION),
        phases=scale.phases,
        pretraining=0,
        reroute_after=(),
    )
    return replace(made, inner=replace(made.inner, steps=scale.steps), **changes)


def programs(seed: int, scale: Scale, start: Arrays, outer_lr: float) -> Mapping[str, Any]:
    """Name → what makes its program."""
    outer = Outer(lr=outer_lr, momentum=scale.momentum)
    half, end = scale.phases // 2, scale.phases

    def one(levels: list[int] = [2, 2], **changes: Any) -> Callable[[], DiPaCo]:  # noqa: B006
        def make() -> DiPaCo:
            options: dict[str, Any] = {
                "split": _split(levels),
                "outer": outer,
                "reroute_after": (end,),
                **changes,
            }
            its = options["split"]
            options["start"] = regrouped(start, _split([1]), its)
            options["start_steps"] = scale.pretraining * scale.steps
            return _program(seed, scale, **options)

        return make

    grown = {"documents": corpus.documents(4 * TRAIN, RESERVED, VALIDATION)}
    return {
        "dense": one(
            split=_split([], shared=True), outer=Outer(lr=1, momentum=0), reroute_after=()
        ),
        "diloco": one(
            split=_split([], PEERS, shared=True),
            outer=replace(outer, sqrt_paths=False),
            reroute_after=(),
        ),
        "2x2": one(),
        "2x2-em": one(reroute_after=(half, end)),
        "flat": one([4]),
        "2x2-lm": one(routing=Routing(features="lm")),
        "2x2-overlap": one(routing=Routing(overlap=2)),
        "2x2-unbalanced": one(routing=Routing(balanced=False)),
        "2x2-product": one(routing=Routing(product=True)),
        "2x2-early": one(early_stopping=True),
        "2x2-int8": one(outer=replace(outer, codec="int8")),
        "4x4": one([4, 4], **grown),
    }


def regrouped(start: Arrays, was: Split, split: Split) -> Arrays:
    """A base's state for another way of splitting the same model."""
    flat = np.concatenate([start[f"theta/{group.name}"] for group in was.groups])
    made: dict[str, Any] = {}
    theta = _reordered(flat, was, split)
    for group in split.groups:
        made[f"theta/{group.name}"] = theta[group.where].copy()
    for name in ("adam/exp_avg", "adam/exp_avg_sq"):
        made[name] = _reordered(start[name], was, split)
    return made


def _reordered(flat: Any, was: Split, split: Split) -> Any:
    places = {s.name: group.offset + s.offset for group in was.groups for s in group.layout.slots}
    out = np.zeros(split.size, np.float32)
    for group in split.groups:
        for slot in group.layout.slots:
            to, source = group.offset + slot.offset, places[slot.name]
            out[to : to + slot.size] = flat[source : source + slot.size]
    return out


def run(program: DiPaCo, beat: Callable[[str], object] = lambda cell: None) -> dict[str, Any]:
    """Train, and judge in every way that the table has."""
    routers: list[Arrays] = []
    tokens = 0
    ahead = [0]

    def heard(cell: str, round: int, computed: Computed) -> None:
        nonlocal tokens
        tokens += computed.tokens
        if cell == ROUTER:
            routers.append(computed.tensors)
        if cell in program.paths:
            at[cell] = round
            ahead[0] = max(ahead[0], max(at.values()) - min(at.values()))
        beat(cell)

    at = dict.fromkeys(program.paths, 0)
    states = dict(run_alone(program, on_round=heard))
    table = evaluate.losses(program, states)
    validation = program.documents.validation
    result: dict[str, Any] = {
        "tokens": tokens,
        "parameters": program.split.parameters,
        "all_parameters": program.split.all_parameters,
        # 2 per parameter and token forward, 4 backward.
        "training_flops": 6 * program.split.parameters * tokens,
        "most_rounds_ahead": ahead[0],
        "shards": shards(program, routers[-1]),
        "domains": went_where(program, routers[-1]),
        "bytes": bytes_of(program),
        "oracle": evaluate.oracle(table),
    }
    for name, route in {"first": routers[0], "last": routers[-1]}.items():
        once = evaluate.ways(program, route, validation)
        often = evaluate.ways(program, route, validation, window=WINDOW)
        result[f"{name}_router"] = evaluate.perplexity(table, once)
        result[f"{name}_router_windowed"] = evaluate.perplexity(table, often)
    if len(table) > 1:
        result["one_dead"] = [
            evaluate.perplexity(table, evaluate.ways(program, routers[-1], validation, dead=[id]))
            for id in range(len(table))
        ]
    return result


def shards(program: DiPaCo, route: Arrays) -> list[int]:
    """Training documents of each path at the end."""
    return [len(program.shard(path, route)) for path in program.split.grid.paths]


def went_where(program: DiPaCo, route: Arrays) -> dict[str, list[int]]:
    """Of each domain, how many validation documents each path got."""
    documents = program.documents
    chosen = evaluate.ways(program, route, documents.validation)[:, 0]
    size = program.split.grid.size
    return {
        domain: np.bincount(chosen[documents.validation_domains == number], minlength=size).tolist()
        for number, domain in enumerate(documents.domains)
    }


def bytes_of(program: DiPaCo) -> dict[str, int]:
    """Per phase, for the peer of one path."""
    its = traffic.traffic(program)
    return {
        "delta": its.delta,
        "module": its.module,
        "replica": its.replica,
        "diloco_ring": traffic.ring(program.split.size, PEERS),
    }
