"""Several modules with rounds of their own in one trainer: who waits for what, whose samples."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from module_mesh import Hub, ModuleMesh
from safetensors.torch import load_file
from tiny_run import Numbers, loss_of

from decentral.errors import ConfigError
from decentral.modules import Modules
from decentral.options import RunOptions
from decentral.peer.protocol import CloseRound, RollbackEntry
from decentral.run import Run
from decentral.state import Meta
from decentral.strategies import DiLoCo


class Path2(torch.nn.Module):
    """A way through two modules: x ▶ first ▶ second."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = torch.nn.Linear(1, 2)
        self.second = torch.nn.Linear(2, 1)
        self.own = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x)) + self.own


PARTS = {"a": ["first"], "b": ["second"], "c": ["second"]}


def make_run(
    hub: Hub, name: str, held: str, *, tags: str = "abc", founder: bool = False, **options
) -> Run:
    from decentral.model_tensors import ModelTensors

    model = Path2(seed=ord(name))
    given = {t: ModelTensors(Path2(7), PARTS[t]) for t in tags if t not in held}
    return Run(
        hub.meshes[name],
        model,
        torch.optim.SGD(model.parameters(), lr=0.05),
        DiLoCo(sync_every=3, outer_lr=1.0, outer_momentum=0.0),
        RunOptions(**{"rounds": 3, **options}),
        founder=founder,
        modules=Modules(
            tags=tuple(tags),
            held={tag: PARTS[tag] for tag in held},
            given=given if founder else {},
        ),
        make_group=hub.make_group,
    )


def train(run: Run, on_step: Callable[[Run], None] | None = None) -> None:
    for batch in run.data(Numbers(), 2):
        loss_of(run.model, batch).backward()
        run.step(0.0)
        if on_step is not None:
            on_step(run)


def together(*lives: Callable[[], None]) -> None:
    errors: list[BaseException] = []

    def live(one: Callable[[], None]) -> None:
        try:
            one()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=live, args=(one,), daemon=True) for one in lives]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a peer waits for ever"
    assert not errors, errors


def two_paths() -> tuple[Hub, Run, Run]:
    """x trains a and b, y trains a and c."""
    hub = Hub({"a": "xy", "b": "x", "c": "y"})
    return hub, make_run(hub, "x", "ab", founder=True), make_run(hub, "y", "ac")


def state_of(mesh: ModuleMesh, tag: str) -> bytes:
    return mesh.held[tag].root


def test_each_module_is_averaged_among_its_holders():
    hub, one, other = two_paths()
    together(lambda: train(one), lambda: train(other))
    x, y = hub.meshes["x"], hub.meshes["y"]
    assert one.rounds == {"a": 3, "b": 3} and other.rounds == {"a": 3, "c": 3}
    assert one.state_hashes["a"] == other.state_hashes["a"]
    assert one.state_hashes["b"] != other.state_hashes["c"]
    assert {(e.tag, len(e.contributions)) for e in hub.committed} == {("a", 2), ("b", 1), ("c", 1)}
    assert torch.equal(one.model.first.weight, other.model.first.weight)
    assert not torch.equal(one.model.second.weight, other.model.second.weight)
    assert not torch.equal(one.model.own, other.model.own), "what is in no module is one's own"
    assert x.held["a"].tensors.keys() == {
        "param/first.weight", "param/first.bias", "momentum/first.weight", "momentum/first.bias",
        "run/meta",
    }  # fmt: skip
    assert one.fingerprint.digest == other.fingerprint.digest
    assert x.fingerprint == y.fingerprint


def test_a_founder_brings_every_module_and_a_joiner_only_its_own():
    hub, one, other = two_paths()
    together(lambda: train(one), lambda: train(other))
    x, y = hub.meshes["x"].holdings, hub.meshes["y"].holdings
    assert {tag: (h.takes, h.initial is not None) for tag, h in x.items()} == {
        "a": (True, True), "b": (True, True), "c": (False, True),
    }  # fmt: skip
    assert {tag: (h.takes, h.state) for tag, h in y.items()} == {
        "a": (True, None), "c": (True, None),
    }  # fmt: skip


