"""What members tell each other about their links, and the network that all make of it.

A row, as bytes, little-endian, nothing else before or after:

    f32 up_bytes_s | f32 down_bytes_s | n × f32 rtt_s, by rank

NaN stands for what has not been measured.
"""

from __future__ import annotations

import math
import statistics
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from decentral.collectives.network import LAN_RTT_S, Network, sites_from_rtt

DEFAULT_BYTES_S = 12.5e6
"""What nobody has measured counts as 100 Mbit/s …"""
DEFAULT_RTT_S = 0.05
"""… and 50 ms."""
MIN_BYTES_S, MAX_BYTES_S = 1e2, 1e12
MAX_RTT_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Row:
    """One member's measurements. Numbers are rounded to float32: what others will read."""

    up_bytes_s: float
    """What it can send over all links at once; NaN: not measured."""
    down_bytes_s: float
    """What it can receive; NaN: not measured."""
    rtt_s: tuple[float, ...]
    """Round-trip time to each member by rank; NaN: not measured. Its own entry is ignored."""

    def __post_init__(self) -> None:
        for rate in (self.up_bytes_s, self.down_bytes_s):
            if not math.isnan(rate) and not MIN_BYTES_S <= rate <= MAX_BYTES_S:
                raise ValueError(f"no bandwidth: {rate} bytes/s")
        for delay in self.rtt_s:
            if not math.isnan(delay) and not 0 <= delay <= MAX_RTT_S:
                raise ValueError(f"no round-trip time: {delay} s")
        object.__setattr__(self, "up_bytes_s", _round(self.up_bytes_s))
        object.__setattr__(self, "down_bytes_s", _round(self.down_bytes_s))
        object.__setattr__(self, "rtt_s", tuple(map(_round, self.rtt_s)))

    def to_bytes(self) -> bytes:
        """4 · (2 + n) bytes."""
        values = (self.up_bytes_s, self.down_bytes_s, *self.rtt_s)
        return struct.pack(f"<{len(values)}f", *values)

    @classmethod
    def from_bytes(cls, data: bytes, members: int) -> Row:
        """ValueError unless the length is right for `members`, bandwidths are NaN or between 100
        and 10^12 bytes/s, and delays NaN or between 0 and 60 s."""
        if len(data) != 4 * (2 + members):
            raise ValueError(f"a row of {members} members has {4 * (2 + members)} bytes")
        up, down, *delays = struct.unpack(f"<{2 + members}f", data)
        return cls(up_bytes_s=up, down_bytes_s=down, rtt_s=tuple(delays))


def network_from_rows(rows: Sequence[Row], lan_s: float = LAN_RTT_S) -> Network:
    """The network that all members derive from the same rows, in rank order.

    A delay is the shorter of what both ends measured (queues only ever add to it). What neither
    measured counts as the longest delay that anybody did, an unknown bandwidth as the median of
    the known ones. Sites come from the delays.
    """
    members = len(rows)
    if any(len(row.rtt_s) != members for row in rows):
        raise ValueError(f"{members} rows need {members} delays each")
    delays = np.array([row.rtt_s for row in rows], np.float32)
    np.fill_diagonal(delays, 0)
    delays = np.fmin(delays, delays.T)  # fmin prefers a number to NaN
    measured = delays[~np.eye(members, dtype=bool) & ~np.isnan(delays)]
    longest = np.float32(measured.max()) if measured.size else np.float32(DEFAULT_RTT_S)
    delays[np.isnan(delays)] = longest
    return Network(
        up_bytes_s=_filled([row.up_bytes_s for row in rows]),
        down_bytes_s=_filled([row.down_bytes_s for row in rows]),
        rtt_s=delays,
        sites=sites_from_rtt(delays, lan_s),
    )


def _filled(rates: Sequence[float]) -> tuple[float, ...]:
    known = [rate for rate in rates if not math.isnan(rate)]
    usual = statistics.median_low(known) if known else DEFAULT_BYTES_S
    return tuple(usual if math.isnan(rate) else rate for rate in rates)


def _round(value: float) -> float:
    return float(np.float32(value))
