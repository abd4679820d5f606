"""Groups over real endpoints in one process: the engine's bits are the reference's."""

from __future__ import annotations

import select
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest

from decentral import _native
from decentral.collectives import CODECS, Group, reference, ring
from decentral.errors import AbortedError, ConfigError, MismatchError, PeerFailedError
from decentral.types import View, peer_id


@contextmanager
def mesh(members: int, *, encrypt: bool = True) -> Iterator[list[Group]]:
    """A full mesh of endpoints on loopback, as groups in rank order."""
    with ExitStack() as stack:
        endpoints = []
        for number in range(members):
            endpoint = _native.Endpoint(
                bytes([number + 1]) * 32, encrypt_bulk=encrypt, silence_limit_ms=2000
            )
            stack.callback(endpoint.close)
            endpoints.append(endpoint)
        for number, endpoint in enumerate(endpoints):
            port = endpoint.listen("127.0.0.1", 0)
            for earlier in endpoints[:number]:
                earlier.dial("127.0.0.1", port)
        for endpoint in endpoints:
            links = 0
            deadline_s = time.monotonic() + 20
            while links < members - 1:
                assert time.monotonic() < deadline_s
                select.select([endpoint.event_fd], [], [], 1)
                for event in endpoint.take_events():
                    assert event.type == "link-up", event.error
                    endpoint.admit(event.link)
                    links += 1
        view = View(lineage="00", epoch=1, members=tuple(peer_id(e.id) for e in endpoints))
        groups = [Group(endpoint, view, peer_id(endpoint.id)) for endpoint in endpoints]
        for group, endpoint in zip(groups, endpoints, strict=True):
            group.close_endpoint = endpoint.close  # for tests that kill a peer
        yield groups


def sources(members: int, count: int) -> list[np.ndarray]:
    return [
        np.random.default_rng(rank).standard_normal(count, np.float32) for rank in range(members)
    ]


@pytest.mark.parametrize("encrypt", [False, True])
def test_every_codec_gives_the_bits_of_the_reference(encrypt):
    members, count = 3, 300_007
    given = sources(members, count)
    weights = [2.0, 0.0, 0.75]
    with mesh(members, encrypt=encrypt) as groups:
        for round, codec in enumerate(CODECS):
            results = [np.empty(count, np.float32) for _ in groups]
            works = [
                group.all_reduce(
                    source,
                    result,
                    codec,
                    weights=weights,
                    round=round,
                    attempt=0,
                    chunk_bytes=65536 << group.rank,
                )
                for group, source, result in zip(groups, given, results, strict=True)
            ]
            assert all(work.wait(30) for work in works)
            expected = reference.execute(
                [ring(members, rank, count) for rank in range(members)],
                given,
                codec=codec,
                weights=weights,
                scale=float(np.float32(1 / sum(weights))),
            )
            for result in results:
                assert result.tobytes() == expected[0].tobytes()
            assert works[0].done and works[0].stats.bytes_sent > 0 and works[0].stats.seconds > 0


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
        refused("float32", src=np.ones(8))
        refused("C-contiguous", src=np.ones(16, np.float32)[::2])
        refused("as large as", dst=np.ones(7, np.float32))
        refused("overlap", dst=good)
        refused("2 weights for 1", weights=[1, 1])
        refused("above zero", weights=[0])
        refused("finite", weights=[float("inf")])
        frozen = np.ones(8, np.float32)
        frozen.flags.writeable = False
        refused("writable", dst=frozen)
        with pytest.raises(ConfigError, match="not a member"):
            Group(None, group.view, peer_id(bytes(32)))
