"""Islands without a network: shards as a run's tensors, replicas, exports."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from island_bench import Bench, BenchTalk, together
from safetensors.torch import load_file
from torch import nn
from torch.distributed.fsdp import fully_shard

from decentral.errors import ConfigError, DiskError
from decentral.inner_step import InnerStep
from decentral.islands.entry import island, port_of_rank, shard_tags
from decentral.islands.founding import GivenTensors, gather_shards, pack_layout, unpack_layout
from decentral.islands.replicas import ReplicatedRun
from decentral.islands.shard_save import _together, committed, write_part
from decentral.islands.shard_tensors import ShardTensors, is_sharded
from decentral.islands.talk import Talk
from decentral.lifetime import in_full
from decentral.peer.admission import Admitted
from decentral.peer.home import Home
from decentral.peer.runtime.card import MembershipCard
from decentral.state import Meta, aligned_zeros, seal
from decentral.strategies import DiLoCo


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


def test_replicas_of_one_rank_train(alone: None, tmp_path: Path) -> None:
    """DDP: rank 0 leases, trains and exports what the plain model would be."""
    model = nn.parallel.DistributedDataParallel(net())
    x = torch.ones(64, 2)
    data = torch.utils.data.TensorDataset(x, x[:, :1])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with island(model, optimizer, DiLoCo(sync_every=2), rounds=3, listen="127.0.0.1:0") as run:
        assert isinstance(run, ReplicatedRun) and run.run is not None
        with pytest.raises(ConfigError, match="num_workers"):
            run.data(data, batch_size=4, num_workers=1)
        for xs, ys in run.data(data, batch_size=4):
            assert xs.shape == (4, 2)
            (model(xs) - ys).square().mean().backward()
            run.step(0.0)
        assert (run.round, run.tokens, run.state_hash) == (3, 24, run.run.state_hash)
        assert run.finished == "the run reached its end at round 3"
        assert run.join_word == run.run.join_word
        saved = load_file(run.save(tmp_path / "final"))
    assert saved.keys() == dict(model.module.named_parameters()).keys()
    for name, parameter in model.module.named_parameters():
        assert torch.equal(saved[name], parameter)


def test_a_follower_takes_what_rank_0_has_changed(alone: None) -> None:
    """Rank 0's news: indices, the clock, and that its optimizer starts afresh."""
    model = nn.Linear(1, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    step = InnerStep(optimizer)
    news = [
        ([0, 1], None, 1, 0, (8, 0.5, 0.25), (0, 0, "aa")),
        ([2], None, 1, 1, (16, 1.0, 0.5), (1, 8, "bb")),
        (None, "enough", 2, 1, (16, 1.0, 0.5), (1, 8, "bb")),
    ]

    class Told:
        rank, size = 0, 1

        def share(self, data: bytes | None, root: int = 0) -> bytes:
            assert data is None
            return bytes(msgpack.packb(news.pop(0)))

    talk: Any = Told()
    talk.rank, talk.size = 1, 2
    watch: Any = None
    run = ReplicatedRun(talk, watch, model, step, None, None, "word")
    batches = []
    for batch in run.data([[0.5], [1.0], [1.5]], batch_size=1, collate=torch.tensor):
        batches.append(batch.flatten().tolist())
        assert len(optimizer.state) == (0 if run.progress.tokens == 16 else len(optimizer.state))
        model(batch).sum().backward()
        run.step(0.0)
    assert batches == [[1.0], [1.5]], "its own samples; one of the others' where there is none"
    assert run.progress.fraction == 0.5 and run.state_hash == "bb" and run.finished == "enough"


def test_what_other_processes_hear_of_an_error() -> None:
    assert in_full(ValueError("no such column")) == "ValueError: no such column"
    assert in_full(ConfigError("batch_size is at least 1")) == "batch_size is at least 1"
    assert in_full(KeyboardInterrupt()) == "interrupted"