def test_events_and_telemetry_name_the_module():
    hub, one, other = two_paths()
    together(lambda: train(one), lambda: train(other))
    x = hub.meshes["x"]
    for tag in "ab":
        rounds = x.told("round", tag)
        assert [event["round"] for event in rounds] == [1, 2, 3]
        assert list(rounds[0])[:4] == ["event", "tag", "lineage", "epoch"]
        assert rounds[-1]["state_hash"] == state_of(x, tag).hex()
        (done,) = x.told("done", tag)
        assert (done["round"], done["state_hash"]) == (3, rounds[-1]["state_hash"])
        assert x.shown[tag]["tokens"] == rounds[-1]["tokens"]
    assert not x.told("round", "c")


def test_samples_count_under_the_leading_module_alone():
    hub, one, other = two_paths()
    together(lambda: train(one), lambda: train(other))
    for mesh, leading in ((hub.meshes["x"], "a"), (hub.meshes["y"], "a")):
        assert all(bool(leases) == (tag == leading) for tag, _, _, leases in mesh.offers)
        assert all(tokens == 6 for _, _, tokens, _ in mesh.offers)
    counted = [r for e in hub.committed for c in e.contributions for r in c.leases]
    ids = [i for r in counted for i in range(r.start, r.stop)]
    assert len(ids) == len(set(ids)) == 2 * 3 * 6


def test_when_the_leading_module_has_ended_another_one_leads():
    """y's c goes on when a is over; its samples are named by c from then on."""
    hub, one, other = two_paths()
    brought = one._brought
    found = brought._found
    gift = one._modules.given["c"]
    # The founder says how many rounds each module has.

    def with_target(tensors):
        brought._target = Meta(target_rounds=5 if tensors is gift else 3, strategy="diloco")
        return found(tensors)

    brought._found = with_target
    together(lambda: train(one), lambda: train(other))
    assert other.rounds == {"a": 3, "c": 5} and one.rounds == {"a": 3, "b": 3}
    late = [leases for tag, round, _, leases in hub.meshes["y"].offers if round > 3]
    assert len(late) == 2 and all(late)
    frozen = hub.meshes["y"].held["a"].tensors["param/first.weight"]
    assert frozen.tobytes() == other.model.first.weight.detach().numpy().tobytes()


def test_reduces_of_two_modules_run_at_once():
    """The two peers hear of the two attempts in opposite order; waiting for one first would wait
    for ever."""
    hub = Hub({"a": "xy", "b": "xy"})
    one = make_run(hub, "x", "ab", tags="ab", founder=True, rounds=2)
    other = make_run(hub, "y", "ab", tags="ab", rounds=2)
    hub.slow = {"a", "b"}
    ready: dict[tuple[str, int], set[str]] = {}

    def offered(mesh: ModuleMesh, tag: str, round: int) -> None:
        ready.setdefault((tag, round), set()).add(mesh.name)
        if all(ready.get((t, round), set()) == {"x", "y"} for t in "ab"):
            orders = {name: (m, m.order) for name, m in hub.meshes.items()}
            kept: dict[str, list] = {"x": [], "y": []}
            for name, (m, _) in orders.items():
                m.order = kept[name].append
            hub.start("a")
            hub.start("b")
            for name, (m, order) in orders.items():
                m.order = order
                for it in kept[name] if name == "x" else reversed(kept[name]):
                    order(it)

    hub.on_offer = offered
    together(lambda: train(one), lambda: train(other))
    assert one.rounds == other.rounds == {"a": 2, "b": 2}
    assert one.state_hashes == other.state_hashes
    assert hub.meshes["x"].failures == hub.meshes["y"].failures == []


