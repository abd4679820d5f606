"""One rank of decentral's own collectives: ``python -m decentral.bench.native_worker``.

Does what its parent says (workers.py), one line at a time; the methods of `Duties` are the words.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decentral.bench.member import Member
from decentral.bench.values import max_abs_error, values
from decentral.bench.workers import cpu_seconds, die_with_parent, hear, say, sleep_until
from decentral.errors import DecentralError


class Duties:
    """What a parent can ask. Every answer is one dict."""

    def __init__(self, rank: int, member: Member, silence_limit_s: float) -> None:
        self.rank = rank
        self.member = member
        self._silence_limit_s = silence_limit_s
        self._source = self._result = np.empty(0, np.float32)
        self._hash = ""

    def connect(self, **how: Any) -> dict[str, Any]:
        self.member.connect(**how)
        return {}

    def prepare(self, *, count: int) -> dict[str, Any]:
        """Make source and result of this many values, and know the source's hash."""
        self._source = values(self.rank, count)
        self._result = np.zeros_like(self._source)
        self._hash = _sha256(self._source)
        return {}

    def measure(self, *, round: int) -> dict[str, Any]:
        """Measure the network, together with all others."""
        start_s = time.monotonic()
        network = self.member.group.measure(round=round, attempt=1)
        return {
            "seconds": time.monotonic() - start_s,
            "up_mbit": [rate * 8e-6 for rate in network.up_bytes_s],
            "down_mbit": [rate * 8e-6 for rate in network.down_bytes_s],
            "rtt_ms": (network.rtt * 1e3).tolist(),
        }

    def reduce(
        self,
        *,
        round: int,
        start_at: float,
        codec: str = "fp32",
        schedule: str = "auto",
        attempt: int = 1,
        parts: int = 1,
        ranks: list[int] | None = None,
        check: bool = True,
        abort_after_s: float | None = None,
        watch: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """All-reduce what was prepared, in `parts` operations that are in flight together.

        `ranks`: whose values are in the group, for the check of the result. `watch`: see `_watch`.
        The answer has `ok`, or the error and the moment at which it was known.
        """
        sources = np.array_split(self._source, parts)
        results = np.array_split(self._result, parts)
        sleep_until(start_at)
        cpu = cpu_seconds()
        start_s = time.monotonic()
        samples: list[dict[str, float]] = []
        try:
            works = [
                self.member.group.all_reduce(
                    source,
                    result,
                    codec,
                    round=round,
                    attempt=attempt,
                    tag=10 + tag,
                    schedule=schedule,
                    silence_limit_s=self._silence_limit_s,
                )
                for tag, (source, result) in enumerate(zip(sources, results, strict=True))
            ]
            if abort_after_s is not None and not works[0].wait(abort_after_s):
                works[0].abort("the benchmark calls it off")
            if watch:
                samples = self._watch(works, **watch)
            for work in works:
                work.wait()
        except DecentralError as error:
            at = time.monotonic()
            return {
                "ok": False,
                "at": at,
                "seconds": at - start_at,
                "error": type(error).__name__,
                "says": str(error),
                "peer": error.peer,
                "src_intact": _sha256(self._source) == self._hash if check else None,
            }
        end_s = time.monotonic()
        return {
            "ok": True,
            "at": end_s,
            "seconds": end_s - start_at,
            "late_s": start_s - start_at,
            "cpu_seconds": cpu_seconds() - cpu,
            "bytes_sent": sum(work.stats.bytes_sent for work in works),
            "bytes_received": sum(work.stats.bytes_received for work in works),
            "schedule": works[0].schedule,
            "max_abs_error": self._error(ranks) if check else 0.0,
            "samples": samples,
        }

    def idle(self, *, seconds: float, watch: dict[str, Any]) -> dict[str, Any]:
        """Watch a link while nothing is reduced."""
        return {"samples": self._watch([], until=time.monotonic() + seconds, **watch)}

    def footprint(self) -> dict[str, Any]:
        """Threads, descriptors and resident bytes of this process."""
        self.member.pump(0)
        return {
            "threads": sum(1 for _ in Path("/proc/self/task").iterdir()),
            "fds": sum(1 for _ in Path("/proc/self/fd").iterdir()),
            "rss_bytes": _status("VmRSS"),
        }

    def forget_peak(self) -> dict[str, Any]:
        """Peak memory counts from now on; a result buffer counts as part of the operation."""
        self._result = np.empty_like(self._source)
        return self.same_peak()

    def same_peak(self) -> dict[str, Any]:
        """Peak memory counts from now on, with the result buffer of before."""
        Path("/proc/self/clear_refs").write_text("5")
        return {"rss_bytes": _status("VmRSS")}

    def peak(self) -> dict[str, Any]:
        return {"peak_bytes": _status("VmHWM")}

    def _error(self, ranks: list[int] | None) -> float:
        members = range(len(self.member.members)) if ranks is None else ranks
        return max_abs_error(self._result, list(members))

    def _watch(
        self,
        works: list[Any],
        *,
        rank: int,
        every_s: float,
        probe: bool = False,
        until: float = float("inf"),
    ) -> list[dict[str, float]]:
        """Until the works are done: the state of the link to `rank`; or its probes' round trips."""
        samples: list[dict[str, float]] = []
        asked: dict[int, float] = {}
        due, link, endpoint = time.monotonic(), self.member.link(rank), self.member.endpoint

        def state(now: float) -> dict[str, float]:
            stats = endpoint.stats(link)
            return {"at": now, "streams": stats.bulk_streams, "bytes_sent": stats.bulk_bytes_sent}

        while (now := time.monotonic()) < until and not (works and all(w.done for w in works)):
            if now >= due:
                due = now + every_s
                if probe:
                    seq = 1 << 32 | len(asked)
                    asked[seq] = now
                    endpoint.probe(link, seq)
                else:
                    samples.append(state(now))
            for answer in self.member.pump(min(0.005, every_s)):
                if answer.seq in asked:
                    samples.append({"at": asked[answer.seq], "rtt_ms": answer.rtt_us / 1e3})
        return samples if probe else [*samples, state(time.monotonic())]


def _sha256(array: NDArray[np.float32]) -> str:
    return hashlib.sha256(array.view(np.uint8).data).hexdigest()


def _status(field: str) -> int:
    """A field of /proc/self/status that counts kB, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"this kernel does not count {field}")


def main() -> None:
    die_with_parent()
    parser = argparse.ArgumentParser()
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--peers", type=int, required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--encrypt", choices=("on", "off"), default="on")
    parser.add_argument("--streams", type=int, default=0)
    parser.add_argument("--congestion", default="")
    parser.add_argument("--silence-limit-s", type=float, default=5.0)
    args = parser.parse_args()
    member = Member(
        args.host,
        encrypt=args.encrypt == "on",
        streams=args.streams,
        congestion=args.congestion,
        silence_limit_s=args.silence_limit_s,
    )
    duties = Duties(args.rank, member, args.silence_limit_s)
    say(address=member.address)
    while True:
        asked = hear()
        say(**getattr(duties, asked.pop("do"))(**asked))


if __name__ == "__main__":
    main()
