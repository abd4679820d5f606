"""The bench's own arithmetic: rows from a log, what they are compared by, a model split anew."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from decentral.bench import dipaco, dipaco_rows
from decentral.dipaco import recipe, split
from decentral.dipaco.flat import FlatModel
from decentral.errors import ConfigError

DOMAINS = ("code", "docstrings")


def line(row: str, seed: int, value: float) -> dict[str, Any]:
    made: dict[str, Any] = {
        "row": row, "seed": seed, "outer_lr": 1.0 if row == "dense" else 0.7, "momentum": 0.5,
        "phases": 10, "steps": 30, "eight_domains": False, "tokens": 1_000_000,
        "training_flops": 3e12, "oracle": value - 0.5, "first_router": value + 0.1,
        "first_router_windowed": value, "last_router": value, "last_router_windowed": value,
        "domains": {domain: [30, 10, 0, 24] for domain in DOMAINS}, "seconds": 1.0,
        "bytes": {"delta": 1, "module": 2, "replica": 3, "diloco_ring": 4},
    }  # fmt: skip
    if row == "2x2":
        made["one_dead"] = [value + 0.2, value + 0.4]
    return made


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    dipaco.add_arguments(parser)
    return parser.parse_args(words)


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # nothing is fetched there
    path = tmp_path / "log.jsonl"
    values = {"dense": 13.0, "2x2": 11.0}
    lines = [line(row, seed, value + seed) for row, value in values.items() for seed in (0, 1)]
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    return path


def test_runs_that_a_log_holds_are_not_made_again(log: Path, tmp_path: Path) -> None:
    picture = tmp_path / "domains.png"
    words = ["--rows", "dense", "2x2", "--seeds", "2", "--log", str(log), "--plot", str(picture)]
    report = dipaco.measure(arguments(*words))
    assert [one["last_router"] for one in report["results"]] == [13.0, 11.0, 14.0, 12.0]
    console = Console(width=150, record=True)
    dipaco.show(report, console)
    shown = console.export_text()
    assert "13.500" in shown and "11.500" in shown and "11.900" in shown  # means; worst dead
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_foreign_line_in_a_log_is_named(log: Path) -> None:
    log.write_text("{}\n")
    with pytest.raises(ConfigError, match="holds a line that is no run"):
        dipaco.measure(arguments("--log", str(log)))


def test_a_start_is_the_same_model_however_it_is_split() -> None:
    config = recipe.GPTConfig(vocabulary=64, context=32, width=16, heads=2, layers=4)
    model = recipe.build(config)
    one = split(model, [1], private=recipe.PRIVATE)
    two = split(model, [(2, ["blocks.1", "blocks.0"]), (2, ["norm", "blocks.3", "blocks.2"])],
                private=["head", "wte", "wpe"])  # fmt: skip
    flat = FlatModel(model, one).theta
    start = {f"theta/{group.name}": flat[group.where] for group in one.groups}
    start |= {name: flat + at for at, name in enumerate(("adam/exp_avg", "adam/exp_avg_sq"), 1)}
    made = dipaco_rows.regrouped(start, one, two)
    again = FlatModel(recipe.build(config), two)
    again.load(np.concatenate([made[f"theta/{group.name}"] for group in two.groups]))
    for name, parameter in model.named_parameters():
        assert (again.model.get_parameter(name) == parameter).all()
    back = dipaco_rows.regrouped(made, two, one)
    for slot in (slot for group in one.groups for slot in group.layout.slots):
        where = slice(slot.offset, slot.offset + slot.size)
        assert np.array_equal(back["adam/exp_avg"][where], start["adam/exp_avg"][where])
