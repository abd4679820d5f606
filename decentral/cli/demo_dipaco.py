"""What ``decentral demo dipaco`` says of the mixture that its peers have trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from decentral.bench import dipaco_rows
from decentral.bench.dipaco_plot import plot
from decentral.dataflow.alone import run_alone
from decentral.dataflow.program import Arrays
from decentral.dipaco import evaluate, recipe
from decentral.dipaco.path_round import BASE, ROUTER
from decentral.dipaco.program import DiPaCo
from decentral.dipaco.split import split
from decentral.errors import ConfigError

WINDOW = 64


def judge(
    program: DiPaCo, states: dict[str, Arrays], baselines: bool, beat: Callable[[str], object]
) -> dict[str, Any]:
    """Validation perplexities per byte, without the prefix; and where the domains went."""
    table = evaluate.losses(program, states)
    documents, route = program.documents.validation, states[ROUTER]
    once = evaluate.ways(program, route, documents)
    often = evaluate.ways(program, route, documents, window=WINDOW)
    dead = [
        evaluate.perplexity(table, evaluate.ways(program, route, documents, dead=[one]))
        for one in range(len(table))
    ]
    result: dict[str, Any] = {
        "routed once": evaluate.perplexity(table, once),
        f"routed anew every {WINDOW} bytes": evaluate.perplexity(table, often),
        "the most needed path dead": max(dead),
        "bound: each document to its best path": evaluate.oracle(table),
    }
    if baselines:
        for name, made in _baselines(program, states).items():
            final = dict(run_alone(made, on_round=lambda cell, round, done: beat(cell)))
            result[name] = evaluate.evaluate(made, final)
    return {"perplexity": result, "domains": dipaco_rows.went_where(program, route)}


def _baselines(program: DiPaCo, states: dict[str, Arrays]) -> dict[str, DiPaCo]:
    """From the same pretrained model, at the same inner steps and batch per path."""

    def one(replicas: int) -> DiPaCo:
        whole = split(
            recipe.build(recipe.CONFIG), [], shared=[*recipe.PRIVATE, "blocks"], replicas=replicas
        )
        return replace(
            program,
            split=whole,
            start=dipaco_rows.regrouped(states[BASE], program.split, whole),
            start_steps=program.first_step,
            pretraining=0,
            reroute_after=(),
            outer=replace(program.outer, sqrt_paths=False)
            if replicas > 1
            else replace(program.outer, lr=1.0, momentum=0.0),
        )

    return {"one dense model, same steps": one(1), "DiLoCo with 4 peers, same tokens": one(4)}


def show(found: dict[str, Any], folder: Path | None, console: Console) -> None:
    table = Table(title="validation perplexity per byte, without the 32-byte prefix")
    table.add_column("run")
    table.add_column("perplexity", justify="right")
    for name, value in found["perplexity"].items():
        table.add_row(name, f"{value:.3f}")
    console.print(table)
    paths = len(next(iter(found["domains"].values())))
    where = Table(title="which domain went where (validation documents per path)")
    where.add_column("domain")
    for path in range(paths):
        where.add_column(f"path {path}", justify="right")
    for domain, counts in found["domains"].items():
        where.add_row(domain, *map(str, counts))
    console.print(where)
    if folder is not None:
        picture = folder / "domains.png"
        row = {"row": "demo", "seed": 0, "outer_lr": 0, "one_dead": [], **found}
        try:
            plot([row], picture)
        except ConfigError as error:  # no matplotlib
            console.print(f"no picture: {error.says}")
        else:
            console.print(f"the same as a picture: {picture}")
