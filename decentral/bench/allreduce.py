"""All-reduce over loopback, in turns with others: the same bytes, the same machine, run by run."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from decentral.bench.workers import Workers
from decentral.errors import ConfigError

SYSTEMS = ("gloo",)


@dataclass(frozen=True, kw_only=True)
class AllReduceBench:
    """What to measure."""

    peers: int = 4
    size_mib: float = 64
    codec: str = "fp32"
    encrypt: bool = True
    runs: int = 7
    streams: int = 2
    against: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.peers < 2 or self.runs < 1 or self.size_mib <= 0:
            raise ConfigError("bench allreduce needs 2 peers, 1 run and some bytes at least")
        for system in self.against:
            if system not in SYSTEMS:
                raise ConfigError(f"no system {system!r}: there are {', '.join(SYSTEMS)}")

    def run(self) -> dict[str, Any]:
        """``{"results": [one object per system], "ratios": {"decentral/gloo": …}, …}``."""
        size_bytes = int(self.size_mib * 2**20) // 4 * 4
        systems: dict[str, Workers] = {}
        try:
            systems["decentral"] = Workers(
                "decentral.bench.native_worker",
                self.peers,
                ["--size-bytes", str(size_bytes), "--codec", self.codec]
                + ["--encrypt", "on" if self.encrypt else "off", "--streams", str(self.streams)],
            )
            for system in self.against:
                systems[system] = Workers(
                    f"decentral.bench.{system}_worker",
                    self.peers,
                    ["--size-bytes", str(size_bytes)],
                )
            for workers in systems.values():
                workers.run_once()  # warm-up
            answers: dict[str, list[list[dict[str, Any]]]] = {name: [] for name in systems}
            for _ in range(self.runs):
                for name, workers in systems.items():
                    answers[name].append(workers.run_once())
        finally:
            for workers in systems.values():
                workers.close()
        results = [self._result(name, size_bytes, runs) for name, runs in answers.items()]
        ours = results[0]["algbw_gib_s_median"]
        ratios = {
            f"decentral/{other['system']}": round(ours / other["algbw_gib_s_median"], 3)
            for other in results[1:]
        }
        return {"bench": "allreduce", "results": results, "ratios": ratios}

    def _result(
        self, system: str, size_bytes: int, runs: list[list[dict[str, Any]]]
    ) -> dict[str, Any]:
        ours = system == "decentral"
        seconds = [max(rank["seconds"] for rank in ranks) for ranks in runs]
        wire = [sum(rank["bytes_sent"] or 0 for rank in ranks) for ranks in runs]
        return {
            "system": system,
            "peers": self.peers,
            "size_bytes": size_bytes,
            "codec": self.codec if ours else "fp32",
            "schedule": "ring" if ours else "default",
            "encrypted": self.encrypt if ours else False,
            "seconds": [round(value, 6) for value in seconds],
            "algbw_gib_s_median": round(size_bytes / 2**30 / statistics.median(seconds), 4),
            "cpu_seconds": round(
                statistics.median(sum(rank["cpu_seconds"] for rank in ranks) for ranks in runs), 4
            ),
            "bytes_on_wire": int(statistics.median(wire)) if ours else None,
            "max_abs_error": max(rank["max_abs_error"] for ranks in runs for rank in ranks),
        }
