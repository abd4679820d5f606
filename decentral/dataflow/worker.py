"""A peer's part in a program: what the agenda says, over the mesh.

    mesh ── orders ──▶ ┌────────┐ ── take_part, contribute, reduced, hold ──▶ mesh
                       │ Worker │ ── job ──▶ Computing ── outcome ──▶ (back)
    log (a snapshot) ─▶└────────┘ ── attempt ──▶ Handover ── ended ──▶ (back)

One thread (the caller's) decides everything. The life of a leased round, in seven hops: the agenda
names it; `Computing` reads its inputs from those who keep them, works it out, writes it to disk;
the peer contributes; the coordinator sees `copies` peers ready; `Handover` brings the result to the
other keepers, who write it to disk; all answer with its root; the log commits it.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from decentral.dataflow.agenda import Agenda, Mine
from decentral.dataflow.computing import Computing, Job, Outcome
from decentral.dataflow.handover import Handover
from decentral.dataflow.keeping import MISSING_S, Keeping
from decentral.dataflow.program import Program
from decentral.dataflow.progress import kind_of
from decentral.dataflow.telling import Telling
from decentral.errors import CollectiveError, ConfigError, DivergenceError, StateError
from decentral.mesh_port import Holding, MeshFailed, MeshPort, Order, StateArrived
from decentral.native_group import native_groups
from decentral.peer.protocol import (
    AbortReduce,
    Committed,
    Evicted,
    Joined,
    Left,
    RoundEntry,
    StartReduce,
)
from decentral.peer.views_log import LogState
from decentral.types import CommittedState

TICK_S = 0.2
COPIES = 2
LEAVE_TIMEOUT_S = 10.0
LINGER_S = 10.0
"""At the end, what this peer should keep and does not hold yet may take so long to come."""


@dataclass(frozen=True, slots=True)
class _HandedOver:
    order: StartReduce
    data: NDArray[np.float32]
    error: BaseException | None


_News: TypeAlias = "Order | Outcome | _HandedOver"


class Worker:
    """Made with a mesh that has not been started. Use it from one thread."""

    def __init__(
        self,
        mesh: MeshPort,
        program: Program,
        *,
        founder: bool,
        home: Path | None = None,
        copies: int = COPIES,
        members: int = 1,
        on_round: Callable[[str, int, float | None], None] = lambda cell, round, loss: None,
    ) -> None:
        """`copies`: how many peers hold a round before it counts; the same on all peers.
        `members`: nothing is computed here before so many peers are in. `on_round` hears of every
        committed round that is held here, with the loss where it was computed here."""
        if copies < 1:
            raise ConfigError(f"a round is kept by at least one peer, not {copies}")
        self.mesh, self.program = mesh, program
        self._founder, self._copies, self._on_round = founder, copies, on_round
        self._wait_for = members
        self._agenda = Agenda(program, mesh.me, copies)
        self._keeping = Keeping(mesh, program, home)
        self._telling = Telling(mesh, type(program).__name__)
        self._mine = Mine()
        self._news: queue.SimpleQueue[_News] = queue.SimpleQueue()
        self._handovers = {cell: self._handover(cell) for cell in program.cells}
        self._results: dict[str, Outcome] = {}
        """By cell: what was computed here and is not committed yet."""
        self._contributed: set[str] = set()
        """Cells whose next round the coordinator has an offer for."""
        self._member, self._beats, self._finished_at = False, 0, 0.0
        self._replica_bytes = 0
        store = self._keeping.store
        self._computing = Computing(program, store, mesh.read, self._progress, self._news.put)

    def _handover(self, cell: str) -> Handover:
        return Handover(
            cell,
            self.mesh,
            self.program,
            native_groups(self.mesh),
            lambda order, data, error: self._news.put(_HandedOver(order, data, error)),
        )

    # ------------------------------------------------------------------ the caller's side

    @property
    def held(self) -> Mapping[str, CommittedState]:
        """By cell: the committed rounds that are here. Any thread may look."""
        return self._keeping.held

    def run(self, *, serve: bool = False) -> Mapping[str, CommittedState]:
        """Take part until the program is finished (`serve`: until interrupted); then leave, and
        return the last rounds of the cells that are here.

        Raises what stops this peer: a ConnectError, a FingerprintError, a DiskError, or whatever
        the program raises.
        """
        try:
            self._start()
            while not self._over(serve):
                self._turn()
            return dict(self.held)
        finally:
            self._close()

    def _start(self) -> None:
        schemas = {cell: self.program.schema(cell) for cell in self.program.cells}
        # Who makes a run says what it begins with; the others know that, too.
        founded = schemas if self._founder else {}
        self.mesh.start(
            holdings={
                cell: Holding(schema=schema, initial=self._keeping.initial(cell), takes=False)
                for cell, schema in founded.items()
            },
            schemas=schemas,
            fingerprint=self.program.fingerprint,
            lease_samples=0,
            on_order=self._ordered,
            tags=self.program.cells,
            copies=self._copies,
        )

    def _ordered(self, order: Order) -> None:
        """On the mesh's thread: what cannot wait, and the rest into the queue."""
        if isinstance(order, AbortReduce):
            self._handovers[order.tag].abort(order.round, order.attempt, order.says)
        else:
            self._news.put(order)

    def _over(self, serve: bool) -> bool:
        log = self.mesh.log()
        if log is None or not self._member or not self._agenda.finished(_at(log)):
            return False
        first = not self._finished_at
        self._finished_at = self._finished_at or time.monotonic()
        if first:
            self._telling.done(log)
        waits = any(self._keeping.lacks(log, cell) for cell in self._keeping.cells)
        return not serve and not (waits and time.monotonic() < self._finished_at + LINGER_S)

    def _close(self) -> None:
        self._computing.close()
        for handover in self._handovers.values():
            handover.over("this peer leaves")
        if self._member:
            self.mesh.leave("finished", LEAVE_TIMEOUT_S)

    # ------------------------------------------------------------------ one turn

    def _turn(self) -> None:
        try:
            self._obey(self._news.get(timeout=TICK_S))
            while True:
                self._obey(self._news.get_nowait())
        except queue.Empty:
            pass
        if self._computing.job is None:
            self._progress()
        log = self.mesh.log()
        if log is None or not log.founded or not self._member or log.paused:
            return
        self._keep(log)
        self._offer_to_keep(log)
        self._compute(log)

    def _progress(self) -> None:
        self._beats += 1
        self.mesh.progress(self._beats)

    def _keep(self, log: LogState) -> None:
        """Take part in what the agenda says, and get hold of it."""
        for cell in self._agenda.keeps(log.view.members):
            self._keeping.take(cell)
        for cell in self._keeping.find(log):
            says = (
                f"{cell}, round {log.scope(cell).round}: for {MISSING_S:.0f} s nobody has given it "
                f"to this peer; the run waits until one that has it on its disk is back"
            )
            self._telling.fault("missing", StateError(says))

    def _offer_to_keep(self, log: LogState) -> None:
        """Keepers of leased cells are ready for the next result as soon as they hold the last."""
        for cell in self._agenda.keeps(log.view.members):
            following = log.scope(cell).round + 1
            wanted = self.program.leased(cell) and following <= self.program.rounds(cell)
            ready = not self._keeping.lacks(log, cell) and cell not in self._contributed
            if wanted and ready:
                self._contribute(cell, following, 0)

    def _contribute(self, cell: str, round: int, tokens: int) -> None:
        self._contributed.add(cell)
        self.mesh.contribute(round, tokens, (), tag=cell)

    def _compute(self, log: LogState) -> None:
        """Begin the next job, if there is one; give up one that others have done."""
        if len(log.view.members) < self._wait_for:
            return
        self._wait_for = 1
        at, job = _at(log), self._computing.job
        if job is not None:
            if at[job.cell] >= job.round:
                self._computing.give_up()
            return
        cell = self._agenda.next(log.view.members, at, self._mine, time.monotonic())
        if cell is None:
            return
        self._keeping.take(cell)
        if self._keeping.lacks(log, cell):
            return  # it is being fetched
        needs = self.program.inputs(cell, at[cell] + 1)
        roots = {need.cell: log.scope(need.cell).root for need in needs}
        here = {one: self.held[one] for one in roots if not self._lacks_root(one, roots[one])}
        self._computing.start(Job(cell, at[cell] + 1, self.held[cell], here, roots))

    def _lacks_root(self, cell: str, root: bytes) -> bool:
        return cell not in self.held or self.held[cell].root != root

    # ------------------------------------------------------------------ what was heard

    def _obey(self, news: _News) -> None:
        match news:
            case Outcome():
                self._computed(news)
            case StartReduce():
                self._attempt(news)
            case _HandedOver():
                self._handed_over(news)
            case Committed(entry=RoundEntry() as entry):
                self._committed(news, entry)
            case StateArrived(state, tag):
                if tag in self._keeping.cells:
                    self._keeping.store.save(tag, state)
                    self._keeping.arrived(tag, state)
            case Joined():
                self._joined()
            case Evicted():
                self._member = False
                self._contributed.clear()
                self._keeping.evicted()
            case MeshFailed(error):
                raise error
            case Left(says):
                raise StateError(f"this peer is out of the run: {says}", phase="run")

    def _joined(self) -> None:
        log = self.mesh.log()
        assert log is not None, "who is a member knows the log"
        self._member = True
        self._contributed.clear()
        self._keeping.joined(log)
        for cell, outcome in self._results.items():
            self._offer_result(cell, outcome)

    def _computed(self, outcome: Outcome) -> None:
        self._computing.ended()
        job, log = outcome.job, self.mesh.log()
        if isinstance(outcome.error, StateError):
            self._telling.fault("inputs", outcome.error)  # the agenda names it again
            return
        if outcome.error is not None:
            raise outcome.error
        if outcome.state is None:
            return  # given up: others have it
        kind = kind_of(job.cell)
        before_s = self._mine.took_s.get(kind, outcome.seconds)
        self._mine.took_s[kind] = (before_s + outcome.seconds) / 2
        if log is not None and log.scope(job.cell).round < job.round:
            self._results[job.cell] = outcome
            self._mine.done[job.cell] = job.round
            self._offer_result(job.cell, outcome)

    def _offer_result(self, cell: str, outcome: Outcome) -> None:
        self._contribute(cell, outcome.job.round, max(1, outcome.tokens))

    def _result(self, order: StartReduce) -> CommittedState | None:
        """What was computed here of the very round that this is about."""
        result = self._results.get(order.tag)
        return result.state if result is not None and result.job.round == order.round else None

    def _attempt(self, order: StartReduce) -> None:
        try:
            state = self._handovers[order.tag].start(order, self._result(order))
        except CollectiveError as error:
            self._failed(order, error)
            return
        if state is not None:
            self._answer(order, state)

    def _handed_over(self, news: _HandedOver) -> None:
        order, handover = news.order, self._handovers[news.order.tag]
        handover.over()
        if news.error is None:
            self._replica_bytes += news.data.nbytes
            state = handover.unpack(news.data, order.round)
            self._compare(order, state)
            self._keeping.store.save(order.tag, state)
            self._answer(order, state)
        elif isinstance(news.error, CollectiveError):
            self._failed(order, news.error)
        else:
            raise news.error

    def _compare(self, order: StartReduce, state: CommittedState) -> None:
        """Two who have computed the same round should have come to the same."""
        mine = self._result(order)
        if mine is not None and mine.root != state.root:
            says = (
                f"{order.tag}, round {order.round}: this peer computed other bits than another "
                f"one; the run goes on with the other's"
            )
            self._telling.fault("divergence", DivergenceError(says))

    def _answer(self, order: StartReduce, state: CommittedState) -> None:
        self._keeping.arrived(order.tag, state)
        self.mesh.reduced(order.round, order.attempt, state.root, tag=order.tag)

    def _failed(self, order: StartReduce, error: CollectiveError) -> None:
        self.mesh.reduce_failed(order.round, order.attempt, error.peer, error.says, tag=order.tag)

    def _committed(self, order: Committed, entry: RoundEntry) -> None:
        cell = entry.tag
        self._handovers[cell].committed(entry.round)
        self._contributed.discard(cell)
        result = self._results.pop(cell, None)
        self._mine.done.pop(cell, None)
        if cell not in self._keeping.cells:
            return
        busy = self._computing.job is not None and self._computing.job.cell == cell
        holders = [one.peer for one in entry.contributions]
        if not busy and self._agenda.passed_on(order.view.members, cell, holders):
            self._keeping.drop(cell)
        elif self._keeping.committed(cell, entry.state_root):
            loss = result.loss if result is not None else None
            self._telling.round(order, entry, loss, self._replica_bytes)
            self._on_round(cell, entry.round, loss)


def _at(log: LogState) -> dict[str, int]:
    return {scope.tag: scope.round for scope in log.scopes}
