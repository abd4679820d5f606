"""DiPaCo as a program: the same bits in any order, modules that take their paths' mean, privacy."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from random import Random

import numpy as np
import pytest

from decentral.dataflow.alone import run_alone
from decentral.dataflow.program import Arrays, Computed, check
from decentral.dipaco import Grid, Inner, Outer, Routing, evaluate, recipe, router, traffic
from decentral.dipaco.documents import Tokens
from decentral.dipaco.phases import Phases
from decentral.dipaco.program import DiPaCo
from decentral.dipaco.split import split
from decentral.errors import ConfigError


def digest(states: Mapping[str, Arrays]) -> str:
    hashed = hashlib.sha256()
    for cell in sorted(states):
        for name in sorted(states[cell]):
            hashed.update(f"{cell} {name}".encode() + states[cell][name].tobytes())
    return hashed.hexdigest()


@cache
def history(seed: int = 0) -> tuple[DiPaCo, dict[tuple[str, int], Arrays]]:
    """A whole run of the tiny recipe, with every round of every cell."""
    program = recipe.tiny(seed)
    seen = {(cell, 0): program.initial(cell) for cell in program.cells}

    def heard(cell: str, round: int, computed: Computed) -> None:
        seen[cell, round] = computed.tensors

    run_alone(program, on_round=heard)
    return program, seen


def ends(program: DiPaCo, seen: dict[tuple[str, int], Arrays]) -> dict[str, Arrays]:
    return {cell: seen[cell, program.rounds(cell)] for cell in program.cells}


# ------------------------------------------------------------------ a program


@pytest.mark.parametrize("order", range(12))
def test_any_order_of_rounds_gives_the_same_bits(order: int) -> None:
    program, seen = history()
    assert digest(run_alone(recipe.tiny(0), random=Random(order))) == digest(ends(program, seen))


@pytest.mark.parametrize(
    "changes",
    [
        {"reroute_after": ()},
        {"reroute_after": (1, 2, 3)},
        {"pretraining": 0},
        {"early_stopping": True},
        {"outer": Outer(lr=0.5, momentum=0.5, codec="int8")},
        {"routing": Routing(prefix=8, size=256, overlap=2)},
        {"routing": Routing(prefix=8, size=256, product=True, balanced=False)},
        {"routing": Routing(prefix=8, features="lm")},
    ],
    ids=str,
)
def test_every_option_runs_to_its_end_in_any_order(changes: Mapping[str, object]) -> None:
    program = recipe.tiny(1, **{"phases": 3, "reroute_after": (2,), **changes})
    first = run_alone(program, random=Random(1))
    assert digest(first) == digest(run_alone(program, random=Random(2)))
    assert evaluate.evaluate(program, dict(first), window=8) < 64  # better than knowing nothing


@pytest.mark.parametrize("levels", [[2, 2], [4, 4]])
def test_no_path_is_more_than_a_phase_ahead(levels: list[int]) -> None:
    whole = recipe.tiny(0).build().model
    program = recipe.tiny(0, split=split(whole, levels, private=recipe.PRIVATE))
    at = dict.fromkeys(program.paths, 0)
    ahead = []

    def heard(cell: str, round: int, _computed: Computed) -> None:
        if cell in at:
            at[cell] = round
            ahead.append(max(at.values()) - min(at.values()))

    run_alone(program, on_round=heard, random=Random(3))
    assert max(ahead) == 1


def test_a_round_is_pure_whoever_computes_it_and_whatever_came_before() -> None:
    _program, seen = history()
    other = recipe.tiny(0)
    for cell, round in (("path/2", 3), ("path/2", 1), ("router", 2), ("module/1/0", 3)):
        inputs = [
            {n: a for n, a in seen[need.cell, need.round].items() if n.startswith(need.prefix)}
            for need in other.inputs(cell, round)
        ]
        before = seen[cell, round - 1]
        for array in [*before.values(), *(a for one in inputs for a in one.values())]:
            array.flags.writeable = False  # nothing given may be written to
        made = other.compute(cell, round, before, inputs, lambda: None).tensors
        check(other, cell, made)
        assert digest({cell: made}) == digest({cell: seen[cell, round]})


def test_a_beat_comes_before_each_step() -> None:
    program, seen = history()
    beats: list[int] = []
    program.compute("base", 1, seen["base", 0], (), lambda: beats.append(1))
    assert len(beats) >= program.inner.steps


def test_the_fingerprint_covers_what_results_depend_on() -> None:
    prints = {
        recipe.tiny(seed, **changes).fingerprint
        for seed, changes in (
            *((0, {}), (1, {}), (0, {"phases": 5}), (0, {"inner": Inner(steps=7)})),
            *((0, {"outer": Outer(lr=0.6)}), (0, {"routing": Routing(prefix=9)})),
            *((0, {"documents": recipe.languages(
                4, train=100, held_out=21, length=32, vocabulary=64)}), (0, {"name": "other"})),
        )
    }  # fmt: skip
    assert len(prints) == 8
    assert recipe.tiny(0).fingerprint == recipe.tiny(0).fingerprint


# ------------------------------------------------------------------ modules


def test_weights_are_normalized_over_the_paths_through_a_module() -> None:
    """Two paths with 30 and 10 samples: over all paths of a run the step would be shorter."""
    outer = Outer(lr=1, momentum=0)
    given = [outer.pack(1, np.full(4, value, np.float32), n) for value, n in ((1, 30), (5, 10))]
    before = outer.found(np.zeros(4, np.float32))
    after = outer.step(before, 1, given)
    np.testing.assert_allclose(after["theta"], -np.sqrt(2) * (0.75 * 1 + 0.25 * 5), rtol=1e-6)
    plain = replace(outer, sqrt_paths=False).step(before, 1, given)
    np.testing.assert_allclose(plain["theta"], -2.0, rtol=1e-6)


def test_momentum_is_nesterovs_and_the_modules_own() -> None:
    outer = Outer(lr=0.5, momentum=0.5)
    state: Arrays = outer.found(np.zeros(3, np.float32))
    theta, velocity = 0.0, 0.0
    for _ in range(3):
        state = outer.step(state, 0, [outer.pack(0, np.ones(3, np.float32), 7)])
        velocity = 0.5 * velocity + 1
        theta -= 0.5 * (1 + 0.5 * velocity)
    np.testing.assert_allclose(state["theta"], theta, rtol=1e-6)
    np.testing.assert_allclose(state["momentum"], velocity, rtol=1e-6)


def test_a_path_without_samples_counts_nothing() -> None:
    outer = Outer(lr=1, momentum=0, sqrt_paths=False)
    given = [outer.pack(0, np.ones(2, np.float32), 3), outer.pack(0, np.ones(2, np.float32), 0)]
    assert outer.step(outer.found(np.zeros(2, np.float32)), 0, given)["theta"].tolist() == [-1, -1]
    assert not outer.scaled_mean(0, given[1:], 2).any()


@pytest.mark.parametrize("codec", ["bf16", "fp16", "int8", "int4", "fp4"])
def test_a_codec_shortens_what_travels_and_hardly_changes_it(codec: str) -> None:
    outer, exact = Outer(codec=codec), Outer()
    delta = np.random.Generator(np.random.Philox(key=1)).normal(size=512).astype(np.float32)
    size = [traffic.size_of(one.packed_schema(0, 512)) for one in (outer, exact)]
    assert size[0] <= 0.55 * size[1]
    mean = outer.scaled_mean(0, [outer.pack(0, delta, 2)], 512)
    assert np.linalg.norm(mean - delta) < 0.25 * np.linalg.norm(delta)


def test_a_module_is_what_its_paths_made_of_it_and_no_other() -> None:
    program, seen = history()
    at = program.plan.training_round(2)
    for cell, module in program.modules.items():
        through = [path for path in program.paths.values() if module in path.modules]
        assert len(through) == 2
        given = [seen[path.cell, at] for path in through]
        made = program.outer.step(seen[cell, 2], module.level, given)
        assert digest({cell: made}) == digest({cell: seen[cell, 3]})


def test_a_delta_is_what_the_steps_changed() -> None:
    """Δ = θ(before) − θ(after), for a run in which one path has all modules to itself."""
    model = recipe.build(recipe.GPTConfig(vocabulary=64, context=32, width=16, heads=2, layers=2))
    alone = split(model, [], shared=["wte", "wpe", "blocks", "norm", "head"])
    outer = Outer(lr=1, momentum=0)  # θ − Δ: what AdamW came to
    program = recipe.tiny(0, split=alone, outer=outer, phases=2, reroute_after=(), pretraining=0)
    states = run_alone(program)
    longer = recipe.tiny(
        0, split=alone, outer=outer, phases=1, reroute_after=(), pretraining=0,
        inner=replace(program.inner, steps=2 * program.inner.steps),
    )  # fmt: skip
    np.testing.assert_allclose(
        states["module/0/0"]["theta"], run_alone(longer)["module/0/0"]["theta"], atol=1e-5
    )


# ------------------------------------------------------------------ paths


def test_private_parameters_go_their_own_ways_and_nobody_asks_for_them() -> None:
    program, seen = history()
    start = seen["base", program.pretraining]["theta/private"]
    ended = [seen[cell, program.rounds(cell)]["private"] for cell in program.paths]
    for own in ended:
        assert not np.array_equal(own, start)
    assert len({own.tobytes() for own in ended}) == len(ended)
    for cell in program.cells:
        for round in range(1, program.rounds(cell) + 1):
            for need in program.inputs(cell, round):
                if need.cell in program.paths:
                    assert need.prefix == "scores" or need.prefix.startswith("delta/")


def test_paths_of_a_phase_start_from_the_modules_committed_state() -> None:
    program, _seen = history()
    at = program.plan.training_round(2)
    for path in program.paths.values():
        needs = program.inputs(path.cell, at)
        assert {(one.cell, one.round) for one in needs} == {
            ("router", 1), *((module.cell, 2) for module in path.modules)
        }  # fmt: skip


def test_shards_cover_the_documents_once_and_replicas_share_them() -> None:
    program, seen = history()
    shards = seen["router", 1]
    parts = [program.shard(path, shards) for path in program.split.grid.paths]
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(program.documents.train)))
    twice = recipe.tiny(0, split=replace(program.split, grid=Grid((2, 2), replicas=2)))
    halves = [twice.shard(path, shards) for path in twice.split.grid.paths]
    assert [p.cell for p in twice.split.grid.paths][:3] == ["path/0.0", "path/0.1", "path/1.0"]
    assert sorted([*halves[0], *halves[1]]) == parts[0].tolist()


def test_early_stopping_serves_the_parameters_with_the_lowest_loss() -> None:
    program = recipe.tiny(0, early_stopping=True, inner=Inner(steps=6, batch_size=8, lr=0.5))
    losses: dict[str, list[float]] = {cell: [] for cell in program.paths}

    def heard(cell: str, _round: int, computed: Computed) -> None:
        if cell in losses:
            losses[cell].append(float(computed.tensors["validation"][0]))

    states = dict(run_alone(program, on_round=heard))
    for cell in program.paths:
        assert states[cell]["validation"][1] == min(losses[cell][3:])  # the newest shards'
        assert np.array_equal(program.serving(cell, states), states[cell]["best"])


# ------------------------------------------------------------------ what comes out


def test_paths_that_share_modules_beat_one_model_of_the_same_size() -> None:
    """Four languages, as many steps and the same batch: what DiPaCo is for."""
    steps = Inner(steps=25, batch_size=8, lr=2e-2)
    mixture = recipe.tiny(0, inner=steps, phases=5, reroute_after=(3, 5))
    whole = split(mixture.build().model, [], shared=["wte", "wpe", "blocks", "norm", "head"])
    dense = recipe.tiny(
        0, inner=steps, phases=5, reroute_after=(), split=whole, outer=Outer(lr=1, momentum=0)
    )
    paths, one = (dict(run_alone(program)) for program in (mixture, dense))
    assert evaluate.evaluate(mixture, paths) < 0.92 * evaluate.evaluate(dense, one)


def order(program: DiPaCo, route: Arrays, context: Tokens) -> list[int]:
    """Path ids, the best for one context first."""
    scores = router.score(route, program.featurizer(route)(context[None]))[0]
    return [int(one) for one in np.argsort(-scores, kind="stable")]


def test_a_dead_path_is_replaced_by_the_next_in_the_routers_order() -> None:
    program, seen = history()
    route = seen["router", 3]
    ids = program.documents.validation
    healthy = evaluate.ways(program, route, ids)
    best, second, *_ = order(program, route, ids[0, :8])
    assert (healthy[0] == best).all()
    assert (evaluate.ways(program, route, ids, dead=[best])[0] == second).all()
    with pytest.raises(ConfigError, match="every path is dead"):
        evaluate.ways(program, route, ids, dead=range(4))


def test_windows_route_anew_from_the_whole_context() -> None:
    program, seen = history()
    route, ids = seen["router", 3], program.documents.validation
    often = evaluate.ways(program, route, ids, window=8)
    for start in (0, 8, 16):
        best = order(program, route, ids[3, : 8 + start])[0]
        assert (often[3, start : start + 8] == best).all()


def test_perplexity_leaves_the_prefix_out_and_looks_ways_up() -> None:
    losses = np.log(np.array([[[2.0, 2, 8, 8]], [[5, 5, 5, 5]]], np.float32))
    ways = np.array([[0, 0, 1, 1]])
    assert evaluate.perplexity(losses, ways) == pytest.approx((2 * 2 * 5 * 5) ** 0.25)
    program, seen = history()
    table = evaluate.losses(program, ends(program, seen))
    assert table.shape == (4, len(program.documents.validation), 32 - 8)
    assert evaluate.oracle(table) <= evaluate.evaluate(program, ends(program, seen))


def test_private_parameters_save_bytes() -> None:
    program, _ = history()
    moved = traffic.traffic(program)
    shared = sum(group.size for group in program.split.levels)
    assert moved.module == 4 * shared
    assert moved.delta == 4 * shared + 4 * len(program.split.levels)
    assert moved.replica > moved.delta
    assert traffic.ring(1000, 4) == 6000


# ------------------------------------------------------------------ plans


def test_the_plan_says_which_round_is_made_from_which() -> None:
    plan = Phases(3, (2,))
    kinds = [("train" if one.train else "score", one.phase, one.module_round) for one in plan.path]
    assert kinds == [("train", 1, 1), ("train", 2, 2), ("score", 2, 3), ("train", 3, 3),
                     ("score", 3, 4)]  # fmt: skip
    assert [one.router_round for one in plan.path] == [1, 1, 1, 2, 2]
    assert (plan.module_rounds, plan.router_rounds) == (4, 2)
    assert (plan.training_round(3), plan.labelling_round(2)) == (4, 3)


@pytest.mark.parametrize("after", [(0,), (4,), (2, 1), (1, 1)])
def test_a_plan_that_cannot_be_says_so(after: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="ascending list of phases from 1 to 3"):
        Phases(3, after)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"phases": 0}, "at least one phase"),
        ({"outer": lambda: Outer(codec="sign")}, "codec is one of"),
        ({"outer": lambda: Outer(momentum=1)}, "momentum is in"),
        ({"inner": lambda: Inner(steps=0)}, "at least 1"),
        ({"routing": lambda: Routing(size=100)}, "power of two"),
        ({"routing": lambda: Routing(prefix=32)}, "leaves nothing"),
        ({"start": {}, "pretraining": 2}, "not both"),
        ({"routing": lambda: Routing(prefix=8, overlap=5)}, "more than the 4 paths"),
        ({"routing": lambda: Routing(prefix=8, features="lm", lm_module="ln")}, "submodule 'ln'"),
    ],
)
def test_options_are_checked_when_a_program_is_made(options: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        recipe.tiny(0, **{name: one() if callable(one) else one for name, one in options.items()})
