"""Islands without a network: shards as a run's tensors, what ranks conclude, who is alive."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch import nn
from torch.distributed.fsdp import fully_shard

from decentral.errors import ConfigError, DiskError, PeerFailedError
from decentral.islands.entry import island, port_of_rank, shard_tags
from decentral.islands.founding import GivenTensors, gather_shards, pack_layout, unpack_layout
from decentral.islands.pace import Pace, Standing, Verdict
from decentral.islands.shard_save import _together, committed, write_part
from decentral.islands.shard_tensors import ShardTensors, is_sharded
from decentral.islands.talk import Talk
from decentral.islands.watch import Watch
from decentral.leases import LeaseBook
from decentral.peer.admission import Admitted
from decentral.peer.home import Home
from decentral.peer.runtime.card import MembershipCard
from decentral.state import Meta, aligned_zeros, seal
from decentral.strategies import DiLoCo
from decentral.types import Range


@pytest.fixture
def alone() -> Iterator[None]:
    """An island of one rank."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(params=[0, 1])
def of_two(request: pytest.FixtureRequest) -> Iterator[int]:
    """One rank of two, with nobody at the other end: collectives do nothing."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=request.param, world_size=2)
    yield request.param
    dist.destroy_process_group()


def net() -> nn.Sequential:
    """5 rows over two ranks are 3 and 2; the last layer's single row is rank 0's."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1))


def sharded(model: nn.Module | None = None) -> nn.Module:
    model = net() if model is None else model
    fully_shard(model)
    return model


class TestShardTensors:
    def test_uneven_and_empty_shards(self, of_two: int) -> None:
        tensors = ShardTensors(sharded(), of_two, 2)
        shapes = {slot.name: slot.shape for slot in tensors.layout.slots}
        assert shapes == (
            {"0.weight": (3, 2), "0.bias": (3,), "2.weight": (1, 5), "2.bias": (1,)}
            if of_two == 0
            else {"0.weight": (2, 2), "0.bias": (2,)}
        )
        assert set(tensors.whole) == {"0.weight", "0.bias", "2.weight", "2.bias"}

    def test_it_reads_this_ranks_rows_of_the_model(self, of_two: int) -> None:
        rows = net()[0].weight.detach()[3 * of_two : 3 + 2 * of_two]
        tensors = ShardTensors(sharded(), of_two, 2)
        assert np.array_equal(tensors.as_read()[: rows.numel()], rows.numpy().ravel())

    def test_what_is_written_is_in_the_shards(self, of_two: int) -> None:
        model = sharded()
        tensors = ShardTensors(model, of_two, 2)
        saved, before = tensors.save(), tensors.as_read()
        tensors.write(before + 1)
        assert np.array_equal(tensors.as_read()[:4], before[:4] + 1)
        local = model[0].weight.to_local()  # type: ignore[operator, union-attr, index]
        assert np.array_equal(local.detach().numpy().ravel()[:4], before[:4] + 1)
        tensors.restore(saved)
        assert np.array_equal(tensors.as_read(), before)

    def test_a_prefix(self, of_two: int) -> None:
        tensors = ShardTensors(sharded(), of_two, 2)
        whole, part = tensors.as_read(), aligned_zeros(16)
        tensors.read(part)
        assert np.array_equal(part, whole[:16])

    def test_a_forward_pass_alone_does_not_hide_what_is_written(self, alone: None) -> None:
        model = sharded()
        tensors, x = ShardTensors(model, 0, 1), torch.ones(1, 2)
        with torch.no_grad():
            model(x)
            tensors.write(np.zeros_like(tensors.as_read()))
            assert float(model(x)) == 0.0

    def test_padding_is_not_exchanged(self, of_two: int) -> None:
        layout = ShardTensors(sharded(), of_two, 2).layout
        assert sum(slot.size for slot in layout.slots) == (9 + 6 if of_two == 0 else 6)

    def test_frozen_parameters_and_buffers(self, alone: None) -> None:
        model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4))
        model[0].bias.requires_grad_(False)
        layout = ShardTensors(sharded(model), 0, 1).layout
        kinds = {slot.name: slot.kind for slot in layout.slots}
        assert kinds["0.bias"] == "frozen" and kinds["1.running_mean"] == "buffer"
        assert "1.num_batches_tracked" not in kinds

    def test_bf16_shards_have_fp32_masters(self, alone: None) -> None:
        assert ShardTensors(sharded(net().bfloat16()), 0, 1).lossy
        assert not ShardTensors(sharded(), 0, 1).lossy

    def test_a_model_that_is_too_small(self, of_two: int) -> None:
        model = sharded(nn.Linear(1, 1))
        if of_two == 0:
            assert ShardTensors(model, 0, 2).layout.slots
        else:
            with pytest.raises(ConfigError, match="rank 1 has no part of any trainable"):
                ShardTensors(model, 1, 2)

    def test_a_part_that_is_not_sharded(self, alone: None) -> None:
        model = net()
        fully_shard(model[0])
        with pytest.raises(ConfigError, match=r"parameter 2\.weight is not sharded"):
            ShardTensors(model, 0, 1)

    def test_another_placement(self, alone: None) -> None:
        from torch.distributed.device_mesh import init_device_mesh

        model = net()
        fully_shard(model, mesh=init_device_mesh("cpu", (1, 1), mesh_dim_names=("r", "s")))
        with pytest.raises(ConfigError, match="2 dimension"):
            ShardTensors(model, 0, 1)

    def test_the_committed_values_by_name(self, of_two: int) -> None:
        tensors = ShardTensors(sharded(), of_two, 2)
        momentum = aligned_zeros(tensors.layout.trainable)
        held = seal(tensors.layout, tensors.as_read(), momentum, Meta())
        for buffers in (True, False):
            named = committed(tensors, held, buffers=buffers)
            assert {name: one.shape for name, one in named.items()} == {
                slot.name: slot.shape for slot in tensors.layout.slots
            }


