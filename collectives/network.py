"""What planners and cost model know about the links between members: an immutable value.

Every member must plan from the same numbers, so all of them are kept in float32, in which members
exchange them: a value measured here and the same value read back elsewhere are equal.

                 up[a] ──▶╮ site_up[s]            site_down[t] ╭──▶ down[b]
    member a              ├────────────  rtt[a][b]  ───────────┤             member b
    of site s    ◀────────╯                                    ╰────────◀    of site t
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

MESSAGE_S = 20e-6
"""What a message costs at each of its ends, whatever its size: system calls, a header, a record."""
LAN_RTT_S = 0.002
"""Members closer than this are taken to share a local network."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Network:
    """Bandwidths, delays and sites of n members, by rank. Hashable; equal when all numbers are.

    Raises ValueError for shapes that do not fit, bandwidths that are not positive and finite, and
    delays that are negative or not finite.
    """

    up_bytes_s: tuple[float, ...]
    """What each member can send, in bytes per second, over all its links at once."""
    down_bytes_s: tuple[float, ...]
    """What each member can receive."""
    rtt_s: ArrayLike
    """(n, n) round-trip times in seconds; the diagonal counts as 0. Kept as read-only float32."""
    sites: tuple[int, ...] = ()
    """Site number by rank: members of one site share a local network. Default: all in site 0."""
    site_up_bytes_s: tuple[float, ...] | None = None
    """By site number, what all members of a site together can send to other sites. None: no limit
    beyond their own; infinity: none for this site."""
    site_down_bytes_s: tuple[float, ...] | None = None
    """The same for what they receive from other sites."""
    digest: bytes = field(init=False, repr=False)
    """16 bytes: equal networks have equal digests."""

    def __post_init__(self) -> None:
        members = len(self.up_bytes_s)
        up, down = _rates(self.up_bytes_s, members), _rates(self.down_bytes_s, members)
        delays = np.array(self.rtt_s, np.float32)
        if members < 1 or delays.shape != (members, members):
            raise ValueError(f"{members} members need a square of RTTs, not {delays.shape}")
        np.fill_diagonal(delays, 0)
        if not np.isfinite(delays).all() or (delays < 0).any():
            raise ValueError("RTTs must be finite and not negative")
        delays.flags.writeable = False
        sites = tuple(self.sites) or (0,) * members
        if len(sites) != members or min(sites) < 0 or max(sites) >= members:
            raise ValueError(f"{members} members need as many site numbers below {members}")
        limits = [
            None if limit is None else _rates(limit, max(sites) + 1, finite=False)
            for limit in (self.site_up_bytes_s, self.site_down_bytes_s)
        ]
        digest = hashlib.blake2b(digest_size=16)
        for part in (up, down, sites, *limits):
            digest.update(repr(part).encode())
        digest.update(delays.tobytes())
        for name, value in (
            ("up_bytes_s", up),
            ("down_bytes_s", down),
            ("rtt_s", delays),
            ("sites", sites),
            ("site_up_bytes_s", limits[0]),
            ("site_down_bytes_s", limits[1]),
            ("digest", digest.digest()),
        ):
            object.__setattr__(self, name, value)

    @classmethod
    def uniform(cls, members: int, bytes_s: float = 125e6, rtt_s: float = 0.001) -> Network:
        """`members` equal members, each `bytes_s` both ways and `rtt_s` from everybody."""
        rates = (bytes_s,) * members
        delays = np.full((members, members), rtt_s, np.float32)
        return cls(up_bytes_s=rates, down_bytes_s=rates, rtt_s=delays)

    @property
    def members(self) -> int:
        return len(self.up_bytes_s)

    @property
    def rtt(self) -> NDArray[np.float32]:
        """`rtt_s` as the (n, n) array that it is."""
        return np.asarray(self.rtt_s, np.float32)

    @property
    def both_ways_bytes_s(self) -> tuple[float, ...]:
        """min(up, down) by rank: what counts where a member sends as much as it receives."""
        return tuple(map(min, self.up_bytes_s, self.down_bytes_s))

    def site_members(self) -> list[list[int]]:
        """Ranks by site, sites in the order of their numbers, without empty ones."""
        groups: dict[int, list[int]] = {}
        for rank, site in enumerate(self.sites):
            groups.setdefault(site, []).append(rank)
        return [groups[site] for site in sorted(groups)]

    def subset(self, ranks: Sequence[int]) -> Network:
        """The network among some members: rank i of the result is ranks[i] of this one."""
        numbers = sorted({self.sites[rank] for rank in ranks})
        renumbered = {site: number for number, site in enumerate(numbers)}

        def of_sites(limits: tuple[float, ...] | None) -> tuple[float, ...] | None:
            return None if limits is None else tuple(limits[site] for site in numbers)

        return Network(
            up_bytes_s=tuple(self.up_bytes_s[rank] for rank in ranks),
            down_bytes_s=tuple(self.down_bytes_s[rank] for rank in ranks),
            rtt_s=self.rtt[np.ix_(list(ranks), list(ranks))],
            sites=tuple(renumbered[self.sites[rank]] for rank in ranks),
            site_up_bytes_s=of_sites(self.site_up_bytes_s),
            site_down_bytes_s=of_sites(self.site_down_bytes_s),
        )

    def with_sites(self, lan_s: float = LAN_RTT_S) -> Network:
        """The same network, with sites found by `sites_from_rtt` and no shared limits."""
        sites = sites_from_rtt(self.rtt, lan_s)
        return replace(self, sites=sites, site_up_bytes_s=None, site_down_bytes_s=None)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Network) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)


def sites_from_rtt(rtt_s: ArrayLike, lan_s: float = LAN_RTT_S) -> tuple[int, ...]:
    """Site numbers by rank: everybody joins the first site whose first member is within `lan_s`.

    A delay counts as the shorter of its two directions. Sites are stars around their first member
    rather than chains of neighbours, so that a metropolis full of fibre does not become one LAN.
    """
    delays = np.asarray(rtt_s, np.float32)
    delays = np.minimum(delays, delays.T)
    sites = np.full(len(delays), -1)
    site = 0
    for rank in range(len(delays)):
        if sites[rank] < 0:
            sites[(sites < 0) & (delays[rank] < np.float32(lan_s))] = site
            sites[rank] = site
            site += 1
    return tuple(map(int, sites))


def _rates(given: Iterable[float], expected: int, *, finite: bool = True) -> tuple[float, ...]:
    rates = tuple(float(np.float32(rate)) for rate in given)
    if len(rates) != expected:
        raise ValueError(f"{len(rates)} bandwidths where {expected} are needed")
    if not all(rate > 0 and (rate != float("inf") or not finite) for rate in rates):
        raise ValueError("bandwidths must be positive, and finite")
    return rates