def test_a_module_is_adopted_while_another_one_waits():
    hub = Hub({"a": "x", "b": "x"})
    run = make_run(hub, "x", "ab", tags="ab", founder=True, rounds=1)
    hub.slow = {"b"}
    seen = []

    def adopted(tag: str, adoption, held) -> None:
        seen.append((tag, run.rounds))
        if tag == "a":
            hub.start("b")
        Run._adopted(run, tag, adoption, held)

    run._adopted = adopted
    train(run)
    assert seen == [("a", {"a": 1, "b": 0}), ("b", {"a": 1, "b": 1})]


def test_who_waits_in_one_module_has_nothing_to_add_in_another():
    hub = Hub({"a": "x", "b": "x"})
    run = make_run(hub, "x", "ab", tags="ab", founder=True, rounds=4)
    hub.slow = {"b"}
    asked = []

    def adopted(tag: str, adoption, held) -> None:
        Run._adopted(run, tag, adoption, held)
        if tag == "a" and held.round < 3 and hub.rounds("b") == 0:
            asked.append(held.round)
            hub.meshes["x"].order(CloseRound(held.round + 1, "a"))
        elif tag == "a" and held.round == 3:
            hub.slow = set()
            hub.start("b")

    run._adopted = adopted
    train(run)
    offers = [offer for offer in hub.meshes["x"].offers if offer[0] == "a"]
    assert asked == [1, 2]
    assert [(round, tokens) for _, round, tokens, _ in offers] == [(1, 6), (2, 0), (3, 0), (4, 6)]
    assert [len(leases) for *_, leases in offers] == [1, 0, 0, 1]
    roots = [e.state_root for e in hub.committed if e.tag == "a"]
    assert len(set(roots)) == 4, "the round is in what is hashed"


def test_waiting_is_no_standstill(monkeypatch: pytest.MonkeyPatch):
    """Its holders take their time; who waits for them must not be called hung meanwhile."""
    monkeypatch.setattr("decentral.outer_loop._BEAT_S", 0.01)
    hub = Hub({"a": "x", "b": "x"})
    run = make_run(hub, "x", "ab", tags="ab", founder=True, rounds=1)
    hub.slow = {"b"}
    mesh, beats = hub.meshes["x"], threading.Event()

    def progress(step: int) -> None:
        if step == 0 and not beats.is_set():
            beats.set()
            hub.start("b")

    mesh.progress = progress
    train(run)
    assert beats.is_set() and run.rounds == {"a": 1, "b": 1}


def test_a_failed_attempt_of_one_module_leaves_the_other_alone():
    hub = Hub({"a": "xy", "b": "xy"})
    one = make_run(hub, "x", "ab", tags="ab", founder=True, rounds=2)
    other = make_run(hub, "y", "ab", tags="ab", rounds=2)
    spoiled: list[str] = []

    def make(native, view, me, wanted):
        if not spoiled:
            spoiled.append("b")
            hub.exchange(1, 1, 1, 2).abort("a cable was pulled")
        return hub.make_group(native, view, me, wanted)

    one._rounds["b"].exchange._make_group = make
    together(lambda: train(one), lambda: train(other))
    assert one.state_hashes == other.state_hashes
    failed = {tag for mesh in hub.meshes.values() for tag, *_ in mesh.failures}
    assert failed == {"b"}
    attempts = {(e.tag, e.round): e.attempt for e in hub.committed}
    assert attempts == {("a", 1): 1, ("a", 2): 1, ("b", 1): 2, ("b", 2): 1}


def test_a_stop_in_one_module_ends_all():
    hub, one, other = two_paths()
    one._options = other._options = RunOptions(rounds=9)

    def look(run: Run) -> None:
        if run.rounds["a"] == 1:
            run.stop("enough")

    together(lambda: train(one, look), lambda: train(other))
    assert one.finished == other.finished == "enough"
    for name, tags in (("x", "ab"), ("y", "ac")):
        mesh = hub.meshes[name]
        ends = [e["tag"] for e in mesh.events if e["event"] == "done"]
        assert sorted(ends) == list(tags)
        last = [e["event"] for e in mesh.events if e["event"] in ("round", "done")]
        assert last[-2:] == ["done", "done"]


