"""What people ask of the run: pause, resume, roll back. Carried to the coordinator until done.

Ask ──▶ Wish ──▶ coordinator ──▶ entry in the log ──▶ "done" for whoever asked
                     └──▶ WishRefused, with a sentence
"""

from __future__ import annotations

from collections.abc import Mapping

from decentral.peer.context import Context
from decentral.peer.coordinator import Coordinator
from decentral.peer.messages import Wish, WishRefused
from decentral.peer.protocol import Ask, Entry, PauseEntry, RollbackEntry
from decentral.peer.replica import Replica
from decentral.peer.views_log import LogState
from decentral.types import PeerId

AGAIN_S = 1.0
GIVE_UP_S = 15.0


class Wishes:
    def __init__(
        self, ctx: Context, replica: Replica, coordination: Mapping[str, Coordinator]
    ) -> None:
        self.ctx = ctx
        self.replica = replica
        self.coordination = coordination
        self.outcome = ""
        """How the last wish of this peer's person went: "" while it is open, "done", or why not."""
        self._mine: Wish | None = None
        self._since = 0.0
        self.again_at = float("inf")
        """When the wish is said again."""
        self._heard: dict[PeerId, Wish] = {}

    # -------------------------------------------------------------- the one who asks

    def ask(self, event: Ask) -> None:
        self._mine = Wish(event.what, event.round, event.reason[:1000], event.tag)
        self.outcome = ""
        self._since = self.again_at = self.ctx.now
        self.ctx.dirty = True

    def drive(self, coordinator: PeerId | None) -> None:
        """Say it again until it is in the log: coordinators come and go."""
        if self._mine is None or self.ctx.now < self.again_at:
            return
        if self.ctx.now - self._since > GIVE_UP_S:
            self._end(f"no coordinator has committed it within {GIVE_UP_S:.0f} s")
            return
        self.again_at = self.ctx.now + AGAIN_S
        if coordinator is not None:
            self.ctx.send(coordinator, self._mine)

    def on_refused(self, peer: PeerId, msg: WishRefused) -> None:
        if self._mine is not None and self._mine.what == msg.what:
            self._end(msg.says)

    def committed(self, entry: Entry) -> None:
        """Was that what was asked for?"""
        mine = self._mine
        match entry:
            case PauseEntry():
                if mine is not None and mine.what == ("pause" if entry.paused else "resume"):
                    self._end("done")
            case RollbackEntry():
                wanted = None if mine is None else (mine.what, mine.tag, mine.round)
                if wanted == ("rollback", entry.tag, entry.round):
                    self._end("done")
            case _:
                return  # a round or a view: what was asked for is still to come
        self._heard.clear()

    def _end(self, outcome: str) -> None:
        self._mine, self.outcome = None, outcome
        self.again_at = float("inf")

    # -------------------------------------------------------------- the coordinator

    def on_wish(self, peer: PeerId, msg: Wish) -> None:
        if not self.replica.counts(peer):
            return  # who waits outside has no say in the run
        self._heard[peer] = msg
        self.ctx.dirty = True

    def entry(self, state: LogState) -> Entry | None:
        """What to propose next because somebody asked for it."""
        while self._heard:
            peer, wish = next(iter(self._heard.items()))
            entry = self._entry_for(state, wish)
            if not isinstance(entry, str):
                return entry
            del self._heard[peer]
            self.ctx.send(peer, WishRefused(wish.what, entry))
        return None

    def _entry_for(self, state: LogState, wish: Wish) -> Entry | str:
        """The entry, or why there is none."""
        match wish.what:
            case "pause" | "resume":
                paused = wish.what == "pause"
                if paused == bool(state.paused):
                    return "the run is paused already" if paused else "the run is not paused"
                return PauseEntry(paused=paused, reason=wish.reason)
            case "rollback":
                return self._rollback(state, wish)
        return f"this version knows no {wish.what!r}"

    def _rollback(self, state: LogState, wish: Wish) -> Entry | str:
        scope = next((one for one in state.scopes if one.tag == wish.tag), None)
        if scope is None:
            modules = ", ".join(one for one in state.tags() if one)
            if not modules:
                return "the model of this run has no modules with rounds of their own"
            return f"each module of this run has rounds of its own: name one of {modules}"
        root = next((one.root for one in scope.history if one.round == wish.round), None)
        if root is None or wish.round >= scope.round:
            return (
                f"round {wish.round} is not one to go back to: the run is at round {scope.round} "
                f"and remembers {scope.history[0].round if scope.history else scope.round} to "
                f"{max(scope.round - 1, 0)}"
            )
        if not self.coordination[scope.tag].kept(state, wish.round):
            return f"no member's disk holds round {wish.round} any more"
        return RollbackEntry(
            round=wish.round, state_root=root, tag=scope.tag, reason=wish.reason or "asked for"
        )
