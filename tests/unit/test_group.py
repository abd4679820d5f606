"""Groups over real endpoints in one process: the engine's bits are the reference's."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from groups import endpoints, group_of, mesh, sources

from decentral.collectives import Group, Network
from decentral.errors import AbortedError, ConfigError, MismatchError, PeerFailedError
from decentral.types import peer_id


def test_one_member_needs_nobody():
    with mesh(1) as (group,):
        source, result = np.ones((4, 5), np.float32), np.zeros((4, 5), np.float32)
        assert group.all_reduce(source, result, round=1, attempt=0).wait(10)
        assert np.array_equal(result, source)


def test_members_that_disagree_are_told_who_and_what():
    with mesh(2) as (one, other):
        a = one.all_reduce(np.ones(10, np.float32), np.ones(10, np.float32), round=1, attempt=0)
        b = other.all_reduce(np.ones(12, np.float32), np.ones(12, np.float32), round=1, attempt=0)
        for work in (a, b):
            with pytest.raises(MismatchError, match=r"count 1[02].*count 1[02]") as caught:
                work.wait(30)
            assert caught.value.peer in one.view.members and caught.value.phase


def test_abort_reaches_everybody_and_sources_stay():
    with mesh(3) as groups:
        given = sources(3, 4096)
        before = [source.copy() for source in given]
        works = [
            group.all_reduce(source, np.empty_like(source), round=1, attempt=0)
            for group, source in zip(groups[:2], given, strict=False)
        ]
        assert not works[0].wait(0.05)
        works[0].abort("enough")
        late = groups[2].all_reduce(given[2], np.empty_like(given[2]), round=1, attempt=0)
        for work in (*works, late):
            with pytest.raises(AbortedError, match="enough") as caught:
                work.wait(30)
            assert caught.value.peer == groups[0].view.members[0]
        assert all(np.array_equal(a, b) for a, b in zip(before, given, strict=True))


def test_a_dead_member_is_named():
    with mesh(3) as groups:
        given = sources(3, 4096)
        works = [
            group.all_reduce(source, np.empty_like(source), round=1, attempt=0)
            for group, source in zip(groups[:2], given, strict=False)
        ]
        groups[2].close_endpoint()
        for work in works:
            with pytest.raises(PeerFailedError) as caught:
                work.wait(30)
            assert caught.value.peer == groups[0].view.members[2]


def test_calls_that_cannot_work_say_why():
    with mesh(1) as (group,):
        good = np.ones(8, np.float32)

        def refused(match, src=good, dst=None, **options):
            with pytest.raises(ConfigError, match=match):
                group.all_reduce(
                    src,
                    np.empty(8, np.float32) if dst is None else dst,
                    **{"round": 1, "attempt": 0, **options},
                )

        refused("no codec 'fp12'", codec="fp12")
        refused("fp32", src=np.ones(8))
        refused("C-contiguous", src=np.ones(16, np.float32)[::2])
        refused("must be as src", dst=np.ones(7, np.float32))
        refused("overlap", dst=good)
        refused("2 weights for 1", weights=[1, 1])
        refused("above zero", weights=[0])
        refused("finite", weights=[float("inf")])
        frozen = np.ones(8, np.float32)
        frozen.flags.writeable = False
        refused("writable", dst=frozen)
        refused("no schedule 'star'", schedule="star")
        refused("choose butterfly", codec="sign", schedule="ring")
        refused("tags run", tag=2**32 - 1)
        with pytest.raises(ConfigError, match="network of 3"):
            Group(None, group.view, group.view.members[0], network=Network.uniform(3))
        with pytest.raises(ConfigError, match="not a member"):
            Group(None, group.view, peer_id(bytes(32)))


def wait_all(works):
    for work in works:
        assert work.wait(30)


def test_every_member_gets_its_part_of_the_sum():
    with mesh(3) as groups:
        given = sources(3, 5003)
        exact = sum(source.astype(np.float64) for source in given) / 3
        for round, codec in enumerate(("fp32", "int8", "sign")):
            rooms = [np.empty(5003, np.float32) for _ in groups]
            wait_all(
                [
                    group.reduce_scatter(source, room, codec, round=round, attempt=0)
                    for group, source, room in zip(groups, given, rooms, strict=True)
                ]
            )
            tolerance = {"fp32": 1e-6, "int8": 0.05, "sign": 3.0}[codec]
            for group, room in zip(groups, rooms, strict=True):
                part = group.part(5003)
                assert np.abs(room[part] - exact[part]).max() < tolerance
        assert sum(group.part(5003).stop - group.part(5003).start for group in groups) == 5003


def test_all_gather_and_broadcast_work_in_place():
    with mesh(4) as groups:
        given = sources(4, 1001)
        gathered = [np.zeros(1001, np.float32) for _ in groups]
        expected = np.empty(1001, np.float32)
        for group, source, room in zip(groups, given, gathered, strict=True):
            room[group.part(1001)] = expected[group.part(1001)] = source[group.part(1001)]
        wait_all(
            [
                g.all_gather(room, round=1, attempt=0)
                for g, room in zip(groups, gathered, strict=True)
            ]
        )
        assert all(np.array_equal(room, expected) for room in gathered)
        own = [0, 10, 10, 900, 1001]
        wait_all(
            [
                g.all_gather(r, cuts=own, round=2, attempt=0)
                for g, r in zip(groups, gathered, strict=True)
            ]
        )
        for codec in ("fp32", "int8"):
            copies = [source.copy() for source in given]
            wait_all(
                [
                    g.broadcast(copy, 2, codec, round=3, attempt=len(codec))
                    for g, copy in zip(groups, copies, strict=True)
                ]
            )
            assert all(np.array_equal(copy, copies[0]) for copy in copies)
            assert np.abs(copies[0] - given[2]).max() < (1e-9 if codec == "fp32" else 0.05)


def test_nobody_passes_a_barrier_alone():
    with mesh(3) as groups:
        early = [group.barrier(round=1, attempt=0) for group in groups[:2]]
        assert not early[0].wait(0.1) and not early[1].wait(0)
        wait_all([groups[2].barrier(round=1, attempt=0), *early])


def test_a_subgroup_works_while_others_do_something_else():
    with mesh(4) as groups:
        pairs = [groups[0].view.members[:2], groups[0].view.members[2:]]
        halves = [group.subgroup(pairs[group.rank // 2]) for group in groups]
        given = sources(4, 3000)
        results = [np.empty(3000, np.float32) for _ in groups]
        wait_all(
            [
                half.all_reduce(source, result, round=1, attempt=0)
                for half, source, result in zip(halves, given, results, strict=True)
            ]
        )
        for first in (0, 2):
            exact = (given[first].astype(np.float64) + given[first + 1]) / 2
            assert np.abs(results[first] - exact).max() < 1e-6
            assert np.array_equal(results[first], results[first + 1])
        with pytest.raises(ConfigError, match="not members"):
            groups[0].subgroup([peer_id(bytes(32))])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tensors_are_summed_in_fp32_and_rounded_once(dtype):
    with mesh(3) as groups:
        given = [torch.from_numpy(source).to(dtype) for source in sources(3, 1000)]
        results = [torch.empty(10, 100, dtype=dtype) for _ in groups]
        wait_all(
            [
                g.all_reduce(source.view(10, 100), result, round=1, attempt=0)
                for g, source, result in zip(groups, given, results, strict=True)
            ]
        )
        exact = sum(source.double() for source in given) / 3
        assert all(torch.equal(result, results[0]) for result in results)
        assert torch.equal(results[0].view(-1), exact.float().to(dtype)) or dtype == torch.float32
        assert (results[0].view(-1).double() - exact).abs().max() < 0.02


def test_members_that_do_different_things_are_told():
    with mesh(3) as groups:

        def differ(match, *starts):
            works = [start(group) for start, group in zip(starts, groups, strict=True)]
            for work in works:
                with pytest.raises(MismatchError, match=match):
                    work.wait(30)

        ones, room = np.ones(3000, np.float32), [np.empty(3000, np.float32) for _ in groups]

        def reduce(round, **options):
            return lambda g: g.all_reduce(ones, room[g.rank], round=round, attempt=0, **options)

        differ(
            "all-gather", reduce(1), reduce(1), lambda g: g.all_gather(room[2], round=1, attempt=0)
        )
        differ(
            "schedule",
            reduce(2, schedule="ring"),
            reduce(2, schedule="ring"),
            reduce(2, schedule="tree"),
        )
        differ("codec", reduce(3), reduce(3), reduce(3, codec="int8"))
        half = [torch.ones(3000, dtype=torch.float16), torch.empty(3000, dtype=torch.float16)]
        differ("dtype", reduce(4), reduce(4), lambda g: g.all_reduce(*half, round=4, attempt=0))


def test_operations_in_another_order_fail_in_time_instead_of_hanging():
    """Two members that wait for each other's other operation: both are told who has not come."""
    with mesh(2) as groups:
        said = []

        def run(group, tags):
            for tag in tags:
                work = group.all_reduce(
                    np.ones(9, np.float32), np.empty(9, np.float32), round=1, attempt=0, tag=tag,
                    start_limit_s=1.0, silence_limit_s=0.5,
                )  # fmt: skip
                try:
                    work.wait(30)
                except (PeerFailedError, AbortedError) as error:
                    said.append(str(error))

        threads = [
            threading.Thread(target=run, args=(group, tags))
            for group, tags in zip(groups, ([1, 2], [2, 1]), strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        assert any("has not started" in says for says in said)


def test_large_reductions_agree_on_the_network_first_and_share_the_agreement():
    count = 6 << 20
    with mesh(3, encrypt=False) as groups:
        given = sources(3, count)
        for round in (1, 2):
            results = [[np.empty(count, np.float32) for _ in groups] for _ in range(2)]
            works = [
                group.all_reduce(
                    given[group.rank], results[tag][group.rank], round=round, attempt=0, tag=tag
                )
                for group in groups
                for tag in (0, 1)
            ]
            wait_all(works)
            assert len({work.schedule for work in works}) == 1 and works[0].schedule
            for tag in (0, 1):
                assert all(np.array_equal(r, results[tag][0]) for r in results[tag])
        assert groups[0].network == groups[1].network == groups[2].network
        assert min(groups[0].network.up_bytes_s) > 1e6
        assert groups[0].network.rtt.max() < 1
        choice = groups[0].choose(count)
        assert choice.schedule == works[0].schedule and choice.seconds[choice.schedule] > 0


def test_groups_that_share_members_agree_at_the_same_time():
    """Two modules' rounds with equal numbers: what is said for one is not heard for the other."""
    count = 2 << 20
    with endpoints(4, encrypt=False) as ends:
        given = sources(4, count)
        works, results = [], {}
        modules = ((0, (0, 1, 2)), (1, (0, 1, 3)))
        for position in range(3):  # both have begun before either can end
            for tag, ranks in modules:
                group, rank = group_of([ends[r] for r in ranks], position), ranks[position]
                results[tag, rank] = np.empty(count, np.float32)
                works.append(
                    group.all_reduce(given[rank], results[tag, rank], round=7, attempt=1, tag=tag)
                )
        wait_all(works)
        for tag, ranks in modules:
            mean = sum(given[rank].astype(np.float64) for rank in ranks) / 3
            assert np.allclose(results[tag, 0], mean, atol=1e-5)
            assert all(np.array_equal(results[tag, rank], results[tag, 0]) for rank in ranks)


def test_a_member_that_dies_during_the_agreement_is_named():
    count = 2 << 20
    with mesh(3) as groups:
        works = [
            group.all_reduce(source, np.empty(count, np.float32), round=1, attempt=0)
            for group, source in zip(groups[:2], sources(2, count), strict=True)
        ]
        groups[2].close_endpoint()
        for work in works:
            with pytest.raises(PeerFailedError) as caught:
                work.wait(30)
            assert caught.value.peer == groups[0].view.members[2]


def test_calling_off_before_the_agreement_reaches_everybody():
    count = 2 << 20
    with mesh(3) as groups:
        given = sources(3, count)
        works = [
            group.all_reduce(given[group.rank], np.empty(count, np.float32), round=1, attempt=0)
            for group in groups[:2]
        ]
        works[0].abort("enough")
        late = groups[2].all_reduce(given[2], np.empty(count, np.float32), round=1, attempt=0)
        for work in (*works, late):
            with pytest.raises(AbortedError, match="enough"):
                work.wait(30)


def test_topk_sends_little_and_gives_all_members_the_same():
    count = 3 * 4096 + 100
    with mesh(3) as groups:
        given = [source * (np.arange(count) % 40 == 0) for source in sources(3, count)]
        results = [np.empty(count, np.float32) for _ in groups]
        works = [
            group.all_reduce(source, result, "topk", weights=[1, 0, 2], round=1, attempt=0)
            for group, source, result in zip(groups, given, results, strict=True)
        ]
        wait_all(works)
        assert all(result.tobytes() == results[0].tobytes() for result in results)
        assert works[0].stats.bytes_sent < count * 4 / 10
        exact = (given[0].astype(np.float64) + 2 * given[2]) / 3
        assert np.corrcoef(results[0], exact)[0, 1] > 0.7
