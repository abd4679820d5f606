"""Text by DiPaCo's paths: local as remote, whatever is dead, and without disturbing training."""

from __future__ import annotations

from dataclasses import replace

import msgpack
import numpy as np
import pytest
import torch
from served import Served

from decentral.dipaco.program import ROUTER, DiPaCo
from decentral.dipaco.recipe import tiny
from decentral.dipaco.router import Routing
from decentral.errors import ConfigError, ProtocolError, StateError
from decentral.serving.messages import TextRequest
from decentral.serving.offer import Generate
from decentral.serving.parts import Parts
from decentral.serving.paths import Paths
from decentral.serving.text import continuation, drawn
from decentral.serving.writer import Wish, Writer

PROMPT = b"0123 4567 8"
WISH = Wish(length=50, window=16, seed=3)


@pytest.fixture(scope="module")
def program() -> DiPaCo:
    return tiny(0, phases=2, reroute_after=(2,))


@pytest.fixture(scope="module")
def trained(program: DiPaCo) -> Served:
    return Served(program)


@pytest.fixture
def run(trained: Served, program: DiPaCo) -> Served:
    """With a peer that answers from what it fetches itself."""
    run = trained.fresh()
    run.handler = Generate(program, Parts(run))
    return run


def writer(run: Served, way: str, said: list[str] | None = None) -> Writer:
    assert isinstance(run.program, DiPaCo)
    warn = said.append if said is not None else lambda says: None
    return Writer(run.program, Parts(run), run, run.log, way=way, warn=warn)


def text(run: Served, way: str, wish: Wish = WISH, prompt: bytes = PROMPT) -> bytes:
    return b"".join(piece.data for piece in writer(run, way).write(prompt, wish))


def test_local_and_remote_are_the_same_bytes(run: Served) -> None:
    local = text(run, "local")
    assert len(local) == 50 and not run.asked
    assert text(run, "remote") == local and run.asked
    assert text(run, "local", replace(WISH, seed=4)) != local
    cold = replace(WISH, temperature=0.0)
    assert text(run, "local", cold) == text(run, "remote", replace(cold, seed=9))


def test_it_streams_and_is_routed_anew(run: Served) -> None:
    pieces = list(writer(run, "remote").write(PROMPT, WISH))
    assert [len(one.data) for one in pieces] == [1, 2, 4, 8, 1] * 3 + [1, 1]
    whole = list(writer(run, "local").write(PROMPT, WISH))
    assert [(one.data, one.path) for one in whole] == [(one.data, one.path) for one in pieces]
    assert {one.way for one in pieces} == {"remote"}
    # Each window's path is the router's first choice for the text so far.
    paths, so_far = Paths(run.program, Parts(run)), PROMPT
    for number, piece in enumerate(pieces):
        if number % 5 == 0:
            assert piece.path == paths.ranked(so_far, run.log())[0]
        so_far += piece.data


def test_the_router_is_asked_as_training_asks_it(run: Served, program: DiPaCo) -> None:
    """A document's prefix leads to the shard that the run has put it in."""
    shards = run.states[ROUTER].tensors["shards/validation"]
    paths, prefix = Paths(program, Parts(run)), program.routing.prefix
    for document, shard in zip(program.documents.validation[:20], shards[:20], strict=True):
        context = document[:prefix].astype(np.uint8).tobytes()
        assert paths.ranked(context, run.log())[0] == f"path/{shard}"


def test_a_path_serves_what_training_says(run: Served, program: DiPaCo) -> None:
    paths = Paths(program, Parts(run))
    states = {cell: state.tensors for cell, state in run.states.items()}
    for cell in program.paths:
        model = paths.model(cell, paths.versions(cell, run.log()))
        theirs = program.build().load(program.serving(cell, states)).model.eval()
        ids = torch.arange(12)[None]
        with torch.no_grad():
            assert torch.equal(model(ids), theirs(ids))


