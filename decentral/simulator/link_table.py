"""Tables of link classes, and networks drawn from them.

`BUILTIN` is an assumption, not a measurement: rough figures for how volunteers, offices and data
centres are connected. Bandwidths and delays are drawn log-uniformly between the two numbers of
each range; a delay between two peers is the sum of both ends' access delays and of the distance
between their regions. A file gives another table (the JSON form is what `LinkTable.from_json`
reads):

    {"classes": [{"name": "home", "probability": 0.4, "up_mbit": [20, 50], "down_mbit": [100, 300],
                  "access_ms": [5, 15], "site_peers": [1, 1], "site_mbit": null}, …],
     "region_rtt_ms": [[15, 90], [90, 15]]}
"""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from decentral.collectives.network import Network
from decentral.errors import ConfigError

BYTES_S_PER_MBIT = 125_000
LAN_RTT_S = 0.0004
Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class LinkClass:
    """One way of being connected. Ranges are (low, high)."""

    name: str
    probability: float
    """How often a site is of this class; weights, which need not add up to 1."""
    up_mbit: Range
    """What a peer can send."""
    down_mbit: Range
    access_ms: Range
    """Its part of every round trip."""
    site_peers: tuple[int, int] = (1, 1)
    """How many peers share the site."""
    site_mbit: Range | None = None
    """What the site's link carries, both ways; None: as much as its peers do."""


@dataclass(frozen=True, kw_only=True)
class LinkTable:
    """Classes, and how far regions are apart. A site is in any region with equal chance."""

    classes: tuple[LinkClass, ...]
    region_rtt_ms: tuple[tuple[float, ...], ...]

    @classmethod
    def from_json(cls, path: Path) -> LinkTable:
        """ConfigError for a file that is no table; it says why."""
        try:
            given = json.loads(path.read_text())
            classes = tuple(_class(one) for one in given["classes"])
            regions = tuple(tuple(map(float, row)) for row in given["region_rtt_ms"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path} is no table of links: {error!r}") from error
        if not classes or not regions or any(len(row) != len(regions) for row in regions):
            raise ConfigError(f"{path} needs classes, and a square of regions")
        return cls(classes=classes, region_rtt_ms=regions)


def draw(table: LinkTable, members: int, seed: int) -> Network:
    """A network of `members`; with the same seed a larger one starts with the smaller ones'."""
    rng = random.Random(seed)
    weights = [one.probability for one in table.classes]
    up: list[float] = []
    down: list[float] = []
    access: list[float] = []
    limits: list[float] = []
    sites: list[int] = []
    regions: list[int] = []
    while len(up) < members:
        one = rng.choices(table.classes, weights)[0]
        region = rng.randrange(len(table.region_rtt_ms))
        limit = math.inf if one.site_mbit is None else _draw(rng, one.site_mbit)
        for _ in range(rng.randint(*one.site_peers)):
            up.append(_draw(rng, one.up_mbit) * BYTES_S_PER_MBIT)
            down.append(_draw(rng, one.down_mbit) * BYTES_S_PER_MBIT)
            access.append(_draw(rng, one.access_ms) / 1e3)
            sites.append(len(limits))
            regions.append(region)
        limits.append(limit * BYTES_S_PER_MBIT)
    sites, own = sites[:members], np.array(access[:members], np.float32)
    where, site = np.array(regions[:members]), np.array(sites)
    delays = own[:, None] + own[None, :]
    delays += np.array(table.region_rtt_ms, np.float32)[where[:, None], where[None, :]] / 1e3
    delays[site[:, None] == site[None, :]] = LAN_RTT_S
    shared = tuple(limits[: max(sites) + 1])
    return Network(
        up_bytes_s=tuple(up[:members]),
        down_bytes_s=tuple(down[:members]),
        rtt_s=delays,
        sites=tuple(sites),
        site_up_bytes_s=shared,
        site_down_bytes_s=shared,
    )


def _draw(rng: random.Random, bounds: Range) -> float:
    low, high = map(math.log, bounds)
    return math.exp(rng.uniform(low, high))


def _class(given: dict[str, Any]) -> LinkClass:
    known = {field.name for field in fields(LinkClass)}
    if set(given) - known:
        raise ValueError(f"unknown fields {sorted(set(given) - known)}")
    ranges = {key: _range(value) for key, value in given.items() if isinstance(value, list)}
    low, high = ranges.pop("site_peers", (1, 1))
    one = LinkClass(**{**given, **ranges, "site_peers": (int(low), int(high))})
    if not isinstance(one.name, str) or not one.probability > 0:
        raise ValueError("a class needs a name and a probability above zero")
    return one


def _range(given: list[Any]) -> Range:
    low, high = map(float, given)
    if not 0 < low <= high < math.inf:
        raise ValueError(f"{given} is no range above zero")
    return low, high


BUILTIN = LinkTable(
    classes=(
        LinkClass(
            name="home cable or DSL", probability=0.35,
            up_mbit=(15, 50), down_mbit=(80, 300), access_ms=(6, 20),
        ),
        LinkClass(
            name="home fibre", probability=0.3,
            up_mbit=(200, 900), down_mbit=(300, 940), access_ms=(2, 6),
        ),
        LinkClass(
            name="office or lab: a LAN behind one uplink", probability=0.15,
            up_mbit=(940, 940), down_mbit=(940, 940), access_ms=(2, 5),
            site_peers=(2, 8), site_mbit=(200, 940),
        ),
        LinkClass(
            name="data centre", probability=0.15,
            up_mbit=(1000, 9000), down_mbit=(1000, 9000), access_ms=(0.3, 1),
            site_peers=(1, 4),
        ),
        LinkClass(
            name="mobile", probability=0.05,
            up_mbit=(8, 40), down_mbit=(30, 150), access_ms=(25, 60),
        ),
    ),
    # Europe, North America (both coasts at once), East Asia.
    region_rtt_ms=((15, 95, 210), (95, 35, 140), (210, 140, 35)),
)  # fmt: skip
"""Assumed: see the module."""
