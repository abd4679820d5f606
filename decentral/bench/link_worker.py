"""One end of a link, or the relay in its middle: ``python -m decentral.bench.link_worker``.

Does what its parent says (workers.py), one line at a time; the methods of `Duties` are the words.
"""

from __future__ import annotations

import argparse
import hashlib
import secrets
import select
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decentral import _native
from decentral.bench.workers import cpu_seconds, die_with_parent, hear, say, sleep_until
from decentral.errors import DecentralError, UnreachableError
from decentral.types import peer_id, raw_id

PATIENCE_S = 60.0
BLOB = 1


class Duties:
    """What a parent can ask. Every answer is one dict."""

    def __init__(self, rank: int, host: str, streams: int) -> None:
        self.rank = rank
        self._endpoint = _native.Endpoint(
            secrets.token_bytes(32), bulk_streams=streams, max_bulk_streams=streams
        )
        self.address = {
            "peer": peer_id(self._endpoint.id),
            "host": host,
            "port": self._endpoint.listen(host, 0),
        }
        self._link = 0
        self._events: list[Any] = []
        self._source: NDArray[np.uint8] = np.empty(0, np.uint8)
        self._result: NDArray[np.uint8] = np.empty(0, np.uint8)

    def offer(self, *, token: str) -> dict[str, Any]:
        """Relay for the two that show this token."""
        self._endpoint.offer_relay(bytes.fromhex(token))
        return {}

    def dial(self, *, at: dict[str, Any], peer: str, token: str = "", **how: Any) -> dict[str, Any]:
        """Dial `peer`, itself or through the relay that listens there."""
        self._endpoint.dial(
            at["host"], at["port"], expected=raw_id(peer), relay_token=bytes.fromhex(token), **how
        )
        return {}

    def linked(self) -> dict[str, Any]:
        """Once the link is up and admitted."""
        up = self._wait("link-up")
        self._endpoint.admit(up.link)
        self._link = up.link
        return {"carrier": up.carrier}

    def unlink(self) -> dict[str, Any]:
        self._endpoint.close_link(self._link, "the benchmark is done with this link")
        self._wait("link-down", fine=True)
        return {}

    def prepare(self, *, size_bytes: int) -> dict[str, Any]:
        """Bytes to send and room for as many, both in memory already."""
        self._source = np.random.default_rng(self.rank).integers(0, 256, size_bytes, np.uint8)
        self._result = np.full_like(self._source, 255)
        return {"sha256": hashlib.sha256(self._source.data).hexdigest()}

    def expect(self) -> dict[str, Any]:
        """A blob will come."""
        self._endpoint.post_blob(self._link, BLOB, self._result)
        return {}

    def transfer(self, *, start_at: float, sends: bool, receives: bool) -> dict[str, Any]:
        """Send what was prepared, or take what comes, or both at once."""
        sleep_until(start_at)
        cpu = cpu_seconds()
        if sends:
            self._endpoint.send_blob(self._link, BLOB, self._source)
        awaited = ["blob-sent"] * sends + ["blob"] * receives
        while awaited:
            awaited.remove(self._wait(*awaited).type)
        return {"seconds": time.monotonic() - start_at, "cpu_seconds": cpu_seconds() - cpu}

    def received(self) -> dict[str, Any]:
        """The digest of what came, for the parent to compare; and the room is filled with ones."""
        digest = hashlib.sha256(self._result.data).hexdigest()
        self._result.fill(255)
        return {"sha256": digest}

    def cpu(self) -> dict[str, Any]:
        """Of this process so far: a relay's part is a difference."""
        return {"cpu_seconds": cpu_seconds()}

    def _wait(self, *types: str, fine: bool = False) -> Any:
        """The next event of these types; one that ends the link is an error, unless `fine`."""
        deadline_s = time.monotonic() + PATIENCE_S
        while (left_s := deadline_s - time.monotonic()) > 0:
            for event in self._events:
                if event.type in types:
                    self._events.remove(event)
                    return event
                if event.type in ("link-down", "dial-failed", "blob-failed") and not fine:
                    assert event.error is not None
                    raise DecentralError(event.error[3], phase=event.error[1])
            self._events.clear()
            select.select([self._endpoint.event_fd], [], [], left_s)
            self._events += self._endpoint.take_events()
        raise UnreachableError(f"no {' or '.join(types)} within {PATIENCE_S:g} s", phase="bench")


def main() -> None:
    die_with_parent()
    parser = argparse.ArgumentParser()
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--peers", type=int, required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--streams", type=int, default=2)
    args = parser.parse_args()
    duties = Duties(args.rank, args.host, args.streams)
    say(address=duties.address)
    while True:
        asked = hear()
        say(**getattr(duties, asked.pop("do"))(**asked))


if __name__ == "__main__":
    main()
