"""A whole member that is hostile besides: ``python -m decentral.churn.hostile.insider_peer``.

It trains, votes and reduces like any `sleep_peer`; on the links that it has as a member it also
sends what it should not: what it said seconds ago, again, to anybody; and messages that are wrong.
It tells no lies about votes: those mislead (docs/protocol.md). Says how much, as events.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from random import Random
from typing import Any

from decentral.bench import sleep_peer
from decentral.churn.hostile.mutations import Mutator
from decentral.churn.hostile.replays import STALE
from decentral.churn.hostile.wire import of_core
from decentral.errors import ProtocolError
from decentral.peer import messages
from decentral.peer.runtime import node
from decentral.peer.runtime.links import LinkTable
from decentral.types import PeerId

EVERY_S = 0.1
REPLAYS = 25
"""Old messages per `EVERY_S`."""
OLD_S = 3.0
WRONG_EVERY_S = float(os.environ.get("DECENTRAL_HOSTILE_WRONG_EVERY_S", "2"))
KEPT = 4000


class HostileLinks(LinkTable):
    """Sends what it is told to, and more."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._rng = Random(int(os.environ.get("DECENTRAL_HOSTILE_SEED", "1")))
        self._mutate = Mutator(self._rng)
        self._past: deque[tuple[float, bytes]] = deque(maxlen=KEPT)
        self._sent: Counter[str] = Counter()
        self._wrong_at = time.monotonic() + WRONG_EVERY_S
        self._say_at = 0.0
        self._run_later: Callable[[float, Callable[[], None]], object] = args[3]
        self._run_later(EVERY_S, self._strike)

    def send(self, peer: PeerId, payload: bytes, priority: int = 1) -> bool:
        if of_core(payload) and isinstance(messages.unpack(payload), STALE):
            self._past.append((time.monotonic(), payload))
        return super().send(peer, payload, priority)

    def _strike(self) -> None:
        now = time.monotonic()
        self._run_later(EVERY_S, self._strike)
        linked = [link.peer for link in self.all()]
        if not linked:
            return
        old = [payload for at, payload in self._past if at < now - OLD_S]
        for _ in range(REPLAYS if old else 0):
            self._sent["replayed"] += super().send(self._rng.choice(linked), self._rng.choice(old))
        if old and now >= self._wrong_at:
            self._wrong_at = now + WRONG_EVERY_S
            self._sent["malformed"] += super().send(self._rng.choice(linked), self._wrong(old))
        if now >= self._say_at:
            self._say_at = now + 1.0
            print(json.dumps({"event": "hostile", **self._sent}), flush=True)

    def _wrong(self, corpus: list[bytes]) -> bytes:
        while True:
            payload = self._mutate(self._rng.choice(corpus), self._rng.choice(corpus))
            if not of_core(payload):
                continue
            try:
                messages.unpack(payload)
            except ProtocolError:
                return payload


def main() -> int:
    vars(node)["LinkTable"] = HostileLinks
    return sleep_peer.main()


if __name__ == "__main__":
    sys.exit(main())
