"""A network in one vector: what a round begins with, and what it leaves behind.

    param  │ w₀ │ b₀ │ w₁ │ …      fp32; the network's parameters are views of it
    grad   │    │    │    │ …      the same
    ema, adam/first, adam/second   as long

So an optimizer step is one kernel over one array, and a cell's state is four arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from decentral.dataflow.program import Arrays
from decentral.diffusion.seeds import seed_of

if TYPE_CHECKING:
    from decentral.types import Array


class Flat:
    """The network, with its parameters and gradients moved into vectors on `device`."""

    def __init__(self, build: Callable[[], nn.Module], device: str = "cpu") -> None:
        self.network = build().to(device)
        parameters = list(self.network.parameters())
        self.param = torch.cat([one.detach().reshape(-1) for one in parameters])
        self.grad = torch.zeros_like(self.param)
        start = 0
        for one in parameters:
            stop = start + one.numel()
            one.data = self.param[start:stop].view(one.shape)
            one.grad = self.grad[start:stop].view(one.shape)
            start = stop

    def load(self, param: Array) -> None:
        self.param.copy_(torch.from_numpy(np.array(param)))

    def named(self) -> dict[str, Array]:
        """The network's tensors under its own names: what is exported."""
        return {name: one.detach().cpu().numpy() for name, one in self.network.named_parameters()}


def initial(build: Callable[[], nn.Module], seed: int) -> dict[str, Array]:
    """The state before the first step: the same parameters for everybody with this seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("initial", seed))
        param = Flat(build).param.numpy()
    zeros = np.zeros_like(param)
    return {"param": param, "ema": param, "adam/first": zeros, "adam/second": zeros}


class Descent:
    """AdamW and an exponential moving average on a `Flat` network, from a state and back.

    The average's decay grows as (1 + step) / (10 + step) up to `decay`, so that it forgets the
    initial parameters. A state without one gets none.
    """

    def __init__(
        self, flat: Flat, state: Arrays, step: int, *, weight_decay: float, decay: float
    ) -> None:
        self._flat = flat
        self._step = step
        self._decay = decay
        flat.load(state["param"])
        self._vector = nn.Parameter(flat.param)
        self._vector.grad = flat.grad
        self._ema = self._tensor(state["ema"]) if "ema" in state else None
        self._adam = torch.optim.AdamW(
            [self._vector], betas=(0.9, 0.99), weight_decay=weight_decay, fused=True
        )
        self._adam.state[self._vector] = {
            "step": torch.tensor(float(step), device=flat.param.device),
            "exp_avg": self._tensor(state["adam/first"]),
            "exp_avg_sq": self._tensor(state["adam/second"]),
        }

    def __call__(self, loss: torch.Tensor, lr: float) -> None:
        self._flat.grad.zero_()
        loss.backward()  # type: ignore[no-untyped-call]
        self._adam.param_groups[0]["lr"] = lr
        self._adam.step()
        self._step += 1
        if self._ema is not None:
            decay = min(self._decay, (1 + self._step) / (10 + self._step))
            self._ema.lerp_(self._flat.param, 1 - decay)

    def state(self) -> dict[str, Array]:
        adam = self._adam.state[self._vector]
        tensors = {
            "param": self._flat.param,
            "adam/first": adam["exp_avg"],
            "adam/second": adam["exp_avg_sq"],
        }
        if self._ema is not None:
            tensors["ema"] = self._ema
        return {name: np.array(one.cpu().numpy()) for name, one in tensors.items()}

    def _tensor(self, array: Array) -> torch.Tensor:
        return torch.from_numpy(np.array(array)).to(self._flat.param.device)


def learning_rate(step: int, steps: int, *, peak: float, warmup: int) -> float:
    """Linear over the first `warmup` steps, then half a cosine down to a hundredth of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))
