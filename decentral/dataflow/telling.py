"""What a worker puts on the event stream: the `round`, `done` and `fault` events of any peer."""

from __future__ import annotations

import time

from decentral.errors import DecentralError
from decentral.mesh_port import MeshPort
from decentral.peer.protocol import Committed, RoundEntry
from decentral.peer.views_log import LogState


class Telling:
    def __init__(self, mesh: MeshPort, strategy: str) -> None:
        self._mesh, self._strategy, self._since = mesh, strategy, time.monotonic()

    def round(
        self, order: Committed, entry: RoundEntry, loss: float | None, replica_bytes: int
    ) -> None:
        """A committed round of a cell that is kept here. `loss`: where it was computed here;
        `replica_bytes`: so many of the bytes so far went to, or came to, second keepers."""
        now = time.monotonic()
        seconds, self._since = now - self._since, now
        log = self._mesh.log()
        tokens = log.samples if log is not None else 0
        sent, received = self._mesh.traffic()
        shown = {"strategy": self._strategy, "loss": loss, "tokens": tokens}
        self._mesh.telemetry(tag=entry.tag, **shown)
        self._mesh.emit(
            {
                "event": "round",
                "tag": entry.tag,
                "lineage": order.view.lineage,
                "epoch": order.view.epoch,
                "round": entry.round,
                "durable_round": entry.durable_round,
                "participants": len(entry.contributions),
                "state_hash": entry.state_root.hex(),
                "loss": loss,
                "tokens": tokens,
                "bytes_sent": sent,
                "bytes_received": received,
                "replica_bytes": replica_bytes,
                "seconds": round(seconds, 4),
            }
        )

    def done(self, log: LogState) -> None:
        """Every cell is at its last round; `state_hash` is over all of them."""
        self._mesh.emit(
            {
                "event": "done",
                "reason": "every cell is at its last round",
                "round": max(scope.round for scope in log.scopes),
                "tokens": log.samples,
                "state_hash": whole_root(log).hex(),
            }
        )

    def fault(self, kind: str, error: DecentralError) -> None:
        """Something that the run survives."""
        self._mesh.emit({"event": "fault", "kind": kind, "peer": error.peer, "says": error.says})


def whole_root(log: LogState) -> bytes:
    """One hash of all cells' committed rounds."""
    from decentral import _native

    return bytes(_native.state_root([(scope.tag, scope.root) for scope in log.scopes]))
