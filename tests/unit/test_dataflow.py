"""Programs of cells: what may be computed, who does it, and that nothing of that changes a bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_program import Toy

from decentral.dataflow.agenda import LATE_S, Agenda, Mine
from decentral.dataflow.alone import run_alone
from decentral.dataflow.handover import pack, seal, size_of, unpack
from decentral.dataflow.leases import Assignment
from decentral.dataflow.program import Arrays, Computed, Input, check, specs_of
from decentral.dataflow.progress import Progress
from decentral.dataflow.store import Store
from decentral.errors import ConfigError
from decentral.types import PeerId


def same(one: Mapping[str, Arrays], other: Mapping[str, Arrays]) -> bool:
    return all(
        np.array_equal(one[cell][name], other[cell][name]) for cell in one for name in one[cell]
    )


def peers(count: int) -> tuple[PeerId, ...]:
    return tuple(f"peer:{number}" for number in range(count))


# ---------------------------------------------------------------- order


@pytest.mark.parametrize("seed", range(8))
def test_any_order_gives_the_same_bits(seed: int) -> None:
    toy = Toy(size=3, last=3)
    assert same(run_alone(toy, random=Random(seed)), run_alone(toy))


@pytest.mark.parametrize("seed", range(4))
def test_no_path_is_more_than_one_phase_ahead(seed: int) -> None:
    at = dict.fromkeys(Toy(size=3).cells, 0)

    def look(cell: str, round: int, computed: Computed) -> None:
        at[cell] = round
        paths = [at[one] for one in at if one.startswith("path")]
        assert max(paths) - min(paths) <= 1, at

    run_alone(Toy(size=3, last=5), random=Random(seed), on_round=look)


def test_a_cell_waits_until_its_round_is_not_needed_any_more() -> None:
    progress = Progress(Toy())
    at = {**dict.fromkeys(Toy().paths, 1), **dict.fromkeys(Toy().modules, 0)}
    assert progress.ready(at) == Toy().modules  # no path may forget its Δ of round 1 yet
    at["row/0"] = 1
    assert "path/00" not in progress.ready(at)  # column/0 still wants its Δ
    at["column/0"] = 1
    assert "path/00" in progress.ready(at)


class Contradiction(Toy):
    """Two cells wait for each other."""

    def inputs(self, cell: str, round: int) -> tuple[Input, ...]:
        ahead = round if cell.startswith("path") else 0
        return tuple(
            Input(one.cell, one.round + bool(ahead), one.prefix)
            for one in super().inputs(cell, round)
        )


def test_a_program_that_cannot_go_on_says_so() -> None:
    with pytest.raises(ConfigError, match="stands still"):
        run_alone(Contradiction())


def test_what_does_not_fit_the_schema_is_named() -> None:
    toy, tensors = Toy(), dict(Toy().initial("row/0"))
    tensors["theta"] = tensors["theta"].astype(np.float64)
    with pytest.raises(ConfigError, match=r"row/0.*theta.*float64"):
        check(toy, "row/0", tensors)
    with pytest.raises(ConfigError, match="momentum"):
        check(toy, "row/0", {"theta": toy.initial("row/0")["theta"]})


# ---------------------------------------------------------------- leases


@given(st.integers(1, 12), st.integers(1, 3), st.integers(1, 4))
def test_everything_is_kept_often_enough_and_work_is_shared_out(
    count: int, copies: int, size: int
) -> None:
    toy, members = Toy(size=size), peers(count)
    leases = Assignment(toy, copies).leases(members)
    assert leases.keys() == set(toy.cells)
    for cell, keepers in leases.items():
        assert len(keepers) == len(set(keepers)) == min(copies, count), cell
    workers = [leases[path][0] for path in toy.paths]
    most = -(-len(toy.paths) // count)
    assert max(workers.count(peer) for peer in members) <= most
    assert leases == Assignment(toy, copies).leases(tuple(reversed(members)))


def test_modules_are_kept_by_those_whose_paths_go_through_them() -> None:
    toy = Toy()
    leases = Assignment(toy, 2).leases(peers(4))
    for module in toy.modules:
        workers = {leases[path][0] for path in toy.through(module)}
        assert set(leases[module]) == workers, "no byte more than an all-reduce would move"


@given(st.integers(3, 16), st.data())
def test_a_death_moves_little(count: int, data: st.DataObject) -> None:
    toy, members = Toy(size=4), peers(count)
    gone = data.draw(st.sampled_from(members))
    before = Assignment(toy, 2).leases(members)
    after = Assignment(toy, 2).leases([peer for peer in members if peer != gone])
    lost = sum(before[path][0] == gone for path in toy.paths)
    moved = sum(before[path][0] not in (gone, after[path][0]) for path in toy.paths)
    assert moved <= len(toy.paths) // 2 + lost


# ---------------------------------------------------------------- the agenda


class World:
    """A run with an idealized log: a round is committed as soon as `copies` members keep it and one
    of them has it computed. Peers are slow, hung, die and come; nothing else is simulated."""

    def __init__(self, toy: Toy, seed: int, copies: int = 2) -> None:
        self.toy, self.copies, self.random = toy, copies, Random(seed)
        self.at = dict.fromkeys(toy.cells, 0)
        self.states: dict[str, Arrays] = {cell: toy.initial(cell) for cell in toy.cells}
        self.now, self.number = 0.0, 0
        self.agendas: dict[PeerId, Agenda] = {}
        self.mine: dict[PeerId, Mine] = {}
        self.speed: dict[PeerId, float] = {}
        self.busy: dict[PeerId, tuple[str, int, float]] = {}
        self.computed = 0
        self.first_committed: dict[str, list[int]] = {cell: [] for cell in toy.cells}

    @property
    def members(self) -> tuple[PeerId, ...]:
        return tuple(self.agendas)

    def come(self, speed: float = 1.0) -> PeerId:
        peer = f"peer:{self.number}"
        self.number += 1
        self.agendas[peer] = Agenda(self.toy, peer, self.copies)
        self.mine[peer], self.speed[peer] = Mine(), speed
        return peer

    def die(self, peer: PeerId) -> None:
        for of in (self.agendas, self.mine, self.speed, self.busy):
            of.pop(peer, None)  # type: ignore[attr-defined]

    def turn(self) -> None:
        self.now += 0.5
        for peer in self.random.sample(self.members, len(self.members)):
            self._finish(peer)
            if peer not in self.busy and self.speed[peer] > 0:
                agenda, mine = self.agendas[peer], self.mine[peer]
                cell = agenda.next(self.members, self.at, mine, self.now)
                if cell is not None:
                    took = 1.0 / self.speed[peer] if self.toy.leased(cell) else 0.01
                    self.busy[peer] = (cell, self.at[cell] + 1, self.now + took)
        self._commit()

    def _finish(self, peer: PeerId) -> None:
        if peer not in self.busy:
            return
        cell, round, until = self.busy[peer]
        if self.at[cell] >= round:
            del self.busy[peer]  # given up: others have it
        elif self.now >= until:
            del self.busy[peer]
            self.mine[peer].done[cell] = round
            self.computed += 1

    def _commit(self) -> None:
        for cell in self.toy.cells:
            round = self.at[cell] + 1
            having = [p for p in self.members if self.mine[p].done.get(cell) == round]
            kept = set(having)
            if self.toy.leased(cell):
                leases = Assignment(self.toy, self.copies).leases(self.members)
                kept |= set(leases[cell])
            if having and len(kept) >= min(self.copies, len(self.members)):
                needs = self.toy.inputs(cell, round)
                for need in needs:
                    assert self.at[need.cell] == need.round, f"{cell} {round}: {need} is gone"
                inputs = [self.states[need.cell] for need in needs]
                done = self.toy.compute(cell, round, self.states[cell], inputs, lambda: None)
                self.states[cell], self.at[cell] = done.tensors, round
                for peer in self.members:
                    self.mine[peer].done.pop(cell, None)

    def run(self, turns: int) -> bool:
        for _ in range(turns):
            self.turn()
            if Progress(self.toy).finished(self.at):
                return True
        return False


@pytest.mark.parametrize("seed", range(30))
def test_runs_end_with_the_same_bits_whoever_comes_and_dies(seed: int) -> None:
    toy, random = Toy(size=3, last=6), Random(seed)
    world = World(toy, seed)
    for _ in range(random.randint(1, 6)):
        world.come(random.choice([0.2, 1.0, 3.0]))
    for _ in range(12):
        if world.run(random.randint(1, 12)):
            break
        if len(world.members) > 1 and random.random() < 0.6:
            world.die(random.choice(world.members))
        if random.random() < 0.6 or len(world.members) < 2:
            world.come(random.choice([0.2, 1.0, 3.0]))
    world.come()
    assert world.run(3000), f"seed {seed}: stands still at {world.at}"
    assert same(world.states, run_alone(toy)), f"seed {seed}"


def test_a_hung_peer_holds_nobody_up_for_long() -> None:
    toy = Toy(size=2, last=3)
    world = World(toy, 0)
    for _ in range(4):
        world.come()
    world.speed[world.members[1]] = 0.0  # it takes leases and does nothing
    assert world.run(400)
    assert world.now < 3 * 4 * (LATE_S + 2)


def test_idle_peers_take_from_the_end_of_long_queues() -> None:
    """Sixteen paths, four peers, one of them ten times slower: it does less than its fourth."""
    times = {}
    for speed in (1.0, 0.1):
        world = World(Toy(size=4, last=3), 0)
        for _ in range(4):
            world.come()
        world.speed[world.members[0]] = speed
        assert world.run(2000)
        times[speed] = world.now
    assert times[0.1] < 4 * times[1.0], times  # 10 times, if nobody helped


def test_nobody_lets_go_of_what_those_who_should_keep_it_do_not_hold() -> None:
    toy, members = Toy(), peers(5)
    keepers = Assignment(toy, 2).leases(members)["row/0"]
    outside = next(peer for peer in members if peer not in keepers)
    agenda = Agenda(toy, outside, 2)
    assert agenda.passed_on(members, "row/0", [*keepers, outside])
    assert not agenda.passed_on(members, "row/0", [keepers[0], outside])
    assert not Agenda(toy, keepers[0], 2).passed_on(members, "row/0", keepers)


def test_equal_peers_do_nothing_twice() -> None:
    world = World(Toy(size=2, last=5), 0)
    for _ in range(4):
        world.come()
    assert world.run(200)
    assert world.computed == 5 * (4 + 2 * 4)  # each module by both of its keepers


# ---------------------------------------------------------------- bytes


def test_a_state_survives_the_wire_bit_for_bit() -> None:
    toy = Toy()
    schema = toy.schema("path/01")
    tensors = {
        name: np.frombuffer(Random(7).randbytes(one.nbytes), dtype=one.dtype).reshape(one.shape)
        for name, one in toy.initial("path/01").items()
    }
    data = pack(schema, tensors)
    assert data.size == size_of(schema)
    back = unpack(schema, data)
    for name, one in tensors.items():
        assert back[name].tobytes() == one.tobytes(), name


def test_the_disk_gives_back_what_was_committed_and_nothing_else(tmp_path: object) -> None:
    from pathlib import Path

    toy = Toy()
    store = Store(Path(str(tmp_path)), toy, lambda: b"run")
    rounds = [
        seal({name: one + np.uint8(n) for name, one in toy.initial("row/0").items()}, n)
        for n in (1, 2, 3)
    ]
    for state in rounds:
        store.save("row/0", state)
    assert store.kept("row/0") == (2, 3)
    back = store.load("row/0", 3, rounds[2].root)
    assert back is not None and same({"": back.tensors}, {"": rounds[2].tensors})
    assert store.load("row/0", 3, rounds[1].root) is None
    assert store.load("row/0", 1, rounds[0].root) is None
    assert store.load("row/1", 3, rounds[2].root) is None


def test_schemas_are_sorted() -> None:
    names: Sequence[str] = [spec.name for spec in specs_of(Toy().initial("path/00"))]
    assert list(names) == sorted(names)
