"""`decentral simulate collectives`: a line per number of peers and size, and a plot."""

from __future__ import annotations

import json as json_module
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from decentral.errors import ConfigError
from decentral.simulator.collectives import Row, run
from decentral.simulator.link_table import BUILTIN, LinkTable

MAX_PEERS = 4096


def collectives_command(
    peers: str = "2..4096",
    size_kib: str = "8,65536",
    table: str = "builtin",
    seed: int = 0,
    plot: str | None = None,
    json: bool = False,
) -> int:
    """Exit status 0 if all plans fit together; PlanError otherwise.

    `peers` and `size_kib` are lists (`2,16,100`) or doublings (`2..4096`). ConfigError for
    arguments that make no sense.
    """
    counts = numbers(peers, "--peers")
    if not all(2 <= count <= MAX_PEERS for count in counts):
        raise ConfigError(f"--peers are between 2 and {MAX_PEERS}")
    links = BUILTIN if table == "builtin" else LinkTable.from_json(Path(table))
    rows: list[Row] = []
    for size in numbers(size_kib, "--size-kib"):
        for count in counts:
            rows.append(run(links, count, size * 1024, seed))
            show(rows[-1], as_json=json)
    if plot is not None:
        from decentral.simulator.collectives_plot import plot as draw

        draw(rows, Path(plot))
    return 0


def numbers(text: str, option: str) -> Sequence[int]:
    """`2,16,100`, or `2..4096`: from the first on, doubled up to the last."""
    try:
        first, dots, last = text.partition("..")
        if not dots:
            found = [int(part) for part in text.split(",")]
        else:
            found = [int(first)]
            while 0 < found[-1] * 2 <= int(last):
                found.append(found[-1] * 2)
    except ValueError as error:
        raise ConfigError(f"{option} is like 2,16,100 or 2..4096, not {text!r}") from error
    if not found or min(found) < 1:
        raise ConfigError(f"{option} is like 2,16,100 or 2..4096, not {text!r}")
    return found


def show(row: Row, *, as_json: bool) -> None:
    """One object for a machine; for a person estimates, with what execution took in brackets."""
    if as_json:
        print(json_module.dumps(asdict(row)), flush=True)
        return
    times = []
    for name, seconds in sorted(row.seconds.items(), key=lambda item: item[1]):
        executed = row.simulated_s.get(name)
        times.append(f"{name} {_s(seconds)}" + (f" [{_s(executed)}]" if executed else ""))
    print(
        f"{row.peers:5d} peers, {row.size_bytes // 1024} KiB: {row.chosen}  ({', '.join(times)})",
        flush=True,
    )


def _s(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"
