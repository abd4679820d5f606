"""A rank's endpoint, links and group, inside its worker process."""

from __future__ import annotations

import secrets
import select
import time
from collections.abc import Mapping, Sequence
from typing import Any

from decentral import _native
from decentral.collectives import Group
from decentral.errors import UnreachableError
from decentral.types import View, peer_id, raw_id

CONNECT_TIMEOUT_S = 30.0


class Member:
    """Has a fresh identity; admits whoever dials it: benchmarks trust their own machine."""

    def __init__(
        self,
        host: str,
        *,
        encrypt: bool,
        streams: int,
        congestion: str,
        silence_limit_s: float,
        max_upload_bytes_s: int = 0,
    ) -> None:
        """`streams`: bulk streams per link; 0: as many as carry more."""
        how: dict[str, Any] = {"encrypt_bulk": encrypt, "congestion": congestion}
        how["max_upload_bytes_s"] = max_upload_bytes_s
        if streams:
            how |= {"bulk_streams": streams, "max_bulk_streams": streams}
        silence_limit_ms = round(silence_limit_s * 1000)
        self.endpoint = _native.Endpoint(
            secrets.token_bytes(32),
            silence_limit_ms=silence_limit_ms,
            heartbeat_ms=min(1000, silence_limit_ms // 5),
            **how,
        )
        self.me = peer_id(self.endpoint.id)
        self.address = {
            "peer": self.me,
            "host": host,
            "port": self.endpoint.listen(host, 0),
        }
        self.members: list[str] = []
        self.group: Group
        self._links: dict[str, int] = {}

    def connect(self, roster: Sequence[Mapping[str, Any]], dial: Sequence[str], epoch: int) -> None:
        """Be linked to everybody in `roster`, dialling some of them, and form a group in its order.

        UnreachableError if that has not happened within CONNECT_TIMEOUT_S.
        """
        self.members = [one["peer"] for one in roster]
        self.pump(0)
        for one in roster:
            if one["peer"] in dial:
                self.endpoint.dial(one["host"], one["port"], expected=raw_id(one["peer"]))
        deadline_s = time.monotonic() + CONNECT_TIMEOUT_S
        while missing := set(self.members) - set(self._links) - {self.me}:
            if time.monotonic() > deadline_s:
                raise UnreachableError("no link came up", peer=missing.pop(), phase="bench")
            self.pump(0.2)
        view = View(lineage="00" * 8, epoch=epoch, members=tuple(self.members))
        self.group = Group(self.endpoint, view, self.me)

    def link(self, rank: int) -> int:
        """The number of the link to a member."""
        return self._links[self.members[rank]]

    def pump(self, timeout_s: float) -> list[Any]:
        """Wait for the network, keep the links in order; probe answers are the caller's."""
        select.select([self.endpoint.event_fd], [], [], timeout_s)
        answers = []
        for event in self.endpoint.take_events():
            if event.type == "link-up":
                self.endpoint.admit(event.link)
                self._links[peer_id(event.peer)] = event.link
            elif event.type == "link-down" and self._links.get(peer_id(event.peer)) == event.link:
                del self._links[peer_id(event.peer)]
            elif event.type == "dial-failed":
                assert event.error is not None
                raise UnreachableError(event.error[3], phase=event.error[1])
            elif event.type == "probe-ack":
                answers.append(event)
        return answers
