"""One inner optimizer step: accumulation, unscaling, clipping, the schedule, GradScaler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from decentral.compute import StepResult
from decentral.errors import ConfigError
from decentral.schedule import Progress, Schedule, constant

if TYPE_CHECKING:
    from decentral.types import Array


@dataclass(slots=True)
class _Micro:
    """Since the last optimizer step."""

    steps: int = 0
    tokens: int = 0
    losses: list[torch.Tensor] = field(default_factory=list)


class LearningRates:
    """A schedule's hold on parameter groups: each group's own rate times the multiplier."""

    def __init__(self, groups: Sequence[dict[str, Any]], schedule: Schedule) -> None:
        self._groups, self._schedule = groups, schedule
        # A torch scheduler may have scaled "lr" already and then keeps the original here.
        self._peaks = [float(g.get("initial_lr", g["lr"])) for g in groups]

    def follow(self, progress: Progress) -> None:
        for group, peak in zip(self._groups, self._peaks, strict=True):
            _set_lr(group, peak * self._schedule(progress))


class InnerStep:
    """Owns how gradients become a parameter change. The caller has run `loss.backward()`.

    Gradients of `accumulate` calls are averaged: call backward on each micro-batch's mean loss
    and do not divide it.
    """

    def __init__(
        self,
        optimizers: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        *,
        schedule: Schedule | None = None,
        scaler: torch.amp.GradScaler | None = None,
        accumulate: int = 1,
        clip_norm: float | None = None,
    ) -> None:
        if isinstance(optimizers, torch.optim.Optimizer):
            optimizers = [optimizers]
        self._optimizers = list(optimizers)
        if not self._optimizers or not all(
            isinstance(o, torch.optim.Optimizer) for o in self._optimizers
        ):
            raise ConfigError("optimizer is a torch optimizer, or a sequence of them")
        self._scaler = scaler
        self._accumulate = accumulate
        self._clip_norm = clip_norm
        self._micro = _Micro()
        self._groups: list[dict[str, Any]] = [g for o in self._optimizers for g in o.param_groups]
        self._rates = LearningRates(self._groups, schedule or constant)

    @property
    def optimizers(self) -> tuple[torch.optim.Optimizer, ...]:
        return tuple(self._optimizers)

    def __call__(
        self, loss: torch.Tensor | float, tokens: int, progress: Progress
    ) -> StepResult | None:
        """None: more micro-batches are due before the optimizer steps."""
        micro = self._micro
        micro.steps += 1
        micro.tokens += tokens
        micro.losses.append(torch.as_tensor(loss).detach())
        if micro.steps < self._accumulate:
            return None
        self._micro = _Micro()
        self._rates.follow(progress)
        skipped = self._step()
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)
        mean_loss = torch.stack([loss.float() for loss in micro.losses]).mean()
        return StepResult(0 if skipped else micro.tokens, mean_loss)

    def forget(self) -> None:
        """Gradients and optimizer state go: what a non-finite step may have poisoned."""
        self._micro = _Micro()
        for optimizer in self._optimizers:
            optimizer.state.clear()
            optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Array]:
        """Copies of the optimizers' tensors, fp32, by "optimizer/parameter/name"."""
        found: dict[str, Array] = {}
        for i, optimizer in enumerate(self._optimizers):
            for j, values in optimizer.state_dict()["state"].items():
                for name, value in values.items():
                    if isinstance(value, torch.Tensor):
                        copy = value.detach().to("cpu", torch.float32, copy=True)
                        found[f"{i}/{j}/{name}"] = copy.contiguous().numpy()
        return found

    def load(self, state: Mapping[str, Array]) -> None:
        """Go on from what `state` gave, if it is of the same optimizers and parameters."""
        loaded: list[dict[int, dict[str, torch.Tensor]]] = [{} for _ in self._optimizers]
        for key, value in state.items():
            i, j, name = key.split("/", 2)
            if int(i) < len(loaded):
                loaded[int(i)].setdefault(int(j), {})[name] = torch.from_numpy(value.copy())
        for optimizer, values in zip(self._optimizers, loaded, strict=True):
            known = optimizer.state_dict()
            if values.keys() <= {j for group in known["param_groups"] for j in group["params"]}:
                groups = optimizer.param_groups
                optimizer.load_state_dict({**known, "state": values})
                # Torch puts new groups in their place; schedules set the rates of those they know.
                for group, loaded_group in zip(groups, optimizer.param_groups, strict=True):
                    group.update(loaded_group)
                optimizer.param_groups = groups

    def _step(self) -> bool:
        """Whether the GradScaler skipped it."""
        gradients = [
            p.grad for group in self._groups for p in group["params"] if p.grad is not None
        ]
        if self._scaler is not None:
            for optimizer in self._optimizers:
                self._scaler.unscale_(optimizer)
        if self._accumulate > 1:
            torch._foreach_div_(gradients, float(self._accumulate))
        if self._clip_norm is not None:
            parameters = [p for group in self._groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, self._clip_norm)
        if self._scaler is None:
            for optimizer in self._optimizers:
                optimizer.step()
            return False
        before = self._scaler.get_scale()
        for optimizer in self._optimizers:
            self._scaler.step(optimizer)
        self._scaler.update()
        # The scale falls exactly when a gradient was not finite and the step was left out.
        return bool(self._scaler.get_scale() < before)


def _set_lr(group: dict[str, Any], lr: float) -> None:
    if isinstance(group["lr"], torch.Tensor):
        group["lr"].fill_(lr)
    else:
        group["lr"] = lr
