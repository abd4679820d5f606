"""Iterable datasets: every sample once per epoch, whoever reads it, and the others are refused."""

from __future__ import annotations

import threading
from collections import Counter

import numpy as np
import pytest
import torch
from fake_mesh import Cluster
from hypothesis import given, settings
from hypothesis import strategies as st
from leased_batches import batches_of
from tiny_run import loss_of, make_run

from decentral.data import Shards, check_dataset, source_of
from decentral.data.streams import Cursor, StreamSamples
from decentral.errors import ConfigError
from decentral.leases import LeaseBook
from decentral.peer.leases import LeaseLedger
from decentral.types import Contribution, Range


class Count:
    """Replayable: 0, 1, 2, … below `n`. Notes where it was opened."""

    def __init__(self, n: int, length: int | None = None) -> None:
        self.n, self.opened = n, []
        if length is not None:
            self.length = length

    def iter_from(self, offset: int):
        self.opened.append(offset)
        return iter(range(offset, self.n))


class Plain:
    """An iterable that begins anew each time: the least that a shard can be."""

    def __init__(self, samples) -> None:
        self.samples, self.times = samples, 0

    def __iter__(self):
        self.times += 1
        return iter(self.samples)


class Parts:
    """Shardable: shard i holds (i, 0), (i, 1), …"""

    def __init__(self, sizes, seeks: bool = False, declared: bool = False) -> None:
        self.sizes, self.seeks, self.asked = sizes, seeks, []
        self.num_shards = len(sizes)
        if declared:
            self.shard_lengths = tuple(sizes)

    def shard(self, num_shards: int, index: int):
        assert num_shards == self.num_shards
        self.asked.append(index)
        if self.seeks:
            return Pairs(index, self.sizes[index])
        return Plain([(index, k) for k in range(self.sizes[index])])


class Pairs:
    def __init__(self, index: int, n: int) -> None:
        self.index, self.n = index, n

    def iter_from(self, offset: int):
        return ((self.index, k) for k in range(offset, self.n))


# ---------------------------------------------------------------------------- one stream


def test_neighbours_are_read_on_and_jumps_seek():
    stream = Count(1000)
    cursor = Cursor(stream, "it")
    read = [cursor.read(i) for i in [*range(10, 20), 500, 501, 3, 4, 5]]
    assert read == [*range(10, 20), 500, 501, 3, 4, 5]
    assert stream.opened == [10, 500, 3]


def test_a_plain_shard_reads_on_goes_back_a_little_and_begins_again_for_more():
    shard = Plain(range(1000))
    cursor = Cursor(shard, "it")
    assert [cursor.read(i) for i in (5, 600, 601, 590, 400, 602)] == [5, 600, 601, 590, 400, 602]
    assert shard.times == 1
    assert cursor.read(10) == 10
    assert shard.times == 2


@settings(max_examples=60)
@given(
    n=st.integers(1, 30),
    seeks=st.booleans(),
    declared=st.booleans(),
    positions=st.lists(st.integers(0, 120), max_size=30),
)
def test_a_stream_that_ends_begins_again_in_whatever_order_it_is_read(
    n, seeks, declared, positions
):
    stream = Count(n) if seeks else Plain(range(n))
    cursor = Cursor(stream, "it", n if declared else None)
    assert [cursor.read(p) for p in positions] == [p % n for p in positions]


@pytest.mark.parametrize("before", [[], [0], [4], [4, 0], [1, 3]])
def test_the_end_is_found_from_wherever_one_has_read(before):
    cursor = Cursor(Count(5), "it")
    for position in before:
        assert cursor.read(position) == position
    assert [cursor.read(position) for position in (12, 5, 9, 10)] == [2, 0, 4, 0]