def test_early_stopping_and_features_of_a_language_model() -> None:
    """Other parts then: each path's best phase, and the model that makes the features."""
    routing = Routing(prefix=8, features="lm")
    program = tiny(0, phases=2, reroute_after=(2,), early_stopping=True, routing=routing)
    run = Served(program)
    run.handler = Generate(program, Parts(run))
    paths = Paths(program, Parts(run))
    for cell in program.paths:
        model = paths.model(cell, paths.versions(cell, run.log()))
        theirs = program.build().load(run.states[cell].tensors["best"]).model.eval()
        ids = torch.arange(12)[None]
        with torch.no_grad():
            assert torch.equal(model(ids), theirs(ids))
    shards = run.states[ROUTER].tensors["shards/validation"]
    for document, shard in zip(program.documents.validation[:10], shards[:10], strict=True):
        context = document[:8].astype(np.uint8).tobytes()
        assert paths.ranked(context, run.log())[0] == f"path/{shard}"
    assert text(run, "remote") == text(run, "local")
    assert {prefix for cell, prefix in run.read_cells if cell.startswith("path")} == {"best"}


def test_only_what_a_path_is_made_of_is_fetched_and_only_once(run: Served) -> None:
    one = writer(run, "local")
    list(one.write(PROMPT, replace(WISH, length=10)))
    (cell,) = {cell for cell, prefix in run.read_cells if cell.startswith("path")}
    modules = [module.cell for module in run.program.paths[cell].modules]
    assert sorted(run.read_cells) == sorted(
        [(ROUTER, "route/"), (cell, "private"), *((module, "theta") for module in modules)]
    )
    before = list(run.read_cells)
    list(one.write(PROMPT, replace(WISH, length=10)))
    assert run.read_cells == before


def test_a_dead_path_falls_back_to_the_next(run: Served) -> None:
    ranked = Paths(run.program, Parts(run)).ranked(PROMPT, run.log())
    said: list[str] = []
    run.dead = {ranked[0]}
    for way in ("remote", "local", "auto"):
        pieces = list(writer(run, way, said).write(PROMPT, WISH))
        assert sum(len(piece.data) for piece in pieces) == 50
        assert pieces[0].path == ranked[1] and ranked[0] not in {one.path for one in pieces}
    assert said[0].startswith(f"{ranked[0]} does not answer")
    run.dead = set(run.program.paths)
    with pytest.raises(StateError, match="no path goes on"):
        text(run, "auto")


def test_it_dies_in_the_middle_of_a_window(run: Served) -> None:
    healthy = list(writer(run, "remote").write(PROMPT, WISH))
    stream = writer(run, "remote").write(PROMPT, WISH)
    pieces = [next(stream), next(stream)]
    run.dead = {pieces[0].path}
    pieces += list(stream)
    assert [len(one.data) for one in pieces] == [len(one.data) for one in healthy]
    assert [one.data for one in pieces[:2]] == [one.data for one in healthy[:2]]
    assert pieces[0].path not in {one.path for one in pieces[2:]}


def test_auto_is_local_where_nobody_answers_and_where_it_is_here(run: Served) -> None:
    one = writer(run, "auto")
    assert {piece.way for piece in one.write(PROMPT, WISH)} == {"remote"}
    run.handler, before = None, list(run.asked)
    pieces = list(one.write(PROMPT, WISH))
    assert {piece.way for piece in pieces} == {"local"}
    windows = len({piece.path for piece in pieces})
    assert len(run.asked) == len(before) + windows, "once per path: then it is here"


def test_training_goes_on_meanwhile(run: Served) -> None:
    """What the text began with is gone: what is newest is taken, and nothing is left out."""
    for way in ("remote", "local"):
        said: list[str] = []
        stream = writer(run, way, said).write(PROMPT, WISH)
        first = next(stream)
        for module in run.program.paths[first.path].modules:
            run.advance(module.cell)
        run.advance(ROUTER)
        rest = list(stream)
        assert sum(len(one.data) for one in [first, *rest]) == 50 and not said


