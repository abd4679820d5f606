"""The outer rounds of all tags that this peer takes part in: their orders, and when training waits.

    mesh's thread ── orders ──▶ inbox ──▶ obey: to the OuterRounds of the order's tag, or to all
    user's thread    step, step, … a tag is due ──▶ contribute ──▶ wait for its commit ──▶ step, …

In a run with one model there is one tag, "". In a run whose modules have rounds of their own a peer
trains with all of its modules at once, so its next step waits for every tag that it has contributed
to; rounds of other tags go on meanwhile:

    peer 1 (a)       a ── commit   a ── commit   a ── commit
    peer 2 (a, c)    a ── commit  [a: nothing]   [a: nothing]      still waits for its c
    peer 3 (c)       c ───────────────────────────────── commit

While it waits it answers whoever asks for another tag that it has nothing to add: weight 0, and it
holds the outcome like everybody. So a slow module holds up the peers that train with it, and nobody
else.

**Samples (I7).** One step trains all modules, and its samples count once: the leases are named by,
and consumed with, the contributions to one tag, the *leading* one: the first of this peer's tags
(in the order of the run's) whose rounds are not over. What the other tags' contributions cost or
lose is counted in tokens alone.
"""

from __future__ import annotations

import queue
from collections.abc import Mapping
from typing import Any

from decentral.mesh_port import MeshFailed, MeshPort, Order
from decentral.outer_round import OuterRounds
from decentral.outer_work import ReduceEnded
from decentral.peer.protocol import AbortReduce, Committed, Evicted, Fault, Joined, Left

_BEAT_S = 1.0
_FOR_ALL = (Committed, Joined, Evicted, Left, MeshFailed, Fault)


class OuterLoop:
    """`on_order` and `post` run on other threads; everything else in the user's."""

    def __init__(self, mesh: MeshPort) -> None:
        self._mesh = mesh
        self._inbox: queue.SimpleQueue[Order | ReduceEnded] = queue.SimpleQueue()
        self._rounds: Mapping[str, OuterRounds] = {}

    def drive(self, rounds: Mapping[str, OuterRounds]) -> None:
        """By tag, in the order of the run's tags."""
        self._rounds = rounds
        self._appoint()

    # ------------------------------------------------------------------ other threads

    def on_order(self, order: Order) -> None:
        if isinstance(order, AbortReduce):
            self._rounds[order.tag].abort(order)
            return
        if isinstance(order, Evicted | MeshFailed):
            for one in self._rounds.values():
                one.abort_any("this peer is out of the view")
        self._inbox.put(order)

    def post(self, ended: ReduceEnded) -> None:
        self._inbox.put(ended)

    # ------------------------------------------------------------------ the user's thread

    @property
    def leading(self) -> OuterRounds:
        """The tag whose contributions name the leases."""
        rounds = list(self._rounds.values())
        return next((one for one in rounds if one.ended is None), rounds[0])

    @property
    def ended(self) -> str | None:
        """Why the run is over for this peer, once it is: all of its tags have ended."""
        reasons = [one.ended for one in self._rounds.values()]
        return None if None in reasons else reasons[0]

    @property
    def due(self) -> bool:
        return any(one.due for one in self._rounds.values())

    def stepped(self, tokens: int, loss: Any) -> None:
        """The inner optimizer has stepped once, in all parts of the model."""
        for one in self._rounds.values():
            if one.ended is None:
                one.stepped(tokens, loss)
            else:
                one.put_back()

    def wait_until_current(self) -> None:
        while any(one.ended is None and not one.current for one in self._rounds.values()):
            self._obey(self._next())

    def drain(self) -> None:
        """Obey whatever has arrived; waits only where there is no state to train from, or where
        others reduce with us."""
        while self.ended is None:
            if any(one.reducing for one in self._rounds.values()):
                self._obey(self._next())
                continue
            try:
                self._obey(self._inbox.get_nowait())
            except queue.Empty:
                break
        self.wait_until_current()

    def wait_for_order(self) -> None:
        self._obey(self._next())

    def synchronize(self, *, early: bool = False) -> None:
        """Contribute the work that is due (`early`: all there is) and wait until commits have
        counted it or the run is over.

        Returns early, with work still this peer's own, when its round commits without it, or when
        it may go on alone for a while.
        """
        for one in self._rounds.values():
            if one.due or (early and one.ended is None and one.work.steps > 0):
                one.contribute()
        while any(one.waiting for one in self._rounds.values()):
            self._obey(self._next())
            for one in self._rounds.values():
                one.reconsider()
            self._abstain()
        self.wait_until_current()
        for one in self._rounds.values():
            one.resume()

    def close(self) -> None:
        """No buffer is borrowed by an all-reduce when this returns. Idempotent."""
        for one in self._rounds.values():
            one.close("the trainer has stopped")

    # ------------------------------------------------------------------ inside

    def _next(self) -> Order | ReduceEnded:
        """The next order, waited for. Whoever waits for others is not hung, and says so."""
        try:
            while True:
                try:
                    return self._inbox.get(timeout=_BEAT_S if len(self._rounds) > 1 else None)
                except queue.Empty:
                    self._mesh.progress(0)
        except BaseException:
            # Ctrl-C: nobody may touch the buffers once this returns.
            for one in self._rounds.values():
                one.close("the trainer stopped waiting")
            raise

    def _obey(self, order: Order | ReduceEnded) -> None:
        if isinstance(order, _FOR_ALL):
            for one in self._rounds.values():
                one.obey(order)
            self._appoint()
        else:
            self._rounds[order.tag].obey(order)

    def _appoint(self) -> None:
        leading = self.leading
        for one in self._rounds.values():
            one.leads = one is leading

    def _abstain(self) -> None:
        """Held up by one tag: whoever waits for us in another shall not."""
        if any(one.waiting and one.work.steps for one in self._rounds.values()):
            for one in self._rounds.values():
                if one.ended is None and one.current and not one.waiting and one.asked:
                    one.contribute()
