"""The outer rounds of all tags that this peer takes part in: threads, and when training waits.

    mesh's thread       ── orders ──▶ exchange's inbox
    exchange's thread   ── to the Exchange of the order's tag, or to all ──▶ news ──▶ user's inbox
    user's thread       step, step, … a tag is due ──▶ contribute ──▶ step, … or wait for its commit

In a run with one model there is one tag, "". In a run whose modules or fragments have rounds of
their own a peer trains with all of its tags at once, so its next step waits for every tag that
holds it up; rounds of other tags go on meanwhile:

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
import threading
import time
from collections.abc import Mapping
from typing import Any

from decentral.mesh_port import MeshFailed, MeshPort, Order
from decentral.outer_round import OuterRounds
from decentral.outer_work import Broken, News, ReduceEnded, Restored
from decentral.peer.protocol import AbortReduce, Committed, Evicted, Fault, Joined, Left

_BEAT_S = 1.0
_STOP_S = 10.0
FINISH_S = 2.0
"""Whoever leaves, or is told to, lets the attempts that it takes part in finish for so long."""
_FOR_ALL = (Committed, Joined, Evicted, Left, MeshFailed, Fault)


class OuterLoop:
    """`on_order`, `post` and `tell` run on other threads; everything else in the user's."""

    def __init__(self, mesh: MeshPort) -> None:
        self._mesh = mesh
        self._orders: queue.SimpleQueue[Order | ReduceEnded | Restored | None] = queue.SimpleQueue()
        self._inbox: queue.SimpleQueue[News] = queue.SimpleQueue()
        self._rounds: Mapping[str, OuterRounds] = {}
        self._thread = threading.Thread(target=self._exchange, name="decentral outer", daemon=True)

    def drive(self, rounds: Mapping[str, OuterRounds]) -> None:
        """By tag, in the order of the run's tags."""
        self._rounds = rounds
        self._appoint()

    def begin(self) -> None:
        """Orders are about to come."""
        self._thread.start()

    # ------------------------------------------------------------------ other threads

    def on_order(self, order: Order) -> None:
        if isinstance(order, AbortReduce):
            self._rounds[order.tag].exchange.abort(order)
            return
        if isinstance(order, Evicted | MeshFailed):
            for one in self._rounds.values():
                one.exchange.abort_any("this peer is out of the view")
        self._orders.put(order)

    def post(self, order: ReduceEnded | Restored) -> None:
        self._orders.put(order)

    def tell(self, news: News) -> None:
        self._inbox.put(news)

    def _exchange(self) -> None:
        while (order := self._orders.get()) is not None:
            try:
                if isinstance(order, _FOR_ALL):
                    for one in self._rounds.values():
                        one.exchange.obey(order)
                else:
                    self._rounds[order.tag].exchange.obey(order)
            except BaseException as error:
                self._inbox.put(Broken(error))

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
        """Whether there is something to contribute or to wait for."""
        return any(one.due or one.held_up for one in self._rounds.values())

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
        """Take in whatever has arrived; waits only where there is no state to train from."""
        while self.ended is None:
            try:
                self._obey(self._inbox.get_nowait())
            except queue.Empty:
                break
        for one in self._rounds.values():
            one.settle()
        self.wait_until_current()

    def wait_for_news(self) -> None:
        self._obey(self._next())

    def synchronize(self, *, early: bool = False) -> None:
        """Contribute the work that is due (`early`: all there is), and wait for what training must
        not go on without.

        Returns with work still this peer's own when its round commits without it, or when it may
        go on alone for a while.
        """
        self._wait()
        for one in self._rounds.values():
            if one.due or (early and one.ended is None and one.work.steps > 0):
                one.contribute()
        self._wait()
        self.wait_until_current()
        for one in self._rounds.values():
            one.resume()

    def withdraw(self) -> None:
        """No buffer is borrowed by an all-reduce when this returns, nor ever again."""
        self._close("the trainer has stopped")

    def close(self) -> None:
        """Nothing is taken in any more. Idempotent."""
        self.withdraw()
        self._orders.put(None)
        if self._thread.is_alive():
            self._thread.join(_STOP_S)

    # ------------------------------------------------------------------ inside

    def _wait(self) -> None:
        while any(one.held_up for one in self._rounds.values()):
            self._obey(self._next())
            for one in self._rounds.values():
                one.reconsider()
            self._abstain()

    def _next(self) -> News:
        """The next news, waited for. Whoever waits for others is not hung, and says so."""
        try:
            while True:
                try:
                    return self._inbox.get(timeout=_BEAT_S if len(self._rounds) > 1 else None)
                except queue.Empty:
                    self._mesh.progress(0)
        except BaseException:
            # Ctrl-C: nobody may touch the buffers once this returns.
            self._close("the trainer stopped waiting")
            raise

    def _close(self, says: str) -> None:
        """What has begun may finish: else whoever leaves costs all others an attempt."""
        exchanges = [one.exchange for one in self._rounds.values()]
        for one in exchanges:
            one.begin_no_more(says)
        deadline = time.monotonic() + FINISH_S
        for one in exchanges:
            one.wait_until_settled(max(0.0, deadline - time.monotonic()))
        for one in exchanges:
            one.withdraw(says)

    def _obey(self, news: News) -> None:
        if isinstance(news, Broken):
            raise news.error
        self._rounds[news.tag].obey(news)
        self._appoint()

    def _appoint(self) -> None:
        leading = self.leading
        for one in self._rounds.values():
            one.leads = one is leading

    def _abstain(self) -> None:
        """Held up by one tag: whoever waits for us in another shall not."""
        if any(one.held_up and one.offered and one.offered.steps for one in self._rounds.values()):
            for one in self._rounds.values():
                if one.ended is None and one.current and one.offered is None and one.asked:
                    one.contribute()
