"""What a run will cost before it is begun: how often to exchange, in which codec, in what pieces.

`plan` is a pure function of the model's size, the links and the length of an inner step. Its times
are those of the collectives' cost model (`decentral.collectives.cost`): goodputs and delays, no
loss, no cross traffic, no processors.

    DiLoCo            |── H steps ──|exchange|── H steps ──|exchange|
    StreamingDiLoCo   |─ H/F steps ─|─ H/F steps ─|─ H/F steps ─|        one of F fragments each;
                                     [exchange]    [exchange]             behind OVERLAP_STEPS
    AsyncDiLoCo       |── H steps ──|── H steps ──|── H steps ──|        all of it, behind the next
                                     [ exchange ]  [ exchange ]           H steps

**H** is the smallest of `LADDER` with which waiting takes at most `overhead` of the time; **F** the
fewest fragments of which each hides behind `OVERLAP_STEPS` inner steps.

**The recommendation** is the first plan that waits at most `overhead` of the time with H of at most
`COMFORTABLE`: by strategy in the order of `STRATEGIES`, and for each from the most exact codec to
the coarsest. Where there is none: the smallest H that waits so little, else whatever waits least.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from decentral.collectives import loads
from decentral.collectives.codecs import codec_named
from decentral.collectives.cost import Payload, choose
from decentral.collectives.network import Network
from decentral.collectives.schedules import all_gather
from decentral.errors import ConfigError

LADDER = (10, 20, 50, 100, 200, 500, 1000)
"""Inner steps per round that are tried."""
COMFORTABLE = 500
"""The DiLoCo paper's H (arXiv 2311.08105)."""
OVERLAP_STEPS = 4
"""Inner steps that a fragment may be late by: Streaming DiLoCo is robust below 5 (arXiv
2501.18512)."""
MAX_FRAGMENTS = 32
"""A transformer's layers, or a few of them, are a fragment: more there seldom are."""
OVERHEAD = 0.1
EXACT_FIRST = ("fp32", "fp16", "bf16", "int8", "int4", "fp4")
"""By the RMS error of a mean (README)."""
SPARSE = "topk"
"""SparseLoCo's, and nobody else's."""
STRATEGIES = ("DiLoCo", "StreamingDiLoCo", "SparseLoCo", "AsyncDiLoCo")
"""From what changes synchronous training least: what is a whole round late costs most."""
DAY_S = 86_400.0
FP32 = 4

