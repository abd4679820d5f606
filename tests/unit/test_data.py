"""Leases and samples: everybody's are different, and each is drawn once per epoch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decentral.data import LeasedData, permute, sample_indices
from decentral.errors import ConfigError
from decentral.leases import LeaseBook, from_ids, merge, subtract, total
from decentral.types import Range

ranges = st.lists(
    st.builds(lambda a, n: Range(a, a + n), st.integers(0, 60), st.integers(0, 20)), max_size=8
)


def ids_of(given_ranges) -> set[int]:
    return {i for r in given_ranges for i in range(r.start, r.stop)}


@given(ranges, ranges)
def test_range_arithmetic_is_set_arithmetic(a, b):
    assert ids_of(merge(a)) == ids_of(a)
    assert total(merge(a)) == len(ids_of(a))
    assert ids_of(subtract(a, b)) == ids_of(a) - ids_of(b)
    assert merge(a) == from_ids(ids_of(a))


@settings(max_examples=60)
@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_permutation_is_a_bijection(n, key):
    image = permute(np.arange(n, dtype=np.uint64), n, key)
    assert sorted(image.tolist()) == list(range(n))


def test_permutation_scatters_and_depends_on_epoch_and_seed():
    ids = np.arange(1000, dtype=np.uint64)
    first, second = sample_indices(ids, 1000, 0), sample_indices(ids + np.uint64(1000), 1000, 0)
    other = sample_indices(ids, 1000, 1)
    assert sorted(first) == sorted(second) == sorted(other) == list(range(1000))
    for pair in ((first, second), (first, other), (first, list(range(1000)))):
        assert sum(a == b for a, b in zip(*pair, strict=True)) < 20


def test_huge_datasets_cost_nothing():
    n = 10**13
    ids = np.array([0, 1, n - 1, n, 5 * n + 3], dtype=np.uint64)
    indices = sample_indices(ids, n, 3)
    assert len(set(indices)) == 5 and all(0 <= i < n for i in indices)


def test_a_lease_goes_through_its_life():
    book = LeaseBook()
    book.grant((Range(0, 10),))
    generation = book.generation
    book.grant((Range(0, 10),))
    assert book.generation == generation, "an unchanged lease disturbs nobody"
    book.hand_out((Range(0, 4),))
    assert book.remaining == (Range(4, 10),) and book.used == ()
    book.stepped()
    book.hand_out((Range(4, 6),))
    assert book.used == (Range(0, 4),)
    book.counted((Range(0, 4),))
    book.grant((Range(4, 10), Range(20, 30)))
    assert book.used == () and book.remaining == (Range(6, 10), Range(20, 30))
    book.discard()
    assert book.remaining == (Range(4, 10), Range(20, 30))


class Squares:
    def __len__(self) -> int:
        return 97

    def __getitem__(self, index: int) -> int:
        return index * index


def leased(book, *, refill, num_workers=0, batch_size=4):
    state = {"finished": False}

    def more() -> bool:
        state["finished"] = not refill()
        return not state["finished"]

    return LeasedData(
        Squares(),
        book,
        batch_size=batch_size,
        seed=5,
        num_workers=num_workers,
        refill=more,
        finished=lambda: state["finished"],
    )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_peers_draw_disjoint_samples_and_together_all(num_workers):
    drawn: list[int] = []
    for peer in range(3):
        book = LeaseBook()
        # 97 samples over 3 peers in two leases each: unequal, and the last batch is short.
        leases = [Range(peer * 20, peer * 20 + 20), Range(60 + peer * 13, min(97, 73 + peer * 13))]

        def refill(book=book, leases=leases) -> bool:
            book.stepped()
            book.counted(book.used)
            book.grant((leases.pop(0),) if leases else ())
            return bool(book.granted)

        for batch in leased(book, refill=refill, num_workers=num_workers):
            drawn.extend(int(value) for value in batch)
    assert sorted(drawn) == [i * i for i in range(97)]


def test_a_lease_that_changes_in_mid_round_ends_the_prefetch():
    book = LeaseBook()
    book.grant((Range(0, 40),))
    seen: list[int] = []
    data = leased(book, refill=lambda: False, num_workers=1)
    for n, batch in enumerate(data):
        seen.extend(int(value) for value in batch)
        book.stepped()
        if n == 1:
            # The others' commit took the rest of this lease away and gave another.
            book.counted(book.used)
            book.grant((Range(50, 54),))
    ids = np.array([*range(8), *range(50, 54)], dtype=np.uint64)
    assert seen == [i * i for i in sample_indices(ids, 97, 5)]


def test_what_cannot_be_leased_is_refused():
    for dataset in ([], iter([1])):
        with pytest.raises(ConfigError, match="dataset"):
            LeasedData(
                dataset,
                LeaseBook(),
                batch_size=1,
                seed=0,
                num_workers=0,
                refill=lambda: False,
                finished=lambda: False,
            )
