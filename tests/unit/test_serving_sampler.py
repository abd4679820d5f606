"""Images through experts: local as remote, whatever is dead, and nothing disturbs training."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
from served import Served

from decentral.diffusion.ensemble import Ensemble, noise
from decentral.diffusion.program import CLUSTERS, DiffusionProgram
from decentral.diffusion.recipe import tiny
from decentral.diffusion.routing import drawn
from decentral.diffusion.sampling import How, sample
from decentral.errors import ConfigError, ProtocolError, StateError
from decentral.serving import messages
from decentral.serving.messages import SolveRequest, VelocityRequest
from decentral.serving.offer import Denoise
from decentral.serving.parts import Parts, Version
from decentral.serving.sampler import Sampler

HOW = How(steps=4)
CLASSES = np.arange(4).repeat(5)


@pytest.fixture(scope="module")
def program() -> DiffusionProgram:
    full = tiny(0)
    return DiffusionProgram(full.images, replace(full.config, rounds=2), 0)


@pytest.fixture(scope="module")
def trained(program: DiffusionProgram) -> Served:
    return Served(program)


@pytest.fixture
def run(trained: Served, program: DiffusionProgram) -> Served:
    """With a peer that answers from what it fetches itself."""
    run = trained.fresh()
    run.handler = handler(program, run)
    return run


def handler(program: DiffusionProgram, run: Served) -> Any:
    """Both methods, told apart by how many fields there are."""
    denoise = Denoise(program, Parts(run))

    def answer(caller: str, body: bytes) -> bytes:
        return (denoise if len(msgpack.unpackb(body)) == 5 else denoise.solve)(caller, body)

    return answer


def sampler(run: Served, way: str, said: list[str] | None = None) -> Sampler:
    assert isinstance(run.program, DiffusionProgram)
    warn = said.append if said is not None else lambda says: None
    return Sampler(run.program, Parts(run), run, run.log, way=way, warn=warn)


@pytest.mark.parametrize("way", ["full", "top-1", "top-2", "threshold", "sticky"])
@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_local_and_remote_are_the_same_images(run: Served, way: str, solver: str) -> None:
    """And the same as the whole ensemble in one process."""
    how = replace(HOW, way=way, solver=solver, seed=2)
    local, remote = (
        sampler(run, one).sample(20, CLASSES, how, seed=7) for one in ("local", "remote")
    )
    assert (local.way, remote.way, local.lost) == ("local", "remote", ())
    whole = Ensemble(run.program, {cell: one.tensors for cell, one in run.states.items()})
    x = sample(whole.experts(), noise(20, 16, 7), CLASSES, how)
    expected = whole.space.decode(x)
    assert np.array_equal(local.images, expected) and np.array_equal(remote.images, expected)


def test_guidance(run: Served) -> None:
    how = replace(HOW, way="full", guidance=3.0)
    for mode in ("full", "sticky"):
        how = replace(how, way=mode)
        local, remote = (sampler(run, one).sample(20, CLASSES, how) for one in ("local", "remote"))
        assert np.array_equal(local.images, remote.images)
    assert not np.array_equal(sampler(run, "local").sample(20, CLASSES, HOW).images, local.images)


def test_remote_fetches_no_expert_and_local_each_one_once(run: Served) -> None:
    sampler(run, "remote").sample(20, CLASSES, HOW)
    always = [(CLUSTERS, "assignment"), (CLUSTERS, "space/"), ("router", "ema")]
    handlers = [(f"expert/{k}", "ema") for k in range(4)]  # the peer's own
    assert sorted(run.read_cells) == sorted([*always, *handlers])
    run.read_cells.clear()
    local = sampler(run, "local")
    local.sample(20, CLASSES, HOW)
    local.sample(20, CLASSES, HOW)
    assert sorted(run.read_cells) == sorted([*always, *handlers])


@pytest.mark.parametrize("mode", ["full", "sticky"])
def test_large_batches_go_in_several_calls(
    run: Served, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    how = replace(HOW, way=mode)
    whole = sampler(run, "local").sample(20, CLASSES, how).images
    sampler(run, "remote").sample(20, CLASSES, how)
    few = len(run.asked)
    assert few <= (4 * HOW.steps if mode == "full" else 4)
    monkeypatch.setattr("decentral.serving.sampler.rows_at_once", lambda dim, steps=1: 3)
    pieces = sampler(run, "remote").sample(20, CLASSES, how).images
    assert np.abs(pieces.astype(int) - whole).max() <= 1  # another batch size, another rounding
    assert len(run.asked) - few > few


def test_experts_of_one_step_are_asked_at_the_same_time(run: Served) -> None:
    handler, nap_s = run.handler, 0.1
    assert handler is not None

    def slow(caller: str, body: bytes) -> bytes:
        time.sleep(nap_s)
        return handler(caller, body)

    run.handler = slow
    how = replace(HOW, way="full")
    seconds = sampler(run, "remote").sample(20, CLASSES, how).seconds
    assert len(run.asked) == 4 * HOW.steps
    assert HOW.steps * nap_s <= seconds < 2 * HOW.steps * nap_s


def test_a_dead_expert_is_masked_and_named(run: Served) -> None:
    whole = Ensemble(run.program, {cell: one.tensors for cell, one in run.states.items()})
    how = replace(HOW, way="full")
    masked = sample(whole.experts(), noise(20, 16, 0), CLASSES, replace(how, dead=frozenset({2})))
    run.dead = {"expert/2"}
    for way in ("remote", "local"):
        said: list[str] = []
        found = sampler(run, way, said).sample(20, CLASSES, how)
        assert found.lost == (2,) and len(said) == 1
        assert said[0].startswith("expert/2 is lost, samples go on without it")
        assert np.array_equal(found.images, whole.space.decode(masked))
    run.dead = {f"expert/{k}" for k in range(4)}
    with pytest.raises(ConfigError, match="no expert is left"):
        sampler(run, "remote").sample(20, CLASSES, HOW)


def test_sticky_samples_of_the_living_stay_as_they_are(run: Served) -> None:
    healthy = sampler(run, "remote").sample(20, CLASSES, HOW)
    experts = Ensemble(run.program, {CLUSTERS: run.states[CLUSTERS].tensors}).prior
    theirs = drawn(experts[CLASSES], HOW.seed) == 2
    assert 0 < theirs.sum() < 20
    run.dead = {"expert/2"}
    found = sampler(run, "remote").sample(20, CLASSES, HOW)
    off = np.abs(found.images.astype(int) - healthy.images).max(axis=(1, 2))
    assert off[~theirs].max() <= 1 < off[theirs].min()  # 1: other batch sizes round otherwise


def test_training_goes_on_meanwhile(run: Served) -> None:
    """An expert's weights of the beginning are gone: its newest ones are taken."""
    for way in ("remote", "local"):
        said: list[str] = []
        one = sampler(run, way, said)
        for k in range(4):
            run.advance(f"expert/{k}")
        found = one.sample(20, CLASSES, HOW)
        assert not found.lost and not said
        assert np.array_equal(found.images, sampler(run, "local").sample(20, CLASSES, HOW).images)


