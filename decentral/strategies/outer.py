"""The outer optimization that all strategies share: averaged pseudo-gradients, Nesterov momentum.

b ← μ b + Δ;  θ ← θ − η (Δ + μ b)      PyTorch's form; μ = 0 is plain SGD
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from decentral.errors import ConfigError
from decentral.state import HeldState, Layout
from decentral.types import Contribution

if TYPE_CHECKING:
    from decentral.types import Array

CODECS = ("fp32", "bf16", "fp16", "int8", "int4", "fp4", "sign", "topk")
NEED_FEEDBACK = ("sign", "topk")
"""What these leave out is too much to be lost."""
WEIGHTS = ("tokens", "equal")


@dataclass(frozen=True, slots=True, kw_only=True)
class OuterOptimization:
    """Options are validated when it is made; an unknown one raises a TypeError."""

    name: ClassVar[str]

    sync_every: int = 100
    """H: inner optimizer steps per round. Communication falls as 1/H."""
    outer_lr: float = 0.7
    """η of the outer step."""
    outer_momentum: float = 0.9
    """μ of the outer step; 0: plain SGD. 0.9 assumes long or warm-started runs: with a hundred
    rounds of a toy model 0.6 is clearly better (1.723 against 1.771 nats per byte)."""
    codec: str = "fp32"
    """The outer gradient on the wire: one of `CODECS`. Four bits cost next to nothing where each
    contribution is encoded once, which the butterfly schedule does."""
    error_feedback: float | None = None
    """β: what the codec leaves out of a contribution goes, times β, into the next one. None: 1 for
    the codecs that need it (sign, topk), and off for the others."""
    weights: str = "tokens"
    """"tokens": a contribution counts by its tokens; "equal": each counts the same."""
    min_contributors: int = 0
    """K: a round closes on so many contributions once `grace_s` is over; who comes later is
    counted in the next round. 0: every member is waited for, as in the paper."""
    grace_s: float = 0.0
    """How long a round that has its K contributions waits for more, in seconds."""
    staleness_power: float = 0.5
    """a: work that missed s rounds counts (1 + s)^−a times its weight (the polynomial staleness
    of FedAsync, Xie et al. 2019, arXiv 1903.03934, section 5). 0: nothing is taken off."""
    steps_alone: int = 0
    """Inner steps beyond H that a peer makes while no majority can be reached; they are
    contributed when it is back. Needs samples: more than H steps' worth only come without ids."""

    def __post_init__(self) -> None:
        whole("sync_every", self.sync_every, 1)
        within("outer_lr", self.outer_lr, 0, 10, open_below=True)
        if not 0 <= self.outer_momentum < 1:
            raise ConfigError(f"outer_momentum is in [0, 1), not {self.outer_momentum!r}")
        one_of("codec", self.codec, CODECS)
        if self.error_feedback is not None:
            within("error_feedback", self.error_feedback, 0, 1)
        one_of("weights", self.weights, WEIGHTS)
        whole("min_contributors", self.min_contributors, 0)
        within("grace_s", self.grace_s, 0, 3600)
        if self.grace_s and not self.min_contributors:
            raise ConfigError("grace_s says how long to wait beyond min_contributors: give both")
        within("staleness_power", self.staleness_power, 0, 10)
        whole("steps_alone", self.steps_alone, 0)

    # ------------------------------------------------------------------ when

    @property
    def fragments(self) -> int:
        return 1

    @property
    def overlap(self) -> int | None:
        return 0

    @property
    def dynamic_steps(self) -> bool:
        return False

    # ------------------------------------------------------------------ what

    @property
    def feedback_decay(self) -> float | None:
        if self.error_feedback is None:
            return 1.0 if self.codec in NEED_FEEDBACK else None
        return self.error_feedback or None

    def options(self) -> Mapping[str, int | float | str | None]:
        return asdict(self)

    def reduce_options(self) -> Mapping[str, Any]:
        return {}

    def weight_of(self, contribution: Contribution) -> float:
        weight = float(contribution.tokens) if self.weights == "tokens" else 1.0
        return weight / math.pow(1 + contribution.staleness, self.staleness_power)

    def outer_step(
        self, layout: Layout, held: HeldState, delta: Array, theta: Array, momentum: Array
    ) -> None:
        """θ(t), b(t) from θ(t−1), b(t−1) and Δ. Buffers take their plain average; frozen stay."""
        from decentral import _native

        trainable = slice(0, layout.trainable)
        _native.outer_nesterov(
            held.theta[trainable],
            held.momentum,
            delta[trainable],
            self.outer_lr,
            self.outer_momentum,
            theta[trainable],
            momentum,
        )
        average_buffers(layout, held, delta, theta)

    # ------------------------------------------------------------------ and then

    def blend(self, theta: Array, local: Array, snapshot: Array) -> Array:
        """Whatever was trained since the offer stays on top of θ."""
        local -= snapshot
        local += theta
        return local

    def restart(
        self, theta: Array, own: Array, progress: Array, members: int, memory: dict[str, Array]
    ) -> Array:
        raise NotImplementedError(f"{self.name} does not overlap by whole rounds")


def average_buffers(layout: Layout, held: HeldState, delta: Array, theta: Array) -> None:
    """θ of what is not trained: buffers take their plain average, frozen parameters stay."""
    from decentral import _native

    exchanged = slice(layout.trainable, layout.exchanged)
    _native.subtract(held.theta[exchanged], delta[exchanged], theta[exchanged])
    theta[layout.exchanged :] = held.theta[layout.exchanged :]


# ------------------------------------------------------------------ options


def whole(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        wanted = "0 or more" if least == 0 else f"at least {least}"
        raise ConfigError(f"{name} is {wanted}, not {value!r}")


def within(name: str, value: float, low: float, high: float, *, open_below: bool = False) -> None:
    if not low <= value <= high or (open_below and value == low):
        raise ConfigError(f"{name} is in {'(' if open_below else '['}{low}, {high}], not {value!r}")


def one_of(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} is one of {', '.join(choices)}, not {value!r}")
