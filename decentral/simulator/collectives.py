"""All-reduce on networks of 2 to 4,096 peers: every schedule's time, and the one that is chosen.

Planners and cost model are those of `decentral.collectives`, unchanged; only the network is made
up (link_table.py). What is done for a number of peers:

    up to EXECUTE_PEERS   all ranks are planned, the plans validated (up to VALIDATE_PEERS) and
                          executed chunk by chunk (plan_execution.py, which says what it models):
                          the estimate's error shows
    beyond                some ranks are planned, with some of those that they talk to, and checked:
                          both ends of a lane must list the same transfers in the same order

An estimate leaves out loss, congestion control and cross traffic: the table's bandwidths are
taken to be goodputs.
"""

from __future__ import annotations

import hashlib
import random
import time
from dataclasses import dataclass

from decentral.collectives.cost import choose
from decentral.collectives.network import Network
from decentral.collectives.plan import Plan, Step
from decentral.collectives.schedules import SCHEDULES
from decentral.collectives.validate import PlanError, check_steps, validate
from decentral.simulator.link_table import LinkTable, draw
from decentral.simulator.plan_execution import execute

VALIDATE_PEERS = 32
EXECUTE_PEERS = 128
SAMPLED_RANKS = 3
SAMPLED_NEIGHBOURS = 3


@dataclass(frozen=True, kw_only=True)
class Row:
    """What was found for one number of peers and one size."""

    peers: int
    size_bytes: int
    seed: int
    seconds: dict[str, float]
    """Estimate by schedule."""
    chosen: str
    simulated_s: dict[str, float]
    """By schedule; empty where plans were not executed."""
    choose_s: float
    """Wall clock that choosing took. Not part of the trace hash."""
    trace_hash: str
    """SHA-256 over all estimates, and over every arrival of every execution."""


def run(table: LinkTable, peers: int, size_bytes: int, seed: int) -> Row:
    """Raises PlanError if plans do not fit together."""
    network = draw(table, peers, seed)
    count = size_bytes // 4
    started = time.perf_counter()
    choice = choose(network, count)
    choose_s = time.perf_counter() - started
    trace = hashlib.sha256(repr((peers, size_bytes, seed, choice.seconds)).encode())
    simulated: dict[str, float] = {}
    for name, schedule in SCHEDULES.items():
        if peers > EXECUTE_PEERS:
            check_sample(name, network, count, seed)
            continue
        plans = [schedule.plan(network, rank, count) for rank in range(peers)]
        if peers <= VALIDATE_PEERS:
            validate(plans, count=count)
        execution = execute(network, plans)
        simulated[name] = execution.seconds
        trace.update(execution.trace_hash.encode())
    return Row(
        peers=peers,
        size_bytes=size_bytes,
        seed=seed,
        seconds=choice.seconds,
        chosen=choice.schedule,
        simulated_s=simulated,
        choose_s=choose_s,
        trace_hash=trace.hexdigest(),
    )


def check_sample(name: str, network: Network, count: int, seed: int) -> None:
    """Plans a few ranks and some of their peers; PlanError where the ends of a lane differ."""
    rng = random.Random(f"{seed} {name} {network.members}")
    plan = SCHEDULES[name].plan
    for rank in rng.sample(range(network.members), SAMPLED_RANKS):
        mine = plan(network, rank, count)
        check_steps(mine, rank, network.members)
        talks_to = sorted({step.peer for step in mine.steps})
        for peer in rng.sample(talks_to, min(SAMPLED_NEIGHBOURS, len(talks_to))):
            theirs = plan(network, peer, count)
            if mine.segments != theirs.segments:
                raise PlanError(f"{name}: ranks {rank} and {peer} cut the buffer differently")
            for sender, a, receiver, b in ((rank, mine, peer, theirs), (peer, theirs, rank, mine)):
                if lane(a, receiver, sends=True) != lane(b, sender, sends=False):
                    raise PlanError(f"{name}: {sender} sends what {receiver} does not expect")


def lane(plan: Plan, peer: int, *, sends: bool) -> list[tuple[int, bool]]:
    """What a plan sends to a peer, or receives from it: (segment, final?) in order."""

    def entry(step: Step) -> tuple[int, bool]:
        return step.segment, step.kind.name.endswith("FINAL")

    return [entry(s) for s in plan.steps if s.peer == peer and s.kind.is_send == sends]
