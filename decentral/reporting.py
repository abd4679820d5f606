"""What a run puts on the event stream and on disk when a round is committed and applied."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from decentral import checkpoint
from decentral.checkpoint import Checkpointer, Own
from decentral.errors import CorruptCheckpointError, DecentralError, DiskError
from decentral.mesh_port import MeshPort
from decentral.options import RunOptions
from decentral.outer_work import Adoption
from decentral.state import HeldState, Layout, unseal


class Reporter:
    """The `round`, `done` and `fault` events of DESIGN section 9, and the checkpoints; of one tag,
    which the events name if it has a name."""

    def __init__(self, mesh: MeshPort, options: RunOptions, layout: Layout, tag: str = "") -> None:
        self._mesh, self._options, self._layout = mesh, options, layout
        self._tag, self._directory = tag, options.checkpoints(tag)
        self._named = {"tag": tag} if tag else {}
        self._checkpointer: Checkpointer | None = None
        self._lineage = ""
        self._since = time.monotonic()
        self._done = False

    def adopted(self, held: HeldState, lineage: str, own: Callable[[], Own]) -> None:
        """A committed state is in place: put it on disk, beside the training, and with it what is
        this peer's alone (copies, which are made only if they are needed)."""
        self._lineage = lineage or self._lineage
        if self._directory is None:
            return
        if self._checkpointer is None:
            # Not before now: a joiner of an open run has only just learned which run it is.
            self._checkpointer = Checkpointer(
                self._directory,
                run=self._mesh.run_id,
                on_saved=lambda round: self._on_disk(round),
                on_failed=lambda error: self.fault("checkpoint", error),
            )
        self._checkpointer.submit(held.state, self._lineage, own())

    def kept(self) -> tuple[int, ...]:
        """Rounds that the disk can give back."""
        return checkpoint.kept(self._directory) if self._directory is not None else ()

    def resumed(self, held: HeldState) -> None:
        """That state came from this disk."""
        self._on_disk(held.round)

    def _on_disk(self, round: int) -> None:
        self._mesh.checkpointed(round, self.kept(), tag=self._tag)

    def rolled_back(self, round: int, root: bytes) -> HeldState | None:
        """The run has gone back: that state if it is on this disk, and later ones moved aside."""
        directory = self._directory
        if directory is None:
            return None
        if self._checkpointer is not None:
            self._checkpointer.flush()
        try:
            checkpoint.undo(directory, after=round)
            state = checkpoint.load_round(directory, round, root, self._layout.schema())
        except (CorruptCheckpointError, DiskError) as error:
            self.fault("checkpoint", error)
            return None
        self._on_disk(0 if state is None else round)
        return None if state is None else unseal(self._layout, state)

    def superseded(self, held: HeldState, lineage: str) -> None:
        """Another lineage has won: what this one had committed is kept beside the checkpoints."""
        directory = self._directory
        if directory is None:
            return
        if self._checkpointer is not None:
            self._checkpointer.flush()  # two writers in one folder clean up after each other
        try:
            path = checkpoint.keep_apart(held.state, directory, self._mesh.run_id, lineage)
        except DiskError as error:
            self.fault("checkpoint", error)
            return
        says = (
            f"round {held.round} of lineage {lineage}, which another one has won over, is in {path}"
        )
        self._mesh.emit({"event": "fault", "kind": "superseded", "peer": None, "says": says})

    def round(self, adoption: Adoption, extra: Mapping[str, Any]) -> None:
        now = time.monotonic()
        seconds, self._since = now - self._since, now
        sent, received = self._mesh.traffic()
        meta = adoption.held.meta
        shown = {"strategy": meta.strategy, "loss": adoption.loss, "tokens": meta.tokens}
        self._mesh.telemetry(tag=self._tag, **shown)
        self._mesh.emit(
            {
                "event": "round",
                **self._named,
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
                **self._named,
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

    def flush(self) -> None:
        """What is to be on disk is there when this returns, or has failed."""
        if self._checkpointer is not None:
            self._checkpointer.flush()

    def close(self) -> None:
        if self._checkpointer is not None:
            self._checkpointer.close()
