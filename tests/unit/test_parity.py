"""Bit parity over real endpoints: all members hold equal bits, and those that numpy computes.

Every codec, schedule, number of members and odd size, weighted and not, among members that differ
in whatever they may differ in: chunk sizes, streams per link.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from groups import endpoints, group_of
from hypothesis import given, settings
from hypothesis import strategies as st

from decentral.collectives import CODECS, SCHEDULES, Group, Network, reference, topk
from decentral.collectives.codecs import codec_named
from decentral.collectives.reference_codecs import topk_decode, topk_encode
from decentral.collectives.schedules import all_gather, broadcast, reduce_scatter
from decentral.errors import ConfigError, MismatchError

CHUNK_BYTES = [1024, 20_000, 100, 64 << 10, 5000, 512 << 10]
"""By rank: each cuts what it receives in its own way. Whole blocks of 256 values, at least one."""
STREAMS = [1, 3, 2]
CARRIED = ("fp32", "bf16", "fp16")
"""Codecs whose infinities and NaN stay where they are; the others lose a block to them."""

rounds = itertools.count(1)


def connected(members: int, **options: Any) -> Any:
    return endpoints(
        members, bulk_streams=[STREAMS[r % len(STREAMS)] for r in range(members)],
        silence_limit_ms=20_000, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def ends(request: pytest.FixtureRequest) -> Iterator[list[Any]]:
    """As many connected endpoints as the parameter says; three of them encrypt."""
    with connected(request.param, encrypt=request.param == 3) as made:
        yield made


@pytest.fixture(scope="module")
def meshes() -> Iterator[dict[int, list[Any]]]:
    """Connected endpoints by their number."""
    with ExitStack() as stack:
        yield {n: stack.enter_context(connected(n, encrypt=False)) for n in range(1, 7)}


def unequal(members: int, seed: int = 0) -> Network:
    """Rates and delays far apart, and sites of 1, 3, 5 and 7 members."""
    random = np.random.default_rng([members, seed])
    return Network(
        up_bytes_s=tuple(10 ** random.uniform(6, 8, members)),
        down_bytes_s=tuple(10 ** random.uniform(6, 8, members)),
        rtt_s=random.uniform(0, 0.1, (members, members)),
        sites=tuple(math.isqrt(rank) for rank in range(members)),
    )


def groups_of(ends: Sequence[Any], network: Network) -> list[Group]:
    return [group_of(ends, rank, network=network) for rank in range(len(ends))]


def sources(members: int, count: int, seed: int = 0) -> list[Any]:
    """Standard normal, some stretches of other magnitudes."""
    random = np.random.default_rng([members, count, seed])
    shifts = np.repeat(10.0 ** random.integers(-3, 4, count // 500 + 1), 500)[:count]
    return [(random.standard_normal(count) * shifts).astype(np.float32) for _ in range(members)]


def expected(
    codec: str, schedule: str, network: Network, given: list[Any], weights: list[float] | None
) -> list[Any]:
    """What every member shall hold."""
    members = len(given)
    own = [1.0] * members if weights is None else [float(np.float32(w)) for w in weights]
    scale = np.float32(1.0 / math.fsum(own))
    with np.errstate(all="ignore"):
        if codec == "topk":
            total = np.zeros_like(given[0])
            for source, weight in zip(given, own, strict=True):
                if weight:
                    sent = topk_decode(topk_encode(source, topk.K), source.size, topk.K)
                    kept = sent != 0
                    total[kept] += (np.float32(weight) * scale * sent)[kept]
            return [total] * members
        plans = [SCHEDULES[schedule].plan(network, r, given[0].size) for r in range(members)]
        return reference.execute(
            plans, given, codec=codec, final_codec=codec_named(codec).final, weights=own,
            scale=float(scale),
        )  # fmt: skip


class Reduction:
    """One all-reduce that runs on all members of a mesh, and what must come of it."""

    def __init__(
        self, groups: list[Group], codec: str, schedule: str, given: list[Any],
        weights: list[float] | None = None, chunk_bytes: Sequence[int] = CHUNK_BYTES,
    ) -> None:  # fmt: skip
        self.case = (len(groups), codec, schedule, given[0].size, weights)
        self._asked = (codec, schedule, groups[0].network, given, weights)
        self._originals = [source.copy() for source in given]
        self.results = [np.full(source.shape, -7, np.float32) for source in given]
        number = next(rounds)
        self._works = [
            group.all_reduce(
                source, result, codec, schedule=schedule, weights=weights, round=number, attempt=0,
                chunk_bytes=chunk_bytes[group.rank % len(chunk_bytes)],
            )
            for group, source, result in zip(groups, given, self.results, strict=True)
        ]  # fmt: skip

    def check(self) -> Any:
        """Waits; all members hold the reference's bits. Returns them."""
        for work in self._works:
            assert work.wait(60), self.case
        for source, original in zip(self._asked[3], self._originals, strict=True):
            assert source.tobytes() == original.tobytes(), ("a source was written", self.case)
        for result, reference_s in zip(self.results, expected(*self._asked), strict=True):
            assert result.tobytes() == self.results[0].tobytes(), ("members differ", self.case)
            assert same_bits(result, reference_s), ("not the reference's bits", self.case)
        return self.results[0]