@pytest.mark.parametrize("stream", [Count(7), Plain(range(7))])
def test_a_stream_shorter_or_longer_than_it_says_is_an_error(stream):
    with pytest.raises(ConfigError, match="it ended after 7 samples; it should have 9"):
        [Cursor(stream, "it", 9).read(i) for i in range(9)]
    with pytest.raises(ConfigError, match="it goes on after the 5 samples"):
        [Cursor(stream, "it", 5).read(i) for i in range(5)]


def test_nothing_in_it_is_an_error():
    for stream in (Count(0), Plain([])):
        with pytest.raises(ConfigError, match="it has no samples"):
            Cursor(stream, "it").read(3)


# ---------------------------------------------------------------------------- shards

sizes = st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any)


@given(sizes, st.booleans(), st.integers(1, 3))
def test_declared_shards_give_every_sample_once_per_epoch(sizes, seeks, epochs):
    samples = StreamSamples(Parts(sizes, seeks=seeks, declared=True))
    n = sum(sizes)
    everything = [(i, k) for i, size in enumerate(sizes) for k in range(size)]
    assert [samples[id] for id in range(epochs * n)] == everything * epochs


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.booleans())
def test_shards_of_unknown_length_take_turns_and_have_their_own_epochs(sizes, seeks):
    samples = StreamSamples(Parts(sizes, seeks=seeks))
    passes = 3
    seen = [samples[id] for id in range(len(sizes) * max(sizes) * passes)]
    for i, size in enumerate(sizes):
        own = [k for shard, k in seen if shard == i]
        assert own == [k % size for k in range(len(own))]


def test_who_comes_late_opens_only_the_shard_that_it_needs():
    parts = Parts([100] * 50, declared=True)
    samples = StreamSamples(parts)
    assert [samples[id] for id in (4320, 4321)] == [(43, 20), (43, 21)]
    assert parts.asked == [43]


def test_many_shards_of_unknown_length_are_asked_for_in_few_parts():
    class Thousand:
        num_shards = 1000

        def shard(self, num_shards: int, index: int):
            return Plain(range(index, 1000, num_shards))

    samples = StreamSamples(Thousand())
    assert sorted(samples[id] for id in range(1000 - 1000 % 16)) == list(range(992))


def test_lengths_can_be_counted():
    shards = Shards.counted(Parts([4, 0, 7]))
    assert shards.shard_lengths == (4, 0, 7)
    assert check_dataset(shards, 1) == 11


def test_lengths_that_cannot_be():
    for lengths in ([1, 2], [1, 2, -1], [0, 0, 0]):
        with pytest.raises(ConfigError, match=r"shard_lengths|lengths of shards"):
            Shards(Parts([1, 2, 3]), lengths)
    for length in (0, -1, 2.5):
        with pytest.raises(ConfigError, match="length of a stream"):
            source_of(Count(9, length=length))


# ---------------------------------------------------------------------------- what peers compare


def test_peers_see_other_lengths_and_other_digests():
    marked = Count(9, length=9)
    marked.digest = "abc"
    facts = [
        source_of(dataset).fact
        for dataset in (
            Count(9, length=9),
            Count(9, length=8),
            Count(9),
            marked,
            Parts([2, 3], declared=True),
            Parts([3, 2], declared=True),
            Parts([3, 2]),
            Parts([3, 2, 1]),
        )
    ]
    assert len(set(facts)) == len(facts)
    assert source_of(Shards(Parts([2, 3]), [2, 3])).fact == facts[4]


# ---------------------------------------------------------------------------- refused


class TorchStream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(range(5))


class ReplayableTorchStream(TorchStream):
    def iter_from(self, offset: int):
        return iter(range(offset, 5))

    def __len__(self) -> int:
        return 5


@pytest.mark.parametrize("dataset", [TorchStream(), iter(range(5)), Plain(range(5)), {1, 2}, None])
def test_without_ids_it_is_refused_and_says_what_to_implement(dataset):
    with pytest.raises(ConfigError, match=r"iter_from\(offset\).*shard\(num_shards, index\)"):
        check_dataset(dataset, 1)