_LOADS = {
    "ring": loads.ring,
    "tree": loads.tree,
    "butterfly": loads.butterfly,
    "hierarchical": loads.hierarchical,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """A peer's host memory for the outer rounds, in bytes; the model that it trains is not here.

    Estimated from the buffers that a run keeps; of F fragments one at a time has a next state.
    """

    theta: int
    """The committed parameters, fp32."""
    momentum: int
    """The outer optimizer's."""
    delta: int
    """This peer's outer gradient, untouched until it is counted."""
    mean: int
    """What the all-reduce gives."""
    next_state: int
    """The would-be parameters and momentum: nothing is overwritten before the commit."""
    snapshots: int
    """Parameters and own work as they were when an exchange began that training goes on behind, and
    where that work is measured from."""
    error_feedback: int
    """What the codec has left out so far."""
    pinned: int
    """The state before, while a checkpoint is written or a newcomer fetches it."""

    @property
    def total(self) -> int:
        return sum(asdict(self).values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One all-reduce among all peers."""

    seconds: float
    schedule: str
    sent_bytes: int
    """By the peer that sends most."""
    received_bytes: int
    """By the peer that receives most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One way to run, and what it costs. A round: H inner steps, one exchange of everything."""

    strategy: str
    codec: str
    sync_every: int
    """H."""
    fragments: int
    """F; 1: the model is exchanged at once."""
    schedule: str
    exchange_s: float
    """All exchanges of a round, one after another."""
    round_s: float
    """H inner steps and what is waited for."""
    blocked: float
    """Fraction of the time that training waits for an exchange."""
    hidden: float
    """Fraction of the time that training goes on while an exchange runs."""
    sent_bytes_round: int
    """By the peer that sends most; likewise below."""
    received_bytes_round: int
    sent_bytes_day: int
    received_bytes_day: int
    memory: Memory
    fits: bool
    """Waits no longer than asked for, with H of at most `COMFORTABLE`, in the memory that there
    is."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        memory = {**asdict(self.memory), "total": self.memory.total}
        return {**asdict(self), "memory": memory}


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """All plans that were considered, by strategy and codec, and the one to take."""

    plans: tuple[Plan, ...]
    recommended: Plan


def plan(
    params: int,
    network: Network,
    step_s: float,
    *,
    codec: str | None = None,
    memory_bytes: float | None = None,
    overhead: float = OVERHEAD,
) -> Advice:
    """For a model of `params` parameters whose inner step takes `step_s` seconds on each peer.

    `codec`: only with this one; `memory_bytes`: in no more host memory per peer (see `Memory`);
    `overhead`: the fraction of the time that may be waited. ConfigError if nothing fits.
    """
    if params < 1:
        raise ConfigError(f"a model has 1 parameter or more, not {params}", phase="plan")
    if not 0 < step_s < DAY_S:
        raise ConfigError(f"an inner step takes more than 0 s, not {step_s}", phase="plan")
    if not 0 < overhead < 1:
        raise ConfigError(f"overhead is a fraction in (0, 1), not {overhead}", phase="plan")
    if codec is not None and codec not in (*EXACT_FIRST, SPARSE):
        codec_named(codec)  # names all codecs where there is none of that name
        raise ConfigError(f"no strategy sends {codec}", phase="plan")
    codecs = (codec,) if codec is not None else (*EXACT_FIRST, SPARSE)
    limit = math.inf if memory_bytes is None else memory_bytes
    plans = tuple(_candidates(params, network, step_s, codecs, limit, overhead))
    small = [one for one in plans if one.memory.total <= limit]
    if not small:
        least = min(one.memory.total for one in plans)
        raise ConfigError(
            f"no plan does with {limit:,.0f} bytes of host memory per peer: the smallest needs "
            f"{least:,}",
            phase="plan",
        )
    return Advice(plans=plans, recommended=recommend(small, overhead))


def recommend(plans: Sequence[Plan], overhead: float = OVERHEAD) -> Plan:
    """By the rule above; `plans` in the order that it names."""
    for one in plans:
        if one.fits:
            return one
    patient = [one for one in plans if one.blocked <= overhead]
    if patient:
        return min(patient, key=lambda one: one.sync_every)
    return min(plans, key=lambda one: one.blocked)


def exchange(network: Network, params: int, codec: str) -> Exchange:
    """One all-reduce of `params` values: the schedule that a group would choose, and its cost."""
    if network.members == 1:
        return Exchange(seconds=0.0, schedule="none", sent_bytes=0, received_bytes=0)
    info = codec_named(codec)
    if codec == SPARSE:  # everybody's survivors to everybody
        words = -(-int(params * info.bytes_per_value) // FP32)
        cuts = [rank * words for rank in range(network.members + 1)]
        moved = (network.members - 1) * words * FP32
        took = min(all_gather.direct_s(network, cuts), all_gather.ring_s(network, cuts))
        return Exchange(seconds=took, schedule="all-gather", sent_bytes=moved, received_bytes=moved)
    choice = choose(network, params, info)
    payload = Payload(
        count=params,
        bytes_per_value=info.bytes_per_value,
        final_bytes_per_value=info.final_bytes_per_value,
    )
    load = _LOADS[choice.schedule](network, payload)
    return Exchange(
        seconds=choice.seconds[choice.schedule],
        schedule=choice.schedule,
        sent_bytes=int(load.up.bytes(payload).max()),
        received_bytes=int(load.down.bytes(payload).max()),
    )


def memory(params: int, strategy: str, fragments: int = 1) -> Memory:
    """What the outer rounds of a model of so many parameters keep in host memory."""
    whole = FP32 * params
    piece = -(-params // fragments) * FP32
    return Memory(
        theta=whole,
        momentum=whole,
        delta=whole,
        mean=whole,
        next_state=2 * piece,
        # AsyncDiLoCo keeps a momentum of its own and the last start besides.
        snapshots={"StreamingDiLoCo": 3, "AsyncDiLoCo": 5}.get(strategy, 0) * whole,
        error_feedback=whole if strategy == "SparseLoCo" else 0,
        pinned=2 * piece,
    )


def _candidates(
    params: int,
    network: Network,
    step_s: float,
    codecs: Sequence[str],
    memory_bytes: float,
    overhead: float,
) -> Iterator[Plan]:
    for strategy in STRATEGIES:
        for codec in codecs:
            if (strategy == "SparseLoCo") != (codec == SPARSE):
                continue
            fragments = 1
            if strategy == "StreamingDiLoCo":
                fragments = _fragments(params, network, step_s, codec, memory_bytes)
            one = exchange(network, -(-params // fragments), codec)
            timed = _timed(params, strategy, codec, fragments, one, step_s, overhead)
            yield replace(timed, fits=timed.fits and timed.memory.total <= memory_bytes)


def _fragments(
    params: int, network: Network, step_s: float, codec: str, memory_bytes: float
) -> int:
    """The fewest that hide behind `OVERLAP_STEPS`, and keep to the memory."""
    for fragments in range(2, min(MAX_FRAGMENTS, params) + 1):
        hides = exchange(network, -(-params // fragments), codec).seconds <= OVERLAP_STEPS * step_s
        total = memory(params, "StreamingDiLoCo", fragments).total
        if hides and total <= memory_bytes:
            return fragments
    return min(MAX_FRAGMENTS, params)


def _timed(
    params: int,
    strategy: str,
    codec: str,
    fragments: int,
    one: Exchange,
    step_s: float,
    overhead: float,
) -> Plan:
    """With the smallest H of the ladder that keeps waiting below `overhead`, else the largest."""
    sync_every, blocked_s, hidden_s = LADDER[-1], 0.0, 0.0
    for sync_every in LADDER:
        steps = {"StreamingDiLoCo": min(OVERLAP_STEPS, sync_every / fragments)}
        window_s = steps.get(strategy, sync_every if strategy == "AsyncDiLoCo" else 0) * step_s
        blocked_s = fragments * max(0.0, one.seconds - window_s)
        hidden_s = fragments * min(one.seconds, window_s)
        if blocked_s <= overhead * (sync_every * step_s + blocked_s):
            break
    round_s = sync_every * step_s + blocked_s
    sent, received = fragments * one.sent_bytes, fragments * one.received_bytes
    return Plan(
        strategy=strategy,
        codec=codec,
        sync_every=sync_every,
        fragments=fragments,
        schedule=one.schedule,
        exchange_s=fragments * one.seconds,
        round_s=round_s,
        blocked=blocked_s / round_s,
        hidden=hidden_s / round_s,
        sent_bytes_round=sent,
        received_bytes_round=received,
        sent_bytes_day=round(sent * DAY_S / round_s),
        received_bytes_day=round(received * DAY_S / round_s),
        memory=memory(params, strategy, fragments),
        fits=blocked_s <= overhead * round_s and sync_every <= COMFORTABLE,
    )