def same_bits(ours: Any, theirs: Any) -> bool:
    """Which NaN it is may differ between numpy and native code."""
    nan = np.isnan(theirs)
    return np.array_equal(nan, np.isnan(ours)) and ours[~nan].tobytes() == theirs[~nan].tobytes()


def permitted(codec: str) -> list[str]:
    rides_ring = codec_named(codec).rides_ring
    return [name for name in SCHEDULES if SCHEDULES[name].permits(rides_ring=rides_ring)]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("ends", [2, 3, 4, 5, 8, 16], indirect=True)
def test_every_codec_schedule_and_size(ends: list[Any], codec: str) -> None:
    members = len(ends)
    groups = groups_of(ends, unequal(members))
    # A weight of zero is an absence: what that member has, it keeps to itself.
    weights = [(0.5, 2.0, 0.0, 1.0)[rank % 4] for rank in range(members)]
    large = 70_001 if members < 5 else 30_011
    for schedule in permitted(codec):
        running = []
        for count in (0, 1, 7, 5003, large):
            running.append(Reduction(groups, codec, schedule, sources(members, count)))
            if count in (7, 5003):
                given = sources(members, count, seed=1)
                for source in given[2::4]:
                    source[:] = np.nan
                running.append(Reduction(groups, codec, schedule, given, weights))
        for reduction in running:  # all of them at once
            assert np.isfinite(reduction.check()).all()


@pytest.mark.parametrize(
    ("codec", "schedule"), [(codec, name) for codec in CODECS for name in permitted(codec)]
)
@pytest.mark.parametrize("ends", [4], indirect=True)
def test_what_is_not_finite_stays_in_its_place_or_takes_its_block(
    ends: list[Any], codec: str, schedule: str
) -> None:
    count, block = 5003, codec_named(codec).block
    given = sources(4, count)
    given[0][17] = np.nan
    given[1][1300] = np.inf
    given[2][[1300, 2600]] = -np.inf  # 1300: the opposite of what another member has
    given[3][5002] = -np.nan
    hit = np.zeros(count, bool)
    hit[[17, 1300, 2600, 5002]] = True
    result = Reduction(groups_of(ends, unequal(4)), codec, schedule, given).check()
    if codec in CARRIED:
        assert np.array_equal(~np.isfinite(result), hit)
        assert result[2600] == -np.inf
        assert np.isnan(result[[17, 1300, 5002]]).all()
    elif codec == "topk":
        chunks = np.add.reduceat(hit, range(0, count, block)) > 0
        spoiled = np.add.reduceat(np.isnan(result), range(0, count, block)) > 0
        assert np.array_equal(chunks, spoiled) and not np.isinf(result).any()
    else:
        # The sums of signs travel in blocks of int8.
        block = max(block, codec_named(codec_named(codec).final).block)
        whole = np.repeat(np.add.reduceat(hit, range(0, count, block)) > 0, block)[:count]
        assert np.array_equal(np.isnan(result), whole) and not np.isinf(result).any()


@pytest.mark.parametrize("codec", [codec for codec in CODECS if codec != "topk"])
@pytest.mark.parametrize("ends", [3, 5], indirect=True)
def test_one_way_operations(ends: list[Any], codec: str) -> None:
    members, network = len(ends), unequal(len(ends))
    groups = groups_of(ends, network)
    for count in (0, 1, 7, 5003, 20_000):
        given, cuts = sources(members, count), groups[0].cuts(count)
        call = {"round": next(rounds), "attempt": 0}
        rooms = [np.empty(count, np.float32) for _ in groups]
        scattered = [
            group.reduce_scatter(
                source, room, codec, tag=0, chunk_bytes=CHUNK_BYTES[group.rank], **call
            )
            for group, source, room in zip(groups, given, rooms, strict=True)
        ]
        gathers = [source.copy() for source in given]
        gathered = [
            group.all_gather(room, codec, tag=1, chunk_bytes=CHUNK_BYTES[group.rank], **call)
            for group, room in zip(groups, gathers, strict=True)
        ]
        copies = [source.copy() for source in given]
        spread = [
            group.broadcast(copy, 1, codec, tag=2, chunk_bytes=CHUNK_BYTES[group.rank], **call)
            for group, copy in zip(groups, copies, strict=True)
        ]
        for work in (*scattered, *gathered, *spread):
            assert work.wait(60)
        ranks = range(members)
        scale = float(np.float32(1 / members))
        parts = reference.execute(
            [reduce_scatter.plan(network, r, cuts) for r in ranks], given, codec=codec,
            scale=scale, scatter=True,
        )  # fmt: skip
        for group, room, part in zip(groups, rooms, parts, strict=True):
            assert room[group.part(count)].tobytes() == part[group.part(count)].tobytes()
        for plans, results in (
            ([all_gather.plan(network, r, cuts) for r in ranks], gathers),
            ([broadcast.plan(network, r, count, root=1) for r in ranks], copies),
        ):
            for result, right in zip(
                results, reference.execute(plans, given, codec=codec), strict=True
            ):
                assert result.tobytes() == results[0].tobytes() == right.tobytes()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("ends", [3], indirect=True)
