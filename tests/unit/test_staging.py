"""Staged all-reduces: what fills up while it runs gives the bits of what was there from the start.

Without a device the same path runs on CPU tensors: the engine's part, the couriers and their pool
are the same, only the copies are not asynchronous.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from groups import mesh, sources

from decentral.collectives import SCHEDULES, staging
from decentral.errors import AbortedError, ConfigError

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def staged(group, src, dst, **call):
    """What Group.all_reduce does for tensors on a device."""
    return group._all_reduce_staged(
        src, dst, call.pop("codec", "fp32"), None, call.pop("schedule", "ring"), call
    )


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("codec", ["fp32", "int8"])
def test_staged_bits_are_those_of_memory_that_was_there_from_the_start(
    schedule, codec, monkeypatch
):
    monkeypatch.setattr(staging, "CHUNK_ELEMENTS", 1 << 14)
    count = 300_007
    with mesh(3, encrypt=False) as groups:
        given = sources(3, count)
        plain = [np.empty(count, np.float32) for _ in groups]
        works = [
            g.all_reduce(s, d, codec, schedule=schedule, round=1, attempt=0)
            for g, s, d in zip(groups, given, plain, strict=True)
        ]
        assert all(work.wait(30) for work in works)
        results = [torch.empty(count, device=DEVICE) for _ in groups]
        works = [
            staged(
                g, torch.from_numpy(s).to(DEVICE), d, codec=codec, schedule=schedule, round=2,
                attempt=0, chunk_bytes=16384 << g.rank,
            )
            for g, s, d in zip(groups, given, results, strict=True)
        ]  # fmt: skip
        assert all(work.wait(30) for work in works)
        for result in results:
            assert result.cpu().numpy().tobytes() == plain[0].tobytes()


def test_other_dtypes_are_converted_on_the_way_and_areas_are_used_again():
    staging.POOL.clear()
    with mesh(2, encrypt=False) as groups:
        given = [torch.from_numpy(s).bfloat16().to(DEVICE) for s in sources(2, 5000)]
        areas = set()
        for round in (1, 2):
            results = [torch.empty(5000, dtype=torch.bfloat16, device=DEVICE) for _ in groups]
            works = [
                staged(g, s, d, round=round, attempt=0)
                for g, s, d in zip(groups, given, results, strict=True)
            ]
            assert all(work.wait(30) for work in works)
            exact = (given[0].double() + given[1].double()) / 2
            assert torch.equal(results[0], exact.float().bfloat16())
            assert torch.equal(results[0], results[1])
            kept = [area.data_ptr() for free in staging.POOL._free.values() for area in free]
            areas |= set(kept)
            assert len(kept) == 4
        assert len(areas) == 4


def test_one_member_alone_waits_for_its_own_values(monkeypatch):
    monkeypatch.setattr(staging, "CHUNK_ELEMENTS", 100)
    with mesh(1) as (group,):
        source, result = torch.arange(1001.0), torch.zeros(1001)
        assert staged(group, source, result, round=1, attempt=0).wait(30)
        assert torch.equal(source, result)


def test_a_staged_operation_can_be_called_off_at_any_point():
    with mesh(2, encrypt=False) as groups:
        source, result = torch.ones(100_000), torch.zeros(100_000)
        work = staged(groups[0], source, result, round=1, attempt=0)
        work.abort("enough")
        late = staged(groups[1], source, torch.zeros(100_000), round=1, attempt=0)
        for one in (work, late):
            with pytest.raises(AbortedError, match="enough"):
                one.wait(30)
        assert torch.equal(source, torch.ones(100_000))


def test_what_cannot_be_staged_is_said():
    with mesh(1) as (group,):
        with pytest.raises(ConfigError, match="contiguous"):
            staged(group, torch.ones(4, 4).t(), torch.ones(4, 4), round=1, attempt=0)
        with pytest.raises(ConfigError, match="as src"):
            staged(group, torch.ones(4), torch.ones(5), round=1, attempt=0)
        with pytest.raises(ConfigError, match="this machine's memory"):
            staged(group, torch.ones(4), torch.ones(4), codec="topk", round=1, attempt=0)
