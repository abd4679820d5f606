"""What a person gets to see of the orders for the trainer, as events (README, "Events")."""

from __future__ import annotations

from decentral.peer import protocol
from decentral.peer.orders import Order
from decentral.peer.runtime.events import EventLog
from decentral.types import PeerId


def show(events: EventLog, me: PeerId, order: Order | protocol.Fenced) -> None:
    """Orders that say nothing to people are passed over."""

    def fault(kind: str, peer: PeerId | None, says: str) -> None:
        events.emit("fault", kind=kind, peer=peer, says=says)

    match order:
        case protocol.Committed(_, protocol.ViewEntry(reason=reason), view):
            lineage, epoch, members = view.lineage, view.epoch, len(view.members)
            events.emit("view", lineage=lineage, epoch=epoch, members=members, reason=reason)
        case protocol.Committed(_, protocol.RollbackEntry() as entry):
            what = f"tag {entry.tag}" if entry.tag else "the run"
            fault("rollback", None, f"{what} goes on from round {entry.round}: {entry.reason}")
        case protocol.Committed(_, protocol.PauseEntry(paused=True, reason=reason)):
            fault("pause", None, f"the run is paused: {reason or 'asked for'}")
        case protocol.Committed(_, protocol.PauseEntry()):
            fault("resume", None, "the run goes on")
        case protocol.Evicted(says):
            fault("evicted", me, says)
        case protocol.Fault(kind, peer, says):
            fault(kind, peer, says)
        case protocol.Left(says):
            events.emit("left", peer=me, says=says)
        case protocol.Fenced(says):
            fault("fenced", me, says)