def test_torch_streams_are_streams():
    assert [source_of(ReplayableTorchStream()).samples[i] for i in (3, 4, 5)] == [3, 4, 0]


def test_a_shard_that_is_its_own_iterator_is_refused():
    class OneShot:
        num_shards = 1

        def shard(self, num_shards: int, index: int):
            return iter(range(5))

    with pytest.raises(ConfigError, match="only once"):
        StreamSamples(OneShot())[0]


# ---------------------------------------------------------------------------- peers and leases

STEPS = st.lists(
    st.tuples(st.sampled_from(["use", "use", "die", "join", "undo"]), st.integers(0, 3)),
    max_size=40,
)


@settings(max_examples=80, deadline=None)
@given(
    steps=STEPS,
    share=st.integers(1, 13),
    sizes=sizes,
    kind=st.sampled_from(["seeks", "plain", "one", "turns", "turns, seeking"]),
)
def test_whatever_happens_committed_samples_are_whole_epochs(steps, share, sizes, kind):
    """Peers join, die and go back; each new process reads with cursors of its own."""
    turns = kind.startswith("turns")
    if turns:
        sizes = [size or 1 for size in sizes]
    n = sum(sizes)
    everything = [(i, k) for i, size in enumerate(sizes) for k in range(size)]

    def fresh() -> StreamSamples:
        if kind == "one":
            return StreamSamples(Count(n, length=n))
        return StreamSamples(Parts(sizes, seeks="seek" in kind, declared=not turns))

    names = [f"peer:{i}" for i in range(4)]
    readers = {names[0]: fresh()}
    ledger = LeaseLedger(share=share).top_up([names[0]])
    rounds: list[tuple[tuple[Range, ...], list]] = []
    for what, index in steps:
        name = names[index]
        if what == "join" and name not in readers:
            readers[name] = fresh()
        elif what == "die" and name in readers and len(readers) > 1:
            [readers[name][i] for one in ledger.granted(name) for i in range(one.start, one.stop)]
            del readers[name]
            ledger = ledger.take_back(name)
        elif what == "use" and name in readers:
            used = ledger.granted(name)
            ids = [i for one in used for i in range(one.start, one.stop)]
            rounds.append((used, [readers[name][i] for i in ids]))
            ledger = ledger.consume([Contribution(peer=name, tokens=1, leases=used)])
        elif what == "undo" and rounds:
            ledger = ledger.give_back(rounds.pop()[0])
        ledger = ledger.top_up(sorted(readers))
    # One peer is left and takes what the others had, to the end of an epoch that has begun.
    for name in sorted(readers)[1:]:
        ledger = ledger.take_back(name)
    last = min(readers)
    ledger = ledger.grant(last, -ledger.next % n + sum(len(one) for one in ledger.returned))
    ids = [i for one in ledger.granted(last) for i in range(one.start, one.stop)]
    committed = Counter([s for _, samples in rounds for s in samples])
    committed.update(readers[last][i] for i in ids)
    assert ledger.next % n == 0
    if turns:  # as many of each shard as of the others, and over and over again
        each = [(i % len(sizes), i // len(sizes)) for i in range(ledger.next)]
        assert committed == Counter((shard, at % sizes[shard]) for shard, at in each)
    else:
        expected = everything if kind != "one" else range(n)
        assert committed == Counter(dict.fromkeys(expected, ledger.next // n))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_read_streams(num_workers):
    leases = [(Range(0, 10),), (Range(30, 45),), (Range(10, 13), Range(60, 70))]
    expected = [i % 50 for one in leases for r in one for i in range(r.start, r.stop)]
    for dataset in (Count(50, length=50), Shards(Parts1(50), [50])):
        data = batches_of(dataset, LeaseBook(), list(leases), num_workers=num_workers)
        seen = [int(sample) for batch in data for sample in batch]
        assert seen == expected


def test_streams_that_split_themselves_among_workers_are_read_whole():
    class Splits:
        def __iter__(self):
            info = torch.utils.data.get_worker_info()
            first, step = (0, 1) if info is None else (info.id, info.num_workers)
            return iter(range(first, 40, step))

    class One:
        num_shards = 1

        def shard(self, num_shards: int, index: int):
            return Splits()

    data = batches_of(One(), LeaseBook(), [(Range(0, 40),)], num_workers=2)
    assert [int(sample) for batch in data for sample in batch] == [*range(40)]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_lease_that_changes_in_mid_round_loses_and_doubles_nothing(num_workers):
    book = LeaseBook()
    book.grant((Range(0, 80),))
    seen: list[int] = []
    # At the end comes what a dead peer left.
    data = batches_of(Parts1(200), book, [(Range(90, 97),)], num_workers=num_workers)
    for n, batch in enumerate(data):
        seen.extend(int(sample) for sample in batch)
        book.stepped()
        if n % 3 == 2:
            # A commit counts what was used; workers have read ahead of it.
            left = book.remaining
            book.counted(book.used)
            book.grant((*left, *((Range(100, 112),) if n == 5 else ())))
    assert seen == [*range(80), *range(100, 112), *range(90, 97)]


class Parts1:
    """One plain shard of integers."""

    num_shards = 1

    def __init__(self, n: int) -> None:
        self.n = n

    def shard(self, num_shards: int, index: int):
        return Plain(range(self.n))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_stream_that_lies_ends_with_its_sentence_also_from_a_worker(num_workers):
    data = batches_of(Count(7, length=9), LeaseBook(), [(Range(0, 9),)], num_workers=num_workers)
    with pytest.raises(ConfigError) as caught:
        list(data)
    assert str(caught.value) == ("the stream ended after 7 samples; it should have 9 (phase: data)")


# ---------------------------------------------------------------------------- in a run


class Line:
    """Replayable, finite: (x, 2x), and which one it is."""

    length = 60

    def iter_from(self, offset: int):
        return (((k % 17) / 17, 2 * (k % 17) / 17, k) for k in range(offset, self.length))


def test_peers_of_a_run_share_a_stream():
    cluster = Cluster(3)
    runs = [make_run(cluster, i, rounds=4) for i in range(3)]
    drawn: list[int] = []
    errors: list[BaseException] = []

    def one(run) -> None:
        try:
            for x, y, which in run.data(Line(), 2):
                drawn.extend(which.tolist())
                loss = loss_of(run.model, (x, y))
                loss.backward()
                run.step(loss)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(run,), daemon=True) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert not errors
    # Four rounds of three peers with three steps of two: an epoch and a fifth.
    assert sorted(drawn) == sorted([*range(60), *range(12)])
    counted = sorted(r for ranges in cluster.samples_per_peer().values() for r in ranges)
    assert [i for r in counted for i in range(r.start, r.stop)] == list(range(72))
    assert np.unique([run.state_hash for run in runs]).size == 1


def test_a_run_refuses_what_has_no_ids():
    cluster = Cluster(1)
    with make_run(cluster) as run, pytest.raises(ConfigError, match="iter_from"):
        run.data(TorchStream(), 2)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_streaming_datasets_are_shardable_as_they_are(num_workers):
    package = pytest.importorskip("datasets")
    rows = package.Dataset.from_dict({"n": list(range(60))})
    stream = rows.to_iterable_dataset(num_shards=3).map(lambda row: {"n": row["n"] * 10})
    assert source_of(stream).length is None
    shards = Shards.counted(stream)
    assert shards.shard_lengths == (20, 20, 20)
    for dataset in (stream, shards):
        leases = [(Range(0, 31),), (Range(31, 60),)]
        data = batches_of(dataset, LeaseBook(), leases, num_workers=num_workers)
        seen = [int(n) for batch in data for n in batch["n"]]
        assert sorted(seen) == [10 * n for n in range(60)]
