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
from typing import Any, Self

import torch

from decentral.checkpoint import load_latest
from decentral.data import Dataset, LeasedData, check_dataset
from decentral.errors import ConfigError, ContributionError
from decentral.export import export
from decentral.fingerprint import Fingerprint, dataset_fact, fingerprint
from decentral.inner_step import InnerStep
from decentral.leases import LeaseBook, total
from decentral.lifetime import Lifetime, why_it_ended
from decentral.mesh_port import GroupFactory, MeshPort
from decentral.model_tensors import ModelTensors
from decentral.options import RunOptions
from decentral.outer_round import Adoption, OuterRounds
from decentral.reporting import Reporter
from decentral.schedule import Progress
from decentral.state import HeldState, Meta, aligned_zeros, seal, unseal
from decentral.strategies.base import Strategy
from decentral.types import PeerId

LEAVE_TIMEOUT_S = 10.0


class Run:
    """One peer's training in a run. Made by `start` and `join`; use it from one thread.

    Also a context manager: leaving it, or an exception, Ctrl-C or SIGTERM, returns the leases of
    uncommitted work, leaves the run cleanly, and re-raises.
    """

    def __init__(
        self,
        mesh: MeshPort,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        strategy: Strategy,
        options: RunOptions,
        *,
        founder: bool,
        make_group: GroupFactory | None = None,
    ) -> None:
        self.mesh, self.model, self.strategy = mesh, model, strategy
        self._options, self._founder = options, founder
        self._inner = InnerStep(
            optimizer,
            schedule=options.schedule,
            scaler=options.scaler,
            accumulate=options.accumulate,
            clip_norm=options.clip_norm,
        )
        self._tensors = ModelTensors(model)
        self._book = LeaseBook()
        self._outer = OuterRounds(
            mesh=mesh,
            tensors=self._tensors,
            strategy=strategy,
            make_group=make_group or _native_group,
            book=self._book,
            on_adopted=self._adopted,
            on_refused=self._refused,
        )
        self._reporter = Reporter(mesh, options)
        self._each_round: list[Callable[[Run], Mapping[str, Any]]] = []
        self._steps = 0
        self._samples_seen = 0
        self._begun = False
        self._lifetime = Lifetime(self.close)

    # ------------------------------------------------------------------ training

    def data(
        self,
        dataset: Dataset,
        batch_size: int,
        num_workers: int = 0,
        collate: Callable[[list[Any]], Any] | None = None,
    ) -> LeasedData:
        """This peer's share of `dataset`, in batches, until the run ends for all."""
        check_dataset(dataset, batch_size)
        samples = self.strategy.sync_every * batch_size * self._options.accumulate
        self._begin(lease_samples=samples, dataset=dataset_fact(dataset))
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
        done = self._inner(loss, tokens, self.progress)
        if done is None:
            return
        self._steps += 1
        self._samples_seen = 0
        self._outer.stepped(done.tokens, done.loss)
        self.mesh.progress(self._steps)
        self._outer.drain()
        lease_used_up = bool(self._book.granted) and not self._book.remaining
        if self.finished is None and (
            self._outer.due or (lease_used_up and self._outer.work.steps > 0)
        ):
            self._outer.synchronize()

    @property
    def progress(self) -> Progress:
        """The schedule's clock."""
        meta, work = self._outer.held.meta, self._outer.work
        tokens = meta.tokens + work.tokens
        rounds = meta.round + min(1.0, work.steps_this_round / self.strategy.sync_every)
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
    def members(self) -> tuple[PeerId, ...]:
        return self._outer.view.members if self._outer.view is not None else ()

    @property
    def finished(self) -> str | None:
        """Why the run is over, once it is."""
        return self._outer.ended

    @property
    def fingerprint(self) -> Fingerprint:
        return self._fingerprint("")

    def each_round(self, callback: Callable[[Run], Mapping[str, Any]]) -> None:
        """Called after each committed round, with the committed parameters in the model.

        What it returns goes into the `round` event. Long work (an evaluation) is expected here.
        """
        self._each_round.append(callback)

    @contextlib.contextmanager
    def outer(self) -> Iterator[None]:
        """The committed parameters in the model, and this peer's own ones back afterwards."""
        own = self._tensors.save()
        self._tensors.write(self._outer.held.theta)
        try:
            yield
        finally:
            self._tensors.restore(own)

    @contextlib.contextmanager
    def busy(self, phase: str) -> Iterator[None]:
        """Declares work that makes no steps (compile, evaluation, save): not hung."""
        self.mesh.busy(phase)
        try:
            yield
        finally:
            self.mesh.busy(None)

    def save(self, path: str | Path) -> Path:
        """Export the committed parameters and buffers (fp32) as one safetensors file."""
        with self.busy("save"):
            return export(self._outer.held.state, Path(path))

    # ------------------------------------------------------------------ its end

    def stop(self, reason: str = "stopped") -> None:
        """Propose that the run ends for all at the next committed round."""
        self.mesh.stop(reason)

    def close(self, reason: str = "done") -> None:
        """Leave the run. Idempotent; blocks until the others know, or for ten seconds."""
        if not self._lifetime.end():
            return
        try:
            self._reporter.close()
            if self._begun:
                self.mesh.leave(self.finished or reason, LEAVE_TIMEOUT_S)
        finally:
            self.mesh.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(why_it_ended(error))

    # ------------------------------------------------------------------ inside

    def _fingerprint(self, dataset: str) -> Fingerprint:
        return fingerprint(
            self._tensors.layout.schema(),
            self.strategy,
            recipe=self._options.recipe,
            version=self._options.recipe_version,
            dataset=dataset,
            seed=self._options.seed,
        )

    def _begin(self, *, lease_samples: int, dataset: str) -> None:
        """Become a member with the committed state in the model. Later calls do nothing."""
        if self._begun:
            return
        self._begun = True
        self._lifetime.begin()
        resumed = self._resume()
        initial = None
        if resumed is not None:
            self._outer.take(resumed, write=True)
        elif self._founder:
            initial = self._found()
            self._outer.take(initial, write=False)
        self.mesh.start(
            schema=self._tensors.layout.schema(),
            fingerprint=self._fingerprint(dataset).digest,
            initial=initial.state if initial is not None else None,
            resumed=resumed.state if resumed is not None else None,
            lease_samples=lease_samples,
            on_order=self._outer.on_order,
        )
        if resumed is not None:
            self.mesh.checkpointed(resumed.round)
        self._outer.wait_until_current()
        if resumed is not None and resumed.meta.complete and self._outer.ended is None:
            self._outer.ended = f"the run had already reached its end at round {resumed.round}"
        self._report_end({})

    def _found(self) -> HeldState:
        layout = self._tensors.layout
        momentum = aligned_zeros(layout.trainable)
        return seal(layout, self._tensors.as_read(), momentum, self._target())

    def _resume(self) -> HeldState | None:
        directory = self._options.checkpoints
        if directory is None or not self.mesh.run_id:
            return None
        layout = self._tensors.layout
        loaded = load_latest(directory, layout.schema(), run=self.mesh.run_id)
        if loaded is None:
            return None
        for error in loaded.passed_over:
            self._reporter.fault("checkpoint", error)
        held = unseal(layout, loaded.state)
        for name in ("target_rounds", "target_tokens"):
            asked, has = getattr(self._target(), name), getattr(held.meta, name)
            if asked and asked != has:
                says = f"{name}={asked} is ignored: the run was founded with {has or 'no such end'}"
                self._reporter.fault("option", ConfigError(says, phase="resume"))
        return held

    def _target(self) -> Meta:
        options = self._options
        return Meta(
            target_rounds=options.rounds or 0,
            target_tokens=options.target_tokens or 0,
            strategy=self.strategy.name,
        )

    def _refill(self) -> bool:
        """`run.data` has no sample left: contribute early, or wait for a lease."""
        if self._outer.work.steps > 0:
            self._outer.synchronize()
        else:
            self._outer.wait_for_order()
            self._outer.drain()
        return self.finished is None

    def _adopted(self, adoption: Adoption | None, held: HeldState) -> None:
        self._reporter.adopted(held, adoption.view.lineage if adoption is not None else "")
        extra: dict[str, Any] = {}
        if adoption is not None:
            if self._each_round:
                # Own work that no commit has counted would otherwise be evaluated with it.
                with self.busy("eval"), self.outer():
                    for callback in self._each_round:
                        extra |= callback(self)
            self._reporter.round(adoption, extra)
        self._report_end(extra)

    def _report_end(self, extra: Mapping[str, Any]) -> None:
        if self.finished is not None:
            self._reporter.done(self._outer.held, self.finished, extra)

    def _refused(self, error: ContributionError) -> None:
        self._inner.forget()
        self._reporter.fault("contribution", error)


def _native_group(native: Any, view: Any, me: PeerId) -> Any:
    from decentral.collectives import Group

    return Group(native, view, me)
