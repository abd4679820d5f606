"""Many seeds on several processes; one in ten is done twice, and both traces must be the same."""

from __future__ import annotations

import gc
import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import replace
from itertools import count
from random import SystemRandom

from decentral.simulator.scenarios import Report, simulate
from decentral.simulator.world import World

TWICE_EVERY = 10
MAX_SEED = 1 << 32


def fresh_seeds() -> Iterator[int]:
    """Seeds that nobody has tried: whoever uses them prints them."""
    rng = SystemRandom()
    while True:
        yield rng.randrange(MAX_SEED)


def half_fresh() -> Iterator[int]:
    """0, a fresh one, 1, another fresh one, …"""
    for fixed, fresh in zip(count(), fresh_seeds(), strict=False):
        yield fixed
        yield fresh


def run_seed(
    seed: int,
    peers: int,
    scenario: str,
    duration_s: float,
    twice: bool,
    prepare: Callable[[World], None] | None = None,
) -> Report:
    """One seed; `twice`: it is a violation if the second time is another."""
    # The worlds hold no garbage worth looking for while they run.
    gc.disable()
    try:
        report = simulate(seed, peers, scenario, duration_s, prepare)
        gc.collect()
        if twice:
            again = simulate(seed, peers, scenario, duration_s)
            gc.collect()
            if again.trace_hash != report.trace_hash:
                says = f"not deterministic: traces {report.trace_hash} and {again.trace_hash}"
                report = replace(report, violations=[*report.violations, says])
    finally:
        gc.enable()
    return report


def run_seeds(
    seeds: Iterable[int],
    peers: int,
    scenario: str,
    duration_s: float,
    *,
    jobs: int = 1,
    for_s: float = float("inf"),
) -> Iterator[Report]:
    """Reports as they come. No seed is begun after `for_s` seconds of wall clock."""
    ends = time.monotonic() + for_s
    turns = (
        (seed, peers, scenario, duration_s, number % TWICE_EVERY == TWICE_EVERY - 1)
        for number, seed in enumerate(seeds)
    )
    if jobs == 1:
        for turn in turns:
            if time.monotonic() >= ends:
                return
            yield run_seed(*turn)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=jobs, mp_context=spawn) as pool:
        running: set[Future[Report]] = set()
        while True:
            while len(running) < jobs and time.monotonic() < ends:
                turn_or_none = next(turns, None)
                if turn_or_none is None:
                    break
                running.add(pool.submit(run_seed, *turn_or_none))
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (one.result() for one in done)
