"""DiLoCo inside one expert (Douillard et al. 2023, arXiv 2311.08105): the step that ends a round.

    Δ = mean over the parts of (θ − θ_i)      b ← μ b + Δ      θ ← θ − η (Δ + μ b)

What is sampled from is an average over the rounds' θ. Parts keep their inner optimizer's moments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from decentral.dataflow.program import Arrays
from decentral.diffusion.config import Config

if TYPE_CHECKING:
    from decentral.types import Array


def initial(state: Arrays) -> dict[str, Array]:
    """The expert's round 0, from a part's."""
    param = state["param"]
    return {"param": param, "ema": param, "momentum": np.zeros_like(param)}


def step(before: Arrays, params: Sequence[Array], config: Config, round: int) -> dict[str, Array]:
    """The expert's round `round`, from its round before and its parts' parameters, in order."""
    from decentral import _native

    theta = before["param"]
    delta = np.zeros_like(theta)
    for param in params:
        delta += theta - param
    delta /= np.float32(len(params))
    param, momentum = np.empty_like(theta), np.empty_like(theta)
    _native.outer_nesterov(
        theta, before["momentum"], delta,
        config.outer_lr, config.outer_momentum, param, momentum,
    )  # fmt: skip
    # Its parts' steps count together: else the average would reach back over more samples than
    # that of an expert which one peer trains.
    steps = config.steps * len(params)
    decay = np.float32(min(config.ema**steps, round / (round + 1)))
    ema = decay * before["ema"] + (1 - decay) * param
    return {"param": param, "ema": ema, "momentum": momentum}