class TestVerdict:
    def test_one_is_enough(self) -> None:
        rows = [Standing(False, False, False, 4).row(), Standing(True, False, False, 3).row()]
        verdict = Verdict.of(rows)
        assert (verdict.due, verdict.starved, verdict.ended, verdict.lowest) == (
            True, False, None, 3,
        )  # fmt: skip
        rows.append(Standing(False, True, True, 5).row())
        assert Verdict.of(rows) == Verdict(due=True, starved=True, ended=2, lowest=3)


class Bench:
    """Ranks as threads: what `Talk` does, without torch."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.rows: dict[int, Any] = {}
        self.barrier = threading.Barrier(size, timeout=10)

    def exchange(self, rank: int, value: Any) -> list[Any]:
        self.rows[rank] = value
        self.barrier.wait()
        everybody = [self.rows[one] for one in range(self.size)]
        self.barrier.wait()
        return everybody


class BenchTalk:
    def __init__(self, bench: Bench, rank: int) -> None:
        self.bench, self.rank, self.size = bench, rank, bench.size
        self.on_beat: Callable[[], None] = lambda: None

    def compare(self, row: list[int], meanwhile: Callable[[], None] | None = None) -> Any:
        if meanwhile is not None:
            meanwhile()
        return self.bench.exchange(self.rank, row)

    def share(self, data: bytes | None, root: int = 0) -> bytes:
        return self.bench.exchange(self.rank, data)[root]  # type: ignore[no-any-return]


class Outer:
    """As much of OuterRounds and OuterLoop as a pace looks at."""

    def __init__(self, round: int = 1, steps: int = 0, due: bool = False) -> None:
        self.held, self.work = self, self
        self.round, self.steps, self.due = round, steps, due
        self.ended: str | None = None
        self.asked = self.waiting = False
        self.synchronized = 0
        self.on_synchronize: Callable[[], None] = lambda: None

    def drain(self) -> None: ...

    def wait_until_current(self) -> None: ...

    def contribute(self) -> None:
        self.waiting = True

    def synchronize(self, *, early: bool = False) -> None:
        self.synchronized += 1
        self.round += 1
        self.steps, self.due, self.waiting, self.asked = 0, False, False, False
        self.on_synchronize()


def settle(outers: list[Outer], books: list[LeaseBook] | None = None) -> list[Pace]:
    bench = Bench(len(outers))
    paces = [
        Pace(BenchTalk(bench, n), None, lambda: None, None)  # type: ignore[arg-type]
        for n in range(len(outers))
    ]
    together(
        *(
            lambda n=n: paces[n].settle(  # type: ignore[misc]
                outers[n],
                outers[n],
                books[n] if books else LeaseBook(),
                leased=books is not None,
                stepped=True,
            )
            for n in range(len(outers))
        )
    )
    return paces


def together(*lives: Callable[[], Any]) -> None:
    errors: list[BaseException] = []

    def live(one: Callable[[], Any]) -> None:
        try:
            one()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=live, args=(one,), daemon=True) for one in lives]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), "a rank waits for ever"
    assert not errors, errors


class TestPace:
    def test_nobody_is_due(self) -> None:
        outers = [Outer(steps=2), Outer(steps=2)]
        assert [pace.round for pace in settle(outers)] == [1, 1]
        assert [one.synchronized for one in outers] == [0, 0]

    def test_one_is_asked_and_all_contribute(self) -> None:
        outers = [Outer(steps=2), Outer(steps=2, due=True), Outer(steps=2)]
        assert [pace.round for pace in settle(outers)] == [2, 2, 2]
        assert [one.synchronized for one in outers] == [1, 1, 1]

    def test_who_is_ahead_waits_until_the_others_are_there(self) -> None:
        outers = [Outer(round=4, steps=4, due=True), Outer(round=3, steps=4, due=True)]
        settle(outers)
        assert [one.synchronized for one in outers] == [0, 1]
        assert [one.round for one in outers] == [4, 4]

    def test_one_has_no_samples_left_and_gets_some(self) -> None:
        books = [LeaseBook(), LeaseBook()]
        books[0].grant((Range(0, 4),))
        books[1].grant((Range(4, 8),))
        books[1].hand_out((Range(4, 8),))
        outers = [Outer(steps=1), Outer(steps=2)]
        outers[1].on_synchronize = lambda: books[1].grant((Range(8, 12),))
        settle(outers, books)
        assert [one.synchronized for one in outers] == [1, 1]
        assert books[1].remaining

    def test_the_end_of_one_is_the_end_of_all(self) -> None:
        outers = [Outer(steps=2), Outer(steps=2)]
        outers[1].ended = "the run reached its end at round 7"
        assert [pace.finished for pace in settle(outers)] == [outers[1].ended] * 2
        assert [one.synchronized for one in outers] == [0, 0]

    def test_the_end_comes_with_the_round(self) -> None:
        outers = [Outer(steps=2, due=True), Outer(steps=2, due=True)]
        outers[0].on_synchronize = lambda: setattr(outers[0], "ended", "enough")
        assert [pace.finished for pace in settle(outers)] == ["enough", "enough"]

    def test_who_waits_for_the_others_to_come_in_has_nothing_to_add(self) -> None:
        outers = [Outer(), Outer()]
        outers[0].asked = True
        bench = Bench(2)
        paces = [
            Pace(BenchTalk(bench, n), None, lambda: None, None)  # type: ignore[arg-type]
            for n in (0, 1)
        ]
        together(*(lambda n=n: paces[n].enter(outers[n], outers[n]) for n in (0, 1)))  # type: ignore[misc, arg-type]
        assert not outers[0].waiting and outers[0].synchronized == 1
        assert outers[1].synchronized == 0


def load_parts(folder: Path, into: dict[str, torch.Tensor]) -> None:
    with pytest.warns(UserWarning, match="load in a single process"):
        dcp.load(into, storage_reader=dcp.HuggingFaceStorageReader(str(folder)), no_dist=True)


class TestSave:
    def parts(self, folder: Path, ranks: int, name: str = "w") -> None:
        """A (5, 2) parameter, row by row over so many ranks."""
        rows = np.arange(10, dtype=np.float32).reshape(5, 2)
        for rank, part in enumerate(np.array_split(rows, ranks)):
            start = int(part[0, 0]) // 2
            path = folder / f"shard-{rank + 1:05d}-model-00001-of-00001.safetensors"
            write_part(path, {name: np.ascontiguousarray(part)}, {name: [start, 0]})

    def test_the_parts_of_three_ranks_are_read_as_one(self, tmp_path: Path) -> None:
        self.parts(tmp_path, 3)
        loaded = {"w": torch.zeros(5, 2)}
        load_parts(tmp_path, loaded)
        assert loaded["w"].flatten().tolist() == list(range(10))

    def test_one_rank_cannot_write(self, tmp_path: Path) -> None:
        bench = Bench(2)
        told: list[str] = []

        def fail() -> None:
            raise OSError("no space left")

        def rank(n: int) -> None:
            with pytest.raises(DiskError) as error:
                _together(BenchTalk(bench, n), tmp_path, fail if n else None)  # type: ignore[arg-type]
            told.append(error.value.says)

        together(lambda: rank(0), lambda: rank(1))
        assert told == [f"{tmp_path} could not be written by rank 1: no space left"] * 2


class TestWatch:
    def make(self, size: int = 3) -> list[Watch]:
        bench = Bench(size)
        made: dict[int, Watch] = {}
        together(
            *(
                lambda n=n: made.update({n: Watch(BenchTalk(bench, n))})  # type: ignore[misc, arg-type]
                for n in range(size)
            )
        )
        return [made[n] for n in range(size)]

    def test_goodbyes_are_no_failures(self) -> None:
        watches = self.make()
        together(*(one.close for one in watches))
        assert [one.failure() for one in watches] == [None] * 3
        assert not [t for t in threading.enumerate() if t.name == "island watch"]

    def test_everybody_hears_why_one_failed(self) -> None:
        watches = self.make()
        watches[2].close("the disk is full")
        for one in watches[:2]:
            failure = one.failure(wait_s=5)
            assert failure is not None
            assert "rank 2 of this island has failed: the disk is full" in failure.says
            with pytest.raises(PeerFailedError):
                one.check()
        together(*(one.close for one in watches[:2]))

    @pytest.mark.parametrize("dead", [0, 1])
    def test_everybody_hears_who_died(self, dead: int) -> None:
        watches = self.make()
        for link in watches[dead]._links.values():
            link.shutdown(2)  # as the kernel does for a process that is gone
        for one in (one for n, one in enumerate(watches) if n != dead):
            failure = one.failure(wait_s=5)
            assert failure is not None and f"rank {dead} of this island is gone" in failure.says
        together(*(one.close for one in watches))


def test_a_layout_crosses_the_island(of_two: int) -> None:
    layout = ShardTensors(sharded(), of_two, 2).layout
    assert unpack_layout(pack_layout(layout)) == layout


def test_a_shard_that_is_given_away() -> None:
    layout = unpack_layout(b"\x91\x93\xa1w\xa9trainable\x91\x04")
    flat = aligned_zeros(layout.total)
    flat[:4] = 1, 2, 3, 4
    given = GivenTensors(layout, flat)
    part = aligned_zeros(16)
    given.read(part)
    saved = given.save()
    given.write(part + 1)
    assert given.as_read()[:4].tolist() == [2, 3, 4, 5]
    given.restore(saved)
    assert given.as_read()[:4].tolist() == [1, 2, 3, 4]


def test_talking_to_oneself(alone: None) -> None:
    talk = Talk()
    assert talk.compare([3, 4]) == [[3, 4]]
    assert talk.share(b"word") == b"word" and talk.share(b"") == b""
    assert gather_shards(talk, ShardTensors(sharded(), 0, 1)) == {}


def test_without_a_process_group() -> None:
    with pytest.raises(ConfigError, match="torchrun"):
        Talk()


def test_a_plain_model_is_no_island() -> None:
    model = net()
    assert not is_sharded(model)
    with pytest.raises(ConfigError, match="neither sharded nor replicated"):
        island(model, torch.optim.SGD(model.parameters(), lr=0.1), DiLoCo())


def test_names_and_ports() -> None:
    assert shard_tags(2) == ("shard-0-of-2", "shard-1-of-2")
    assert port_of_rank("0.0.0.0:4242", 3) == "0.0.0.0:4245"
    assert port_of_rank("[::]:0", 3) == "[::]:0"


def test_a_rank_comes_back_with_a_newer_word(tmp_path: Path) -> None:
    """Its credential came by another invite: it must not claim that this one signed it."""

    def card(name: str, *join: str) -> MembershipCard:
        home = Home(tmp_path / name)
        try:
            made = MembershipCard(
                home, home.identity(), name, join=join, credential=None, open_run=False
            )
        finally:
            home.close()
        made.addresses = (f"127.0.0.1:{len(name)}",)
        return made

    founder = card("founder")
    words = [founder.join_word(), founder.join_word()]
    link = b"e" * 32
    for word in words:
        newcomer = card("rank", word)
        inside = founder.admission(newcomer._me.peer_id, True, link)
        outside = newcomer.admission(founder._me.peer_id, False, link)
        say, to = inside.start(), outside
        while say:
            say, to = (
                [m for one in say for m in to.receive(one)],
                inside if to is outside else outside,
            )
        assert isinstance(inside.verdict, Admitted), inside.verdict
        assert isinstance(outside.verdict, Admitted), outside.verdict
    with pytest.raises(ConfigError, match="of run"):
        card("rank", card("another").join_word())


def test_an_island_of_one_rank_trains(alone: None, tmp_path: Path) -> None:
    """All of it but other ranks: founding, rounds, the end, the export."""
    model = sharded()
    x = torch.ones(64, 2)
    data = torch.utils.data.TensorDataset(x, x[:, :1])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with island(
        model, optimizer, DiLoCo(sync_every=2), rounds=3, listen="127.0.0.1:0", home=tmp_path
    ) as run:
        looks: list[int] = []
        run.each_round(lambda run: looks.append(run.round) or {})  # type: ignore[func-returns-value]
        for xs, ys in run.data(data, batch_size=4):
            loss = (model(xs) - ys).square().mean()
            loss.backward()
            run.step(loss)
        assert run.rounds == {"shard-0-of-1": 3} and looks == [1, 2, 3]
        assert run.tokens == 3 * 2 * 4
        saved = run.save(tmp_path / "final")
    weights = {name: p.full_tensor().detach() for name, p in model.named_parameters()}  # type: ignore[operator]
    whole = load_file(saved / "model-00001-of-00001.safetensors")
    assert whole.keys() == weights.keys()
    loaded = {name: torch.zeros_like(one) for name, one in weights.items()}
    load_parts(saved / "sharded", loaded)
    for name, one in weights.items():
        assert torch.equal(one, whole[name]) and torch.equal(one, loaded[name])
    assert (tmp_path / "rank-0" / "checkpoints" / "module-shard-0-of-1").is_dir()
