"""Where the peers of a churn run live: hosts of a lab with faults to have, or plain loopback.

    network.cut([(a, b)])       a's packets do not reach b (directed), until the token is undone
    network.loss(a, 0.2) …      each returns a token; `undo(token)` takes that one fault back

Faults overlap. What holds for a host at any moment is put together from all that are on: delays
add up, of losses and rates the worst counts, a pair is cut while anybody cuts it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from decentral.bench import lab
from decentral.bench.delay_lab import DelayLab
from decentral.bench.lab import Lines

RATE_MBIT = 200.0
RTT_MS = 2.0
Pair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Effect:
    """What one fault does to the network."""

    pairs: frozenset[Pair] = frozenset()
    """From whom to whom nothing gets through; hosts count from 0."""
    host: int = -1
    loss: float = 0.0
    corruption: float = 0.0
    delay_ms: float = 0.0
    rate_share: float = 1.0


@dataclass
class Network:
    """The lab's network, with the faults that are on."""

    lab: DelayLab
    on_cut: Callable[[list[Pair]], None]
    """Told all directed pairs that are cut whenever that changes."""
    _on: dict[int, Effect] = field(default_factory=dict)
    _tokens: itertools.count[int] = field(default_factory=itertools.count)
    _cut: frozenset[Pair] = frozenset()

    @property
    def hosts(self) -> range:
        return range(len(self.lab.hosts))

    def apply(self, effect: Effect) -> int:
        """A token to undo it with."""
        token = next(self._tokens)
        self._on[token] = effect
        self._refresh(effect)
        return token

    def undo(self, token: int) -> None:
        self._refresh(self._on.pop(token))

    def heal(self) -> None:
        for token in list(self._on):
            self.undo(token)

    def _refresh(self, changed: Effect) -> None:
        if changed.pairs:
            wanted = frozenset().union(*(one.pairs for one in self._on.values()))
            for a, b in wanted - self._cut:
                self.lab.block(a, b, True)
            for a, b in self._cut - wanted:
                self.lab.block(a, b, False)
            self._cut = wanted
            self.on_cut(sorted(wanted))
        if changed.host >= 0:
            self._refresh_host(changed.host)

    def _refresh_host(self, host: int) -> None:
        on = [one for one in self._on.values() if one.host == host]
        self.lab.set_host_loss(host, max((one.loss for one in on), default=0.0))
        self.lab.set_corruption(host, max((one.corruption for one in on), default=0.0))
        self.lab.set_rate(host, RATE_MBIT * min((one.rate_share for one in on), default=1.0))
        delays = {
            other: sum(one.delay_ms for one in self._on.values() if one.host in (host, other))
            for other in self.hosts
        }
        for other, extra_ms in delays.items():
            if other != host:
                self.lab.set_delay(host, other, RTT_MS + extra_ms)


def between(one: Iterable[int], other: Iterable[int], *, both: bool = True) -> frozenset[Pair]:
    """All directed pairs from one side to the other, and back."""
    there = {(a, b) for a in one for b in other if a != b}
    return frozenset(there | ({(b, a) for a, b in there} if both else set()))


def why_no_network() -> str:
    """Why peers cannot have hosts of their own here; empty if they can."""
    return lab.why_not(delayed=True)


def open_network(hosts: int, seed: int, on_cut: Callable[[list[Pair]], None]) -> Network:
    """Hosts on a delay line, with nothing wrong yet. Close its `lab` in the end."""
    lines = Lines(rates_mbit=(RATE_MBIT,) * hosts, rtt_ms=RTT_MS, seed=seed, delay_line=True)
    opened = lab.open_lab(lines)
    assert isinstance(opened, DelayLab)
    return Network(opened, on_cut)
