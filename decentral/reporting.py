"""What a run puts on the event stream and on disk when a round is committed and applied."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from decentral.checkpoint import Checkpointer
from decentral.errors import DecentralError
from decentral.mesh_port import MeshPort
from decentral.options import RunOptions
from decentral.outer_round import Adoption
from decentral.state import HeldState


class Reporter:
    """The `round`, `done` and `fault` events of DESIGN section 9, and the checkpoints."""

    def __init__(self, mesh: MeshPort, options: RunOptions) -> None:
        self._mesh, self._options = mesh, options
        self._checkpointer: Checkpointer | None = None
        self._lineage = ""
        self._since = time.monotonic()
        self._done = False

    def adopted(self, held: HeldState, lineage: str) -> None:
        """A committed state is in place: put it on disk, beside the training."""
        self._lineage = lineage or self._lineage
        if self._options.checkpoints is None:
            return
        if self._checkpointer is None:
            # Not before now: a joiner of an open run has only just learned which run it is.
            self._checkpointer = Checkpointer(
                self._options.checkpoints,
                run=self._mesh.run_id,
                on_saved=self._mesh.checkpointed,
                on_failed=lambda error: self.fault("checkpoint", error),
            )
        self._checkpointer.submit(held.state, self._lineage)

    def round(self, adoption: Adoption, extra: Mapping[str, Any]) -> None:
        now = time.monotonic()
        seconds, self._since = now - self._since, now
        sent, received = self._mesh.traffic()
        meta = adoption.held.meta
        self._mesh.telemetry(strategy=meta.strategy, loss=adoption.loss, tokens=meta.tokens)
        self._mesh.emit(
            {
                "event": "round",
                "lineage": adoption.view.lineage,
                "epoch": adoption.view.epoch,
                "round": adoption.held.round,
                "durable_round": adoption.entry.durable_round,
                "participants": len(adoption.entry.contributions),
                "state_hash": adoption.held.root.hex(),
                "loss": adoption.loss,
                "tokens": meta.tokens,
                "bytes_sent": sent,
                "bytes_received": received,
                "seconds": round(seconds, 4),
                **extra,
            }
        )

    def done(self, held: HeldState, reason: str, extra: Mapping[str, Any]) -> None:
        """The run is over for all. Its last state is on disk before anybody hears of it."""
        if self._done:
            return
        self._done = True
        if self._checkpointer is not None:
            self._checkpointer.flush()
        self._mesh.emit(
            {
                "event": "done",
                "reason": reason,
                "round": held.round,
                "tokens": held.meta.tokens,
                "state_hash": held.root.hex(),
                **extra,
            }
        )

    def fault(self, kind: str, error: DecentralError) -> None:
        """Something that training survives."""
        self._mesh.emit({"event": "fault", "kind": kind, "peer": error.peer, "says": error.says})

    def close(self) -> None:
        if self._checkpointer is not None:
            self._checkpointer.close()
