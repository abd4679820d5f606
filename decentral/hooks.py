"""For loops that keep their own `optimizer.step()`: hooks on it do what `run.step` does.

    with decentral.hooked(decentral.join(word, model, optimizer, strategy)) as run:
        for batch in run.data(dataset, batch_size=32):
            optimizer.zero_grad()
            loss_fn(model, batch).backward()
            optimizer.step()        # counted; the outer rounds when they are due
        run.save("final")

    before the first optimizer of a step     the run's schedule, if it has one
    after the last one has stepped           the step counts; outer rounds when due

Gradients are the loop's: clipping, accumulating, scaling and zeroing them. Parameters change only
inside the last optimizer's `step`, and while `run.data` waits for samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch

from decentral.compute import StepResult
from decentral.errors import ConfigError
from decentral.inner_step import InnerStep, LearningRates
from decentral.schedule import Progress

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from decentral.run import Run
    from decentral.types import Array

_THE_LOOPS = {
    "accumulate": "call backward several times before optimizer.step",
    "clip_norm": "clip the gradients before optimizer.step",
    "scaler": "call scaler.step(optimizer) and scaler.update()",
}
"""Options of a run that say how gradients become a step, and who does that in a loop of its own."""


def hooked(
    run: Run,
    *,
    tokens: Callable[[], int] | int | None = None,
    loss: Callable[[], torch.Tensor | float] | None = None,
) -> Hooked:
    """A context manager that gives `run`, and within which the loop's `optimizer.step()` counts.

    `tokens` is what one step counts, or is asked after each (default: its samples from `run.data`,
    else 1); `loss` is asked after each step for what the run reports (``loss=lambda: loss`` reads
    the loop's variable; default: no loss is reported). Leaving the context takes the hooks off and
    leaves the run, as ``with run`` does.

    Raises ConfigError, and leaves the run, where it was given options that `run.step` alone can
    honour: `accumulate`, `clip_norm`, `scaler`.
    """
    try:
        return Hooked(run, tokens=tokens, loss=loss)
    except ConfigError:
        run.close("its options do not fit a loop that steps itself")
        raise


class Hooked:
    """Takes the place of the run's own inner step while its hooks are on. One thread's."""

    def __init__(
        self,
        run: Run,
        *,
        tokens: Callable[[], int] | int | None,
        loss: Callable[[], torch.Tensor | float] | None,
    ) -> None:
        inner, options = run._inner, run._options
        if not isinstance(inner, InnerStep):
            says = "hooked wants a run with torch optimizers, and whose hooks are not on yet"
            raise ConfigError(says, phase="hooks")
        given = {
            "accumulate": options.accumulate > 1,
            "clip_norm": options.clip_norm is not None,
            "scaler": options.scaler is not None,
        }
        for name, was_given in given.items():
            if was_given:
                raise ConfigError(
                    f"{name} cannot be given to a run whose loop steps the optimizer itself: "
                    f"{_THE_LOOPS[name]}",
                    phase="hooks",
                )
        self._run, self._inner = run, inner
        self._tokens, self._loss = tokens, loss
        groups = [group for one in inner.optimizers for group in one.param_groups]
        # Without a schedule of the run's the rates are the loop's, or its torch scheduler's.
        self._rates = LearningRates(groups, options.schedule) if options.schedule else None
        self._handles: list[RemovableHandle] = []
        self._stepped: set[int] = set()
        """Optimizers (by id) that have stepped since the last step that counted."""
        self._skipped = False
        self._dropped = False
        """This step was made without gradients, and does not count."""
        self._counting = False

    def __enter__(self) -> Run:
        if self._run._inner is not self._inner:
            raise ConfigError("this run's hooks are on already", phase="hooks")
        self._run._inner = self
        for optimizer in self._inner.optimizers:
            self._handles.append(optimizer.register_step_pre_hook(self._before))
            self._handles.append(optimizer.register_step_post_hook(self._after))
        return self._run

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._run._inner = self._inner
        self._run.__exit__(kind, error, trace)

    # ------------------------------------------------------------------ the optimizers' hooks

    def _before(self, optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        if self._stepped:
            return
        run = self._run
        self._dropped = not run._begun or run.finished is not None
        if not run._begun:
            # No `run.data`: these gradients were taken before the run's own parameters came.
            run.step(0.0)
        if self._dropped:
            # A step without gradients changes nothing. So it must be after the end, too.
            for one in self._inner.optimizers:
                one.zero_grad(set_to_none=True)
        elif self._rates is not None:
            self._rates.follow(run.progress)

    def _after(self, optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        # A fused optimizer is told by the GradScaler to leave a step out, and is called all the
        # same; others are not called then.
        found_inf = getattr(optimizer, "found_inf", None)
        self._skipped |= found_inf is not None and bool(found_inf)
        self._stepped.add(id(optimizer))
        if len(self._stepped) < len(self._inner.optimizers):
            return
        self._stepped.clear()
        skipped, self._skipped = self._skipped, False
        if not self._dropped:
            self._count(skipped=skipped)

    def _count(self, *, skipped: bool = False) -> None:
        tokens = self._tokens() if callable(self._tokens) else self._tokens
        self._counting = True
        try:
            self._run.step(0.0, 0 if skipped else tokens)
        finally:
            self._counting = False

    # ------------------------------------------------------------------ as the run's inner step

    def __call__(self, loss: Any, tokens: int, progress: Progress) -> StepResult:
        if not self._counting:
            says = "leave run.step out: this loop steps its optimizer itself, and hooks count it"
            raise ConfigError(says, phase="hooks")
        said = self._loss() if self._loss is not None else None
        return StepResult(tokens, None if said is None else torch.as_tensor(said).detach().float())

    def forget(self) -> None:
        self._inner.forget()

    def state(self) -> dict[str, Array]:
        return self._inner.state()

    def load(self, state: Mapping[str, Array]) -> None:
        self._inner.load(state)