def test_checkpoints_by_module_and_resume(tmp_path: Path):
    hub = Hub({"a": "x", "b": "x"})
    with make_run(hub, "x", "ab", tags="ab", founder=True, rounds=2, home=tmp_path) as run:
        train(run)
        hashes = run.state_hashes
    folders = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert folders == {"module-a", "module-b"}
    assert hub.meshes["x"].checkpoints["a"][-1] == hub.meshes["x"].checkpoints["b"][-1] == 2
    again = Hub({"a": "x", "b": "x"})
    resumed = make_run(again, "x", "ab", tags="ab", founder=True, rounds=2, home=tmp_path)
    for _ in resumed.data(Numbers(), 2):
        raise AssertionError("it had ended")
    assert resumed.rounds == {"a": 2, "b": 2} and resumed.state_hashes == hashes
    holdings = again.meshes["x"].holdings
    assert all(h.initial is None and h.resumed is not None for h in holdings.values())
    resumed.close()


def test_one_module_goes_back(tmp_path: Path):
    hub = Hub({"a": "x", "b": "x"})
    run = make_run(hub, "x", "ab", tags="ab", founder=True, rounds=4, home=tmp_path)
    first: dict[str, bytes] = {}

    def adopted(tag: str, adoption, held) -> None:
        Run._adopted(run, tag, adoption, held)
        first.setdefault(f"{tag}{held.round}", held.root)

    run._adopted = adopted
    went: list[dict[str, int]] = []

    def look(run: Run) -> None:
        if run.rounds == {"a": 2, "b": 2} and not went:
            entry = RollbackEntry(round=1, state_root=first["b1"], tag="b", reason="asked for")
            hub._state["b"] = run._rounds["b"].held.state
            hub._state["b"] = type(hub._state["b"])(round=1, tensors={}, root=first["b1"])
            hub.tell_all(entry)
            while run.rounds["b"] != 1:
                run._loop.wait_for_news()
            went.append(run.rounds)

    train(run, look)
    assert went == [{"a": 2, "b": 1}]
    assert run.rounds == {"a": 4, "b": 4}
    run.close()
    moved = sorted(p.name for p in (tmp_path / "checkpoints" / "module-b").glob("undone-*"))
    assert moved == ["undone-00000002"]
    assert not list((tmp_path / "checkpoints" / "module-a").glob("undone-*"))


def test_saving_exports_all_modules(tmp_path: Path):
    hub = Hub({"a": "x", "b": "x"})
    with make_run(hub, "x", "ab", tags="ab", founder=True, rounds=1) as run:
        train(run)
        tensors = load_file(run.save(tmp_path / "final"))
    assert tensors.keys() == {"first.weight", "first.bias", "second.weight", "second.bias"}
    with run.outer():
        for name, tensor in tensors.items():
            assert np.array_equal(tensor, run.model.state_dict()[name])


@pytest.mark.parametrize(
    ("tags", "held", "says"),
    [
        (("a", "a"), {"a": ["first"]}, "differ"),
        (("a", ""), {"a": ["first"]}, "not empty"),
        (("a",), {}, "at least one"),
        (("a",), {"b": ["first"]}, "no module 'b'"),
        (("a", "b"), {"a": ["first"], "b": ["first.bias"]}, "first.bias is in modules"),
        (("a",), {"a": ["third"]}, "no tensor and no submodule 'third'"),
    ],
)
def test_modules_that_cannot_be(tags: Sequence[str], held: dict[str, list[str]], says: str):
    from decentral.modules import parts

    with pytest.raises(ConfigError, match=says):
        parts(Path2(1), Modules(tags=tuple(tags), held=held))
