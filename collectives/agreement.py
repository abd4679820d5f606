"""How the members of a group come to plan from the same numbers.

Each member knows its own end: how fast its network was lately (measured by the data thread while
operations ran, at no cost), and the delay to each other member (heartbeats). These *rows* go round
in a small all-gather before a large operation, and all members then hold the same `Network`.

    round r       rows ──▶ [ probe, only while somebody knows nothing of its network ] ──▶ plan
    round r + 1   rows, measured during round r ──▶ plan

A probe is an all-gather of nothing in particular, growing until it lasts long enough for shapers
and slow starts not to matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from decentral.collectives.measured import Row, network_from_rows
from decentral.collectives.network import Network
from decentral.types import raw_id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from decentral.types import Array, PeerId

ASSUMED_BYTES_S = 12.5e6
ASSUMED_RTT_S = 0.02
"""100 Mbit/s and 20 ms: what a group plans with before its members have told each other anything.
For equals only the ratio to the buffer's size matters."""

PROBE_BYTES = 256 << 10
MAX_PROBE_BYTES = 32 << 20
"""What a member sends to each other one, at first and at most."""
PROBE_S = 1.0
"""How long a probe should take."""

AllGather = Callable[["Array", int], float]
"""(buffer with the own part filled in, number of this exchange) → seconds it took."""


class Agreement:
    """One member's part in it."""

    def __init__(self, endpoint: Any, members: Sequence[PeerId], rank: int) -> None:
        self._endpoint = endpoint
        self._members = [raw_id(member) for member in members]
        self._rank = rank

    def reach(self, all_gather: AllGather, *, may_probe: bool) -> Network:
        """A collective call: the network as all members see it now."""
        numbers = iter(range(100))
        rows = self._exchange(all_gather, next(numbers), 0.0)
        probe_bytes = PROBE_BYTES
        while may_probe and np.isnan(rows[:, 1:3]).any():
            nothing = np.zeros(probe_bytes // 4 * len(self._members), np.float32)
            took_s = all_gather(nothing, next(numbers))
            rows = self._exchange(all_gather, next(numbers), took_s)
            longest_s = max(float(rows[:, 0].max()), 1e-6)
            if longest_s >= PROBE_S / 2 or probe_bytes >= MAX_PROBE_BYTES:
                break
            growth = min(16.0, 1.2 * PROBE_S / longest_s)
            probe_bytes = int(min(MAX_PROBE_BYTES, probe_bytes * growth)) // 4096 * 4096
        return network_of(rows)

    def _exchange(self, all_gather: AllGather, number: int, probe_s: float) -> Array:
        members = len(self._members)
        width = 3 + members
        rows = np.zeros((members, width), np.float32)
        rates = [rate if rate > 0 else math.nan for rate in self._endpoint.rates()]
        rows[self._rank, :3] = probe_s, *rates
        for rank, member in enumerate(self._members):
            rtt_us = self._endpoint.stats_of(member).min_rtt_us
            rows[self._rank, 3 + rank] = rtt_us / 1e6 if rtt_us else math.nan
        all_gather(rows.reshape(-1), number)
        self._endpoint.end_rate_period()
        return rows


def network_of(rows: Array) -> Network:
    """The network that n rows of (probe seconds, up, down, RTT to each member) describe.

    A row comes from another peer: one with numbers that cannot be counts as no measurement.
    """
    return network_from_rows([_row(row) for row in rows])


def _row(numbers: Array) -> Row:
    members = len(numbers) - 3
    try:
        return Row.from_bytes(numbers[1:].astype("<f4").tobytes(), members)
    except ValueError:
        return Row(up_bytes_s=math.nan, down_bytes_s=math.nan, rtt_s=(math.nan,) * members)


def assumed(members: int) -> Network:
    """What a group plans with before its members have told each other anything."""
    return Network.uniform(members, ASSUMED_BYTES_S, ASSUMED_RTT_S)