def test_training_is_not_disturbed(run: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    samplers = [sampler(run, way) for way in ("local", "remote")]
    before = torch.random.get_rng_state()

    def touched(*args: object, **more: object) -> None:
        raise AssertionError("torch's random numbers are training's")

    for name in ("manual_seed", "set_rng_state", "fork_rng"):
        monkeypatch.setattr(torch.random, name, touched)
    for one in samplers:
        one.sample(20, CLASSES, HOW)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("mode", ["sticky", "full"])
@pytest.mark.parametrize("nap_s", [0.0, 0.3])
def test_auto_takes_what_is_quicker(run: Served, nap_s: float, mode: str) -> None:
    """Slow calls: weights are fetched. Slow fetches: they are not."""
    handler, read = run.handler, run.read
    assert handler is not None

    def slow(caller: str, body: bytes) -> bytes:
        time.sleep(nap_s)
        return handler(caller, body)

    def slow_read(*args: Any, **more: Any) -> Any:
        time.sleep(0.0 if nap_s else 3.0)  # far apart: a busy machine slows the other way, too
        return read(*args, **more)

    one = sampler(run, "auto")
    one.sample(20, CLASSES, HOW)  # whatever it is: the peer has what it needs now
    run.handler, run.read = slow, slow_read  # type: ignore[method-assign]
    how = replace(HOW, steps=20, way=mode)
    found = sampler(run, "auto").sample(20, CLASSES, how)
    assert found.way == ("local" if nap_s else "remote")
    run.handler = handler
    again = sampler(run, "remote").sample(20, CLASSES, how)
    assert np.array_equal(found.images, again.images)


def test_auto_is_local_where_all_is_here(run: Served) -> None:
    parts = Parts(run, run.states)
    one = Sampler(run.program, parts, run, run.log)  # type: ignore[arg-type]
    assert one.sample(20, CLASSES, HOW).way == "local"
    assert not run.asked and not run.read_cells


def test_an_untrained_run_says_so(run: Served) -> None:
    run.states["expert/1"] = replace(run.states["expert/1"], round=0)
    with pytest.raises(StateError, match="expert/1 has not been trained yet"):
        sampler(run, "auto")


def test_what_a_peer_refuses(run: Served, program: DiffusionProgram) -> None:
    assert run.handler is not None
    version = Version.newest(run.log(), "expert/1")
    x, t = np.zeros((2, 16), np.float32), np.ones(2, np.float32)
    good = VelocityRequest(version=version, x=x, t=t, classes=np.array([0, 4]))
    assert len(run.handler("peer:a", good.pack())) == 2 * 16 * 4
    for changed, says in (
        ({"version": replace(version, cell="router")}, "there is no expert"),
        ({"version": replace(version, cell="expert/4")}, "there is no expert"),
        ({"x": np.zeros((2, 17), np.float32)}, "d is from 16 to 16"),
        ({"classes": np.array([0, 5])}, "classes are 0 to 4"),
    ):
        with pytest.raises(ProtocolError, match=says):
            run.handler("peer:a", replace(good, **changed).pack())


def test_what_a_peer_refuses_to_solve(run: Served) -> None:
    assert run.handler is not None
    version = Version.newest(run.log(), "expert/1")
    good = SolveRequest(
        version=version,
        x=np.zeros((2, 16), np.float32),
        classes=np.array([0, 3]),
        steps=3,
        solver="euler",
        guidance=1.0,
    )
    assert len(run.handler("peer:a", good.pack())) == 2 * 16 * 4
    for changed, says in (
        ({"version": replace(version, cell="router")}, "there is no expert"),
        ({"x": np.zeros((2, 17), np.float32)}, "d is from 16 to 16"),
        ({"classes": np.array([0, 4])}, "each row has a class"),
        ({"classes": None}, "each row has a class"),
        ({"steps": 0}, "steps is from 1"),
    ):
        with pytest.raises(ProtocolError, match=says):
            run.handler("peer:a", replace(good, **changed).pack())


def test_classes_that_do_not_fit_are_said_here(run: Served) -> None:
    for way in ("remote", "auto"):
        for classes in (None, np.full(20, 4)):
            with pytest.raises(ConfigError):
                sampler(run, way).sample(20, classes, HOW)
    assert not run.asked


def test_an_answer_of_another_size_is_no_answer(run: Served) -> None:
    run.handler = lambda caller, body: bytes(messages.MAX_ROWS)
    with pytest.raises(ConfigError, match="no expert is left"):
        sampler(run, "remote").sample(20, CLASSES, HOW)
