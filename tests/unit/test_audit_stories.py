"""Any story of a correct run passes the audit, and one wrong value anywhere in it does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from churn_logs import PaperRun, Record
from hypothesis import given, settings
from hypothesis import strategies as st

from decentral.churn.audit import Report, audit

PEERS = "abcde"
Step = tuple[str, int]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["rounds", "few", "kill", "restart", "freeze", "thaw", "back", "fork"]),
        st.integers(0, 11),
    ),
    max_size=14,
)


class Story:
    """Does what can be done of the steps asked for; somebody is always there to go on."""

    def __init__(self, steps: list[Step]) -> None:
        self.run = PaperRun(len(PEERS))
        self.frozen: dict[str, int] = {}
        self.lineages = 1
        for what, number in steps:
            getattr(self, f"_{what}")(number)
        for name in list(self.frozen):
            self._thaw(PEERS.index(name))
        self.run.rounds(2)
        self.run.end()

    def well(self) -> list[str]:
        return [name for name in self.run.members if self.run.peers[name].well]

    def _rounds(self, number: int) -> None:
        self.run.rounds(1 + number % 4)

    def _few(self, number: int) -> None:
        """Some are late; their work is counted later."""
        here = self.well()
        self.run.round(here[: 1 + number % len(here)])

    def _kill(self, number: int) -> None:
        here = self.well()
        if len(here) > 2:
            self.run.kill(here[number % len(here)])

    def _restart(self, number: int) -> None:
        for name, peer in self.run.peers.items():
            if not peer.up:
                self.run.restart(name)
                return

    def _freeze(self, number: int) -> None:
        here = self.well()
        if len(here) > 2:
            name = here[number % len(here)]
            self.frozen[name] = self.run.freeze(name)

    def _thaw(self, number: int) -> None:
        name = PEERS[number % len(PEERS)]
        if name in self.frozen:
            fault = self.frozen.pop(name)
            if self.run.peers[name].up:
                self.run.thaw(fault, name)
                if name in self.run.members:
                    self.run.adopt(name, self.run.states[-1])
                else:
                    self.run.kill(name)  # a lineage that it is not of went on meanwhile

    def _back(self, number: int) -> None:
        to = self.run.states[-1].round - 1 - number
        first = next(one for one in self.run.told("commit") if one["lineage"] == self.run.lineage)
        if to >= first["round"]:
            self.run.fault("rollback")
            self.run.roll_back(to)

    def _fork(self, number: int) -> None:
        if len(self.well()) >= 2:
            self.lineages += 1
            self.run.fork(f"L{self.lineages}", *self.well())
            self.run.rounds(1)


def judged(run: PaperRun) -> Report:
    with TemporaryDirectory() as folder:
        return audit(run.write(Path(folder)))


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_a_correct_run_is_never_blamed(steps: list[Step]) -> None:
    report = judged(Story(steps).run)
    assert report.held, [str(one) for one in report.violations]
    assert report.checked["sums"] == report.checked["commits"]


def other_hash(one: Record) -> None:
    one["state_hash"] = one["state_hash"][::-1]


def other_parameter(one: Record) -> None:
    one["theta"][0] += 1e-4


def other_momentum(one: Record) -> None:
    one["momentum"][-1] -= 1e-4


def other_tokens(one: Record) -> None:
    one["contributions"][0]["tokens"] += 1


def other_lease(one: Record) -> None:
    one["contributions"][-1]["leases"][0][1] += 1


def one_less(one: Record) -> None:
    one["contributions"].pop()


def one_more(one: Record) -> None:
    one["contributions"].append(dict(one["contributions"][0]))


EDITS: list[Callable[[Record], None]] = [
    other_hash, other_parameter, other_momentum, other_tokens, other_lease, one_less, one_more,
]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(STEPS, st.sampled_from(EDITS), st.randoms(use_true_random=False), st.booleans())
def test_one_wrong_value_is_found(
    steps: list[Step], edit: Callable[[Record], None], chance: Random, by_all: bool
) -> None:
    """In one peer's log, or in all of them alike."""
    run = Story(steps).run
    tellings: dict[tuple[str, int, str], list[Record]] = {}
    for one in run.told("commit"):
        tellings.setdefault((one["lineage"], one["round"], one["state_hash"]), []).append(one)
    # What one peer alone tells, nobody can hold against it, its arithmetic apart.
    told = chance.choice([some for some in tellings.values() if len(some) > 1])
    if edit is other_hash or not by_all:
        edit(chance.choice(told))
    else:
        for one in told:
            edit(one)
    report = judged(run)
    assert not report.held
    assert {one.invariant for one in report.violations} <= {"I1", "I2", "I6", "I7"}
