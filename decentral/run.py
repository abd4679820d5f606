"""A run as a training script sees it.

    run = decentral.join(word, model, optimizer, decentral.DiLoCo(sync_every=100))
    for batch in run.data(dataset, batch_size=32):
        loss = loss_fn(model, batch)
        loss.backward()
        run.step(loss)
    run.save("final")

Parameters change only inside `run.step`, and while `run.data` waits for samples. This peer enters
the run at the first call of either, when the data are known and can be leased.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from decentral import failpoints
from decentral.brought import Brought
from decentral.compute import Inner, Tensors
from decentral.data import (
    Dataset,
    LeasedData,
    Replayable,
    Shardable,
    check_dataset,
    source_of,
)
from decentral.errors import ContributionError, DecentralError
from decentral.exchange import Exchange
from decentral.fingerprint import Fingerprint, fingerprint
from decentral.fragments import in_fragments
from decentral.leases import LeaseBook, total
from decentral.lifetime import Lifetime, in_full, why_it_ended
from decentral.lockstep import Lockstep
from decentral.mesh_port import GroupFactory, MeshPort
from decentral.modules import Modules, parts
from decentral.native_group import native_groups
from decentral.options import RunOptions
from decentral.outer_loop import OuterLoop
from decentral.outer_round import OuterRounds
from decentral.outer_work import Adoption
from decentral.reporting import Reporter
from decentral.schedule import Progress
from decentral.state import HeldState
from decentral.strategies.base import Strategy
from decentral.types import PeerId
from decentral.witness import WitnessLog

if TYPE_CHECKING:
    import torch


LEAVE_TIMEOUT_S = 10.0


class Run:
    """One peer's training in a run. Made by `start` and `join`; use it from one thread.

    Also a context manager: leaving it, or an exception, Ctrl-C or SIGTERM, returns the leases of
    uncommitted work, leaves the run cleanly, and re-raises.
    """

    def __init__(
        self,
        mesh: MeshPort,
        model: torch.nn.Module | Tensors,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | Inner,
        strategy: Strategy,
        options: RunOptions,
        *,
        founder: bool,
        modules: Modules | None = None,
        make_group: GroupFactory | None = None,
        lockstep: Lockstep | None = None,
    ) -> None:
        """`modules`: parts of the model that have rounds of their own (None: one for all of it);
        `lockstep`: what this process agrees on with the others of its island."""
        self.mesh, self.model, self.strategy = mesh, model, strategy
        self._options, self._founder, self._modules = options, founder, modules
        if modules is None and strategy.fragments > 1:
            modules = in_fragments(model, strategy.fragments)
        self._lockstep, self._leased, self._looked_at = lockstep, False, 0
        self._tags = modules.tags if modules is not None else ("",)
        self._inner = optimizer if isinstance(optimizer, Inner) else _inner(optimizer, options)
        self._book = LeaseBook()
        self._loop = OuterLoop(mesh)
        self._rounds: dict[str, OuterRounds] = {}
        self._reporters: dict[str, Reporter] = {}
        self._witnesses: dict[str, WitnessLog] = {}
        for tag, tensors in parts(model, modules).items():
            layout = tensors.layout
            self._reporters[tag] = Reporter(mesh, options, layout, tag)
            self._witnesses[tag] = WitnessLog(mesh, layout, self._book, options.witness, tag)
            self._rounds[tag] = self._outer_rounds(tag, tensors, make_group or native_groups(mesh))
        self._loop.drive(self._rounds)
        self._brought = Brought(
            mesh, options, strategy.name, self._rounds, self._reporters, self._inner
        )
        self._outer = next(iter(self._rounds.values()))
        """Of the whole model, or of the first module: what a script sees where it asks for one."""
        self._each_round: list[Callable[[Run], Mapping[str, Any]]] = []
        self._steps = 0
        self._samples_seen = 0
        self._begun = False
        self._lifetime = Lifetime(self.close)

    def _outer_rounds(self, tag: str, tensors: Tensors, make_group: GroupFactory) -> OuterRounds:
        exchange = Exchange(
            mesh=self.mesh,
            layout=tensors.layout,
            strategy=self.strategy,
            make_group=make_group,
            post=self._loop.post,
            tell=self._loop.tell,
            tag=tag,
            number=self._tags.index(tag),
        )
        return OuterRounds(
            mesh=self.mesh,
            tensors=tensors,
            strategy=self.strategy,
            exchange=exchange,
            book=self._book,
            on_adopted=lambda adoption, held: self._adopted(tag, adoption, held),
            on_refused=self._refused,
            on_stopped=self._report_end,
            restore=self._loop.post,
            disk=self._reporters[tag],
            witness=self._witnesses[tag],
            tag=tag,
            first_after=self._first_offer(tag),
        )

    def _first_offer(self, tag: str) -> int | None:
        """Fragments take turns: the first offers are spread over H steps, and so are all others."""
        if self.strategy.fragments == 1:
            return None
        return self.strategy.sync_every * (self._tags.index(tag) + 1) // len(self._tags)

    # ------------------------------------------------------------------ training

    def data(
        self,
        dataset: Dataset | Replayable | Shardable,
        batch_size: int,
        num_workers: int = 0,
        collate: Callable[[list[Any]], Any] | None = None,
    ) -> LeasedData:
        """This peer's share of `dataset`, in batches, until the run ends for all.

        The dataset is map-style, or an iterable that is replayable by offset or shardable
        (`decentral.data`): its samples have ids, which are leased to peers in ranges. Anything
        else is a ConfigError.
        """
        check_dataset(dataset, batch_size)
        # Whoever does not wait for an outcome trains on meanwhile.
        phases = 1 if self.strategy.overlap == 0 else 2
        samples = phases * self.strategy.sync_every * batch_size * self._options.accumulate
        self._begin(lease_samples=samples, dataset=source_of(dataset).fact)
        return LeasedData(
            dataset,
            self._book,
            batch_size=batch_size,
            seed=self._options.seed,
            num_workers=num_workers,
            refill=self._refill,
            finished=lambda: self.finished is not None,
            collate=collate,
        )

    def wait_for_members(self, count: int) -> None:
        """Block until so many peers are members; between `run.data` and the first step, so that
        nobody has a head start."""
        with self.busy("waiting for members"):
            while self.finished is None and len(self.members) < count:
                self._loop.wait_for_news()
                self._loop.drain()

    def step(self, loss: torch.Tensor | float, tokens: int | None = None) -> None:
        """After `loss.backward()`: the optimizer's step and zero_grad, and outer rounds when due.

        `tokens` is what this batch counts (default: its samples from `run.data`, else 1). After
        the end of the run nothing changes any more.
        """
        if not self._begun:
            # No `run.data`: gradients so far were taken before the run's own parameters came.
            self._begin(lease_samples=0, dataset="")
            self._inner.forget()
            return
        if self.finished is not None:
            return
        if tokens is None:
            tokens = max(1, total(self._book.handed_out) - self._samples_seen)
        self._samples_seen = total(self._book.handed_out)
        failpoints.passing("inner-step")
        done = self._inner(loss, tokens, self.progress)
        if done is None:
            if self._lockstep is not None:
                self._settle(self._lockstep, stepped=False)
            return
        self._steps += 1
        self._samples_seen = 0
        counted = done.tokens if self._lockstep is None else self._lockstep.total(done.tokens)
        self._loop.stepped(counted, done.loss)
        self.mesh.progress(self._steps)
        self._loop.drain()
        if self._lockstep is not None:
            self._settle(self._lockstep, stepped=True)
            return
        lease_used_up = bool(self._book.granted) and not self._book.remaining
        if self.finished is None and (self._loop.due or lease_used_up):
            self._loop.synchronize(early=lease_used_up)

    @property
    def progress(self) -> Progress:
        """The schedule's clock."""
        meta, (steps, own_tokens) = self._outer.held.meta, self._outer.uncommitted
        tokens = meta.tokens + own_tokens
        most = 1.0 if self.strategy.overlap == 0 else 2.0
        rounds = meta.round + min(most, steps / self.strategy.sync_every)
        fractions = []
        if meta.target_rounds:
            fractions.append(rounds / meta.target_rounds)
        if meta.target_tokens:
            fractions.append(tokens / meta.target_tokens)
        fraction = min(1.0, max(fractions)) if fractions else None
        return Progress(tokens=tokens, rounds=rounds, fraction=fraction)

    # ------------------------------------------------------------------ what a script may ask

    @property
    def me(self) -> PeerId:
        return self.mesh.me

    @property
    def join_word(self) -> str:
        """What a newcomer passes to `join`."""
        return self.mesh.join_word

    @property
    def round(self) -> int:
        """Committed rounds."""
        return self._outer.held.round

    @property
    def tokens(self) -> int:
        """Tokens in all committed contributions, of all peers."""
        return self._outer.held.meta.tokens

    @property
    def state_hash(self) -> str:
        """The root of the committed state: equal on all members (hexadecimal)."""
        return self._outer.held.root.hex()

    @property
    def rounds(self) -> dict[str, int]:
        """Committed rounds by tag: "" for a model without modules, else those held here."""
        return {tag: one.held.round for tag, one in self._rounds.items()}

    @property
    def state_hashes(self) -> dict[str, str]:
        """The roots of the committed states, likewise."""
        return {tag: one.held.root.hex() for tag, one in self._rounds.items()}

    @property
    def members(self) -> tuple[PeerId, ...]:
        return self._outer.view.members if self._outer.view is not None else ()

    @property
    def _lineage(self) -> str:
        return self._outer.view.lineage if self._outer.view is not None else ""

    @property
    def finished(self) -> str | None:
        """Why the run is over, once it is."""
        return self._loop.ended if self._lockstep is None else self._lockstep.finished

    @property
    def fingerprint(self) -> Fingerprint:
        return self._fingerprint("")

    def each_round(self, callback: Callable[[Run], Mapping[str, Any]]) -> None:
        """Called after each committed round (of the first module, where there are several), with
        the committed parameters in the model.

        What it returns goes into the `round` event. Long work (an evaluation) is expected here.
        """
        self._each_round.append(callback)

    @contextlib.contextmanager
    def outer(self) -> Iterator[None]:
        """The committed parameters in the model, and this peer's own ones back afterwards."""
        own = [(one.tensors, one.tensors.save()) for one in self._rounds.values()]
        for one in self._rounds.values():
            one.tensors.write(one.held.theta)
        try:
            yield
        finally:
            for tensors, saved in own:
                tensors.restore(saved)

    @contextlib.contextmanager
    def busy(self, phase: str) -> Iterator[None]:
        """Declares work that makes no steps (compile, evaluation, save): not hung."""
        self.mesh.busy(phase)
        try:
            yield
        finally:
            self.mesh.busy(None)

    def save(self, path: str | Path) -> Path:
        """Export the committed parameters and buffers (fp32) as one safetensors file.

        A sharded island: by all its ranks, into a folder (`decentral.islands.shard_save`).
        """
        from decentral.export import export

        with self.busy("save"):
            if self._lockstep is not None:
                return self._lockstep.save(self._outer.held, Path(path))
            return export([one.held.state for one in self._rounds.values()], Path(path))

    # ------------------------------------------------------------------ its end

    def stop(self, reason: str = "stopped") -> None:
        """Propose that the run ends for all at the next committed round."""
        self.mesh.stop(reason)

    def close(self, reason: str = "done") -> None:
        """Leave the run. Idempotent; blocks until the others know, or for ten seconds."""
        if not self._lifetime.end():
            return
        try:
            if self._lockstep is not None:
                self._lockstep.close()
            self._loop.withdraw()
            for reporter in self._reporters.values():
                reporter.flush()
            if self._begun:
                failpoints.passing("leave")
                self.mesh.leave(self.finished or reason, LEAVE_TIMEOUT_S)
        finally:
            try:
                self._loop.close()
                for tag, reporter in self._reporters.items():
                    # Committed since the model took one in: others count on it.
                    tip = self._rounds[tag].unadopted
                    if tip is not None:
                        reporter.adopted(tip, "", dict)
                    reporter.close()
            finally:
                self.mesh.close()

    def leave_in_peace(self) -> None:
        """For an island of which a process has failed: its launcher ends the others, twice."""
        self._lifetime.hurry_no_more()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        cause: DecentralError | None = None
        if self._lockstep is not None and error is not None:
            self.leave_in_peace()
            cause = self._lockstep.explain(error)
            self._lockstep.close(in_full(cause or error))
        self.close(why_it_ended(cause or error))
        if cause is not None and cause is not error:
            raise cause from error

    # ------------------------------------------------------------------ inside

    def _fingerprint(self, dataset: str) -> Fingerprint:
        return fingerprint(
            self.strategy,
            tags=self._tags,
            recipe=self._options.recipe,
            version=self._options.recipe_version,
            dataset=dataset,
            seed=self._options.seed,
        )

    def _begin(self, *, lease_samples: int, dataset: str) -> None:
        """Become a member with the committed state in the model. Later calls do nothing."""
        if self._begun:
            return
        self._begun, self._leased = True, lease_samples > 0
        self._lifetime.begin()
        brought = self._brought
        holdings = brought.holdings(founder=self._founder, modules=self._modules)
        self._loop.begin()
        self.mesh.start(
            holdings=holdings,
            fingerprint=self._fingerprint(dataset).digest,
            lease_samples=lease_samples,
            on_order=self._loop.on_order,
            tags=self._tags,
            min_contributors=self.strategy.min_contributors,
            grace_s=self.strategy.grace_s,
        )
        for tag, held in brought.resumed.items():
            self._reporters[tag].resumed(held)
        if self._lockstep is not None:
            self._lockstep.enter(self._loop, self._outer)
        else:
            self._loop.wait_until_current()
        for tag, outer in self._rounds.items():
            if outer.ended is None:
                self._witnesses[tag].applied(None, outer.held, self._lineage)
        for tag, held in brought.resumed.items():
            outer = self._rounds[tag]
            brought.recall(tag)
            if held.meta.complete and outer.ended is None:
                outer.ended = f"the run had already reached its end at round {held.round}"
        if self._lockstep is not None:
            self._settle(self._lockstep, stepped=False)
        self._report_end()

    def _refill(self) -> bool:
        """`run.data` has no sample left: contribute early, or wait for a lease."""
        leading = self._loop.leading
        if self._lockstep is not None:
            self._settle(self._lockstep, stepped=False)
        elif leading.offered is None and leading.work.steps > 0:
            self._loop.synchronize(early=True)
        else:
            self._loop.wait_for_news()
            self._loop.drain()
        return self.finished is None

    def _settle(self, lockstep: Lockstep, *, stepped: bool) -> None:
        """In an island nothing else waits, ends, or looks at a round: all its processes do so at
        the same moment, and a callback may use collectives."""
        lockstep.settle(self._loop, self._outer, self._book, leased=self._leased, stepped=stepped)
        extra: dict[str, Any] = {}
        if lockstep.round > self._looked_at:
            self._looked_at = lockstep.round
            if self._each_round and self._steps:
                with self.busy("eval"), self.outer():
                    for callback in self._each_round:
                        extra |= callback(self)
                self.mesh.emit({"event": "eval", "round": lockstep.round, **extra})
        self._report_end(extra)

    def _adopted(self, tag: str, adoption: Adoption | None, held: HeldState) -> None:
        failpoints.passing("adopted")
        reporter = self._reporters[tag]
        lineage = adoption.view.lineage if adoption is not None else ""
        reporter.adopted(held, lineage, lambda: self._brought.own(tag))
        self._witnesses[tag].applied(adoption, held, self._lineage)
        extra: dict[str, Any] = {}
        if adoption is not None:
            leads = self._rounds[tag] is self._outer
            if self._each_round and leads and self._lockstep is None:
                # Own work that no commit has counted would otherwise be evaluated with it.
                with self.busy("eval"), self.outer():
                    for callback in self._each_round:
                        extra |= callback(self)
            reporter.round(adoption, extra)
        self._report_end(extra)

    def _report_end(self, extra: Mapping[str, Any] | None = None) -> None:
        if self.finished is None:
            return
        for tag, outer in self._rounds.items():
            own = extra if extra is not None and outer is self._outer else {}
            self._reporters[tag].done(outer.held, outer.ended or self.finished, own)

    def _refused(self, error: ContributionError) -> None:
        self._inner.forget()
        self._reporters[self._loop.leading.tag].fault("contribution", error)


def _inner(
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer], options: RunOptions
) -> Inner:
    from decentral.inner_step import InnerStep

    return InnerStep(
        optimizer,
        schedule=options.schedule,
        scaler=options.scaler,
        accumulate=options.accumulate,
        clip_norm=options.clip_norm,
    )
