"""Flappers wait outside: who keeps dying soon after it came in costs everybody a view change.

    stay < SHORT_STAY_S, ended by a death or an eviction ──▶ one more short stay in a row
    the first FREE of them cost nothing, then 2, 4, 8 … MOST_S seconds outside
    a longer stay, or a clean leave ──▶ forgiven

Each member counts for itself what the log shows it; only the coordinator's count matters.
"""

from __future__ import annotations

from collections.abc import Iterable

from decentral.types import PeerId

SHORT_STAY_S = 30.0
FREE = 3
FIRST_S = 2.0
MOST_S = 300.0


class Quarantine:
    def __init__(self) -> None:
        self._entered_at: dict[PeerId, float] = {}
        self._stays: dict[PeerId, int] = {}
        self._until: dict[PeerId, float] = {}

    def entered(self, peers: Iterable[PeerId], now: float) -> None:
        for peer in peers:
            self._entered_at[peer] = now
            self._until.pop(peer, None)

    def removed(self, peer: PeerId, now: float, *, clean: bool) -> None:
        """It is no member any more; `clean`: by its own wish."""
        stay_s = now - self._entered_at.pop(peer, float("-inf"))
        if clean or stay_s >= SHORT_STAY_S:
            self._stays.pop(peer, None)
            return
        stays = self._stays[peer] = self._stays.get(peer, 0) + 1
        if stays > FREE:
            self._until[peer] = now + min(FIRST_S * 2.0 ** (stays - FREE - 1), MOST_S)

    def wait_s(self, peer: PeerId, now: float) -> float:
        """How long this peer must still wait before it may enter."""
        return max(0.0, self._until.get(peer, 0.0) - now)

    def stays(self, peer: PeerId) -> int:
        """Short stays in a row."""
        return self._stays.get(peer, 0)
