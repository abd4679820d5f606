"""Hosts on one switch for a test: host n has the address 10.77.0.n, its line is not limited."""

from __future__ import annotations

from decentral.bench.lab import Lines, why_not
from decentral.bench.shaped_lab import ShapedLab

MOST_HOSTS = 6

__all__ = ["Lan", "why_not"]


class Lan:
    """Counts hosts from 1, as their addresses do."""

    def __init__(self) -> None:
        self._lab = ShapedLab(Lines(rates_mbit=(0,) * MOST_HOSTS))
        self._given = 0

    def host(self) -> list[str]:
        """The next host: the command prefix that runs something on it."""
        self._given += 1
        return self._lab.hosts[self._given - 1].prefix

    def unplug(self, number: int) -> None:
        """Cut the cable of host `number`: packets vanish, nobody gets a FIN."""
        self._lab.cut(number - 1)

    def plug(self, number: int) -> None:
        self._lab.heal(number - 1)

    def close(self) -> None:
        self._lab.close()