def test_half_precision_buffers_are_rounded_once(ends: list[Any], schedule: str) -> None:
    groups, call = groups_of(ends, unequal(3)), {"round": next(rounds), "attempt": 0}
    given = [np.clip(source, -1e4, 1e4).astype(np.float16) for source in sources(3, 5003)]
    results = [np.empty_like(source) for source in given]
    works = [
        group.all_reduce(source, result, schedule=schedule, **call)
        for group, source, result in zip(groups, given, results, strict=True)
    ]
    for work in works:
        assert work.wait(60)
    wide = [source.astype(np.float32) for source in given]
    right = expected("fp32", schedule, unequal(3), wide, None)[0].astype(np.float16)
    assert all(result.tobytes() == right.tobytes() for result in results)


@settings(deadline=None, derandomize=True, max_examples=300, print_blob=True)
@given(
    members=st.integers(1, 6),
    count=st.sampled_from([0, 1, 7, 255, 256, 257, 4099]) | st.integers(0, 12_000),
    codec=st.sampled_from(CODECS),
    chunk_bytes=st.lists(st.integers(1, 40_000), min_size=1, max_size=6),
    seed=st.integers(0, 2**32),
    data=st.data(),
)
def test_any_operation_gives_the_references_bits(
    meshes: dict[int, list[Any]], members: int, count: int, codec: str, chunk_bytes: list[int],
    seed: int, data: st.DataObject,
) -> None:  # fmt: skip
    schedule = data.draw(st.sampled_from(permitted(codec)))
    shares = st.floats(0, 1000, width=32, allow_subnormal=False)
    weights = data.draw(
        st.none() | st.lists(shares, min_size=members, max_size=members).filter(lambda w: sum(w))
    )
    groups = groups_of(meshes[members], unequal(members, seed))
    given = sources(members, count, seed)
    Reduction(groups, codec, schedule, given, weights, chunk_bytes).check()


@pytest.mark.parametrize("ends", [4], indirect=True)
def test_who_disagrees_is_named_and_nobody_gets_a_sum(ends: list[Any]) -> None:
    count = 3000
    groups, other = groups_of(ends, unequal(4)), group_of(ends, 2, network=unequal(4, seed=1))
    given = sources(4, count)

    def differs(match: str, odd: Group = groups[2], **changed: Any) -> None:
        call = {"round": next(rounds), "attempt": 0, "schedule": "butterfly"}
        works = [
            group.all_reduce(source, np.empty(count, np.float32), **call)
            for group, source in zip(groups, given, strict=True)
            if group.rank != 2
        ]
        works.append(odd.all_reduce(given[2], np.empty(count, np.float32), **{**call, **changed}))
        for work in works:
            with pytest.raises(MismatchError, match=match) as caught:
                work.wait(30)
            assert caught.value.peer in groups[0].view.members

    differs("scale", weights=[1, 1, 2, 1])
    differs("codec int4", codec="int4")
    differs("schedule ring", schedule="ring")
    differs("segments", odd=other)
    subset = [group.subgroup(group.view.members[1:]) for group in groups[1:]]
    differs("member", odd=subset[1])
    Reduction(groups, "int8", "hierarchical", given).check()


@pytest.mark.parametrize("ends", [4], indirect=True)
def test_a_name_that_is_in_use_is_refused_without_harm(ends: list[Any]) -> None:
    groups, call = groups_of(ends, unequal(4)), {"round": next(rounds), "attempt": 0, "tag": 3}
    given, results = sources(4, 5003), [np.empty(5003, np.float32) for _ in ends]
    works = [groups[0].all_reduce(given[0], results[0], schedule="tree", **call)]
    twin = groups[0].all_reduce(given[0], np.empty(5003, np.float32), schedule="tree", **call)
    with pytest.raises(ConfigError, match="running already"):
        twin.wait(30)
    works += [
        group.all_reduce(source, result, schedule="tree", **call)
        for group, source, result in zip(groups[1:], given[1:], results[1:], strict=True)
    ]
    for work in works:
        assert work.wait(60)
    right = expected("fp32", "tree", unequal(4), given, None)[0]
    assert all(result.tobytes() == right.tobytes() for result in results)