def test_training_is_not_disturbed(run: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a writer and a peer's side are made, nothing touches torch's own random numbers: not
    even to put them back, for training draws from them on another thread."""
    writers = [writer(run, way) for way in ("local", "remote")]
    before = torch.random.get_rng_state()

    def touched(*args: object, **more: object) -> None:
        raise AssertionError("torch's random numbers are training's")

    monkeypatch.setattr(torch, "manual_seed", touched)
    monkeypatch.setattr(torch.random, "set_rng_state", touched)
    monkeypatch.setattr(torch.random, "fork_rng", touched)
    for one in writers:
        list(one.write(PROMPT, WISH))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_an_untrained_run_says_so(run: Served) -> None:
    for cell, state in run.states.items():
        run.states[cell] = replace(state, round=0)
    with pytest.raises(StateError, match="no router yet"):
        text(run, "auto")


@pytest.mark.parametrize(
    ("prompt", "says"), [(b"", "at least 2 bytes"), (b"a", "at least 2"), (b"az", "below 64")]
)
def test_prompts_that_cannot_be_read(run: Served, prompt: bytes, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        text(run, "local", prompt=prompt)


@pytest.mark.parametrize(
    "wrong",
    [
        {"length": 0},
        {"window": 0},
        {"temperature": -1},
        {"temperature": float("nan")},
        {"seed": -1},
    ],
)
def test_wishes_that_cannot_be(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Wish(**wrong)


def test_what_a_peer_refuses(run: Served, program: DiPaCo) -> None:
    assert run.handler is not None
    paths = Paths(program, Parts(run))
    good = TextRequest(
        path="path/0",
        versions=paths.versions("path/0", run.log()),
        context=PROMPT,
        place=0,
        count=2,
        temperature=1.0,
        seed=0,
    )
    assert len(run.handler("peer:a", good.pack())) == 2
    other = paths.versions("path/3", run.log())
    for changed, says in (
        ({"path": "path/9"}, "there is no path"),
        ({"path": ROUTER}, "there is no path"),
        ({"versions": other}, "path/0 is made of"),
        ({"versions": good.versions[:1]}, "path/0 is made of"),
        ({"context": bytes(paths.room + 1)}, "a context has up to"),
        ({"context": b"\xff"}, "each below 64"),
    ):
        with pytest.raises(ProtocolError, match=says):
            run.handler("peer:a", replace(good, **changed).pack())
    with pytest.raises(ProtocolError):
        run.handler("peer:a", msgpack.packb([1, 2]))


def test_an_answer_that_is_no_text_is_no_answer(run: Served) -> None:
    run.handler = lambda caller, body: b"\xff"
    with pytest.raises(StateError, match="no path goes on"):
        text(run, "remote")


def test_a_text_does_not_depend_on_how_it_is_cut(program: DiPaCo) -> None:
    model = program.build().model.eval()

    def next_bytes(so_far: bytes, place: int, count: int) -> bytes:
        return continuation(
            model, so_far, count, room=31, place=place, temperature=0.9, seed=5
        )  # fmt: skip

    whole, cut = next_bytes(PROMPT, 0, 40), b""
    while len(cut) < 40:
        cut += next_bytes((PROMPT + cut)[-31:], len(cut), min(7, 40 - len(cut)))
    assert cut == whole


def test_bytes_are_drawn_with_their_probabilities() -> None:
    logits = np.log(np.array([0.1, 0.0, 0.6, 0.3], np.float32) + 1e-30)
    counts = np.bincount([drawn(logits, 1.0, seed) for seed in range(4000)], minlength=4) / 4000
    assert np.abs(counts - [0.1, 0, 0.6, 0.3]).max() < 0.03 and counts[1] == 0
    assert {drawn(logits, 0.0, seed) for seed in range(5)} == {2}
    assert drawn(logits, 1e-6, 1) == 2
