"""Many aborted all-reduces: no thread, descriptor or memory may be left behind by them."""

from __future__ import annotations

import random
import signal
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from decentral.bench import machine
from decentral.bench.crew import Crew
from decentral.bench.workers import Place, sleep_until
from decentral.errors import ConfigError

SETTLED_AFTER = 50
"""Aborts until every buffer that is kept for reuse has been needed once."""
MOST_GROWN_BYTES = 1 << 20
"""Resident memory moves by single pages and arenas; a leak of 2.3 KiB per abort exceeds this
within the 450 aborts after the first 50."""
EXPECTED = {"PeerFailedError", "AbortedError"}


@dataclass(frozen=True, kw_only=True)
class AbortsBench:
    """Every abort at a random moment: by `Work.abort` of a random member, or by the death of the
    last one, which a new peer then replaces. The others are watched."""

    aborts: int
    peers: int
    size_bytes: int
    kill_every: int
    """Every so many-th abort is a death; 0: none."""
    encrypt: bool
    seed: int

    def __post_init__(self) -> None:
        if self.aborts < SETTLED_AFTER + 20:
            raise ConfigError(f"{SETTLED_AFTER + 20} aborts at least show a slope")

    def run(self) -> dict[str, Any]:
        chance = random.Random(self.seed)
        count = self.size_bytes // 4
        footprints: list[list[dict[str, int]]] = []
        outcomes: dict[str, int] = {}
        # A fixed number of streams: those that appear because they carry more are no leak.
        crew = Crew([Place()] * self.peers, encrypt=self.encrypt, streams=2)
        try:
            crew.prepare(self.size_bytes)
            usual_s = statistics.median(
                max(answer["seconds"] for answer in crew.reduce(schedule="ring")) for _ in range(3)
            )
            for number in range(1, self.aborts + 1):
                after_s = chance.uniform(0.05, 0.8) * usual_s
                if self.kill_every and number % self.kill_every == 0:
                    answers = self._death(crew, after_s)
                    crew.workers.ask([self.peers - 1], do="prepare", count=count)
                else:
                    crew.begin(
                        of_rank={chance.randrange(self.peers): {"abort_after_s": after_s}},
                        schedule="ring", check=False,
                    )  # fmt: skip
                    answers = crew.end()
                for answer in answers:
                    name = "completed" if answer["ok"] else answer["error"]
                    outcomes[name] = outcomes.get(name, 0) + 1
                crew.reduce(schedule="ring", check=number == self.aborts)
                footprints.append(crew.workers.ask(range(self.peers - 1), do="footprint"))
        finally:
            crew.close()
        results = [
            _leaks(rank, [prints[rank] for prints in footprints]) for rank in range(self.peers - 1)
        ]
        held = set(outcomes) <= EXPECTED | {"completed"} and all(
            result["threads_grown"] <= 0
            and result["fds_grown"] <= 0
            and result["rss_grown_bytes"] <= MOST_GROWN_BYTES
            for result in results
        )
        return {
            "bench": "faults",
            "kind": "aborts",
            "machine": machine.about(),
            "aborts": self.aborts,
            "size_bytes": self.size_bytes,
            "seed": self.seed,
            "held": held,
            "outcomes": outcomes,
            "results": results,
        }

    def _death(self, crew: Crew, after_s: float) -> list[dict[str, Any]]:
        """The last member is killed; the others' answers, once a new one has taken its place."""
        last = self.peers - 1
        start_at = crew.begin(schedule="ring", check=False)
        sleep_until(start_at + after_s)
        crew.workers.all[last].signal(signal.SIGKILL)
        answers = crew.end(range(last))
        crew.without(last)
        crew.replace(last)
        return answers


def _leaks(rank: int, prints: list[dict[str, int]]) -> dict[str, Any]:
    """What one process had after the first aborts and at the end."""
    settled, last = prints[SETTLED_AFTER - 1], prints[-1]
    return {
        "rank": rank,
        "threads": last["threads"],
        "threads_grown": last["threads"] - settled["threads"],
        "fds": last["fds"],
        "fds_grown": last["fds"] - settled["fds"],
        "rss_bytes": last["rss_bytes"],
        "rss_grown_bytes": last["rss_bytes"] - settled["rss_bytes"],
        "rss_slope_bytes_per_abort": round(
            slope([one["rss_bytes"] for one in prints[SETTLED_AFTER:]]), 1
        ),
    }


def slope(values: Sequence[float]) -> float:
    """Of the least-squares line through values at 0, 1, 2, …"""
    return statistics.linear_regression(range(len(values)), values).slope
