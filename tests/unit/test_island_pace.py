"""What the ranks of an island conclude from each other, and how they learn of each other's end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from island_bench import Bench, BenchTalk, together

from decentral.errors import PeerFailedError
from decentral.islands.pace import Pace, Standing, Verdict
from decentral.islands.watch import Watch
from decentral.leases import LeaseBook
from decentral.types import Range


class TestVerdict:
    def test_one_is_enough(self) -> None:
        rows = [Standing(False, False, False, 4).row(), Standing(True, False, False, 3).row()]
        verdict = Verdict.of(rows)
        assert (verdict.due, verdict.starved, verdict.ended, verdict.lowest) == (
            True, False, None, 3,
        )  # fmt: skip
        rows.append(Standing(False, True, True, 5).row())
        assert Verdict.of(rows) == Verdict(due=True, starved=True, ended=2, lowest=3)


class Outer:
    """As much of OuterRounds and OuterLoop as a pace looks at."""

    def __init__(self, round: int = 1, steps: int = 0, due: bool = False) -> None:
        self.held, self.work = self, self
        self.round, self.steps, self.due = round, steps, due
        self.ended: str | None = None
        self.asked = self.held_up = False
        self.synchronized = 0
        self.on_synchronize: Callable[[], None] = lambda: None

    @property
    def offered(self) -> object | None:
        return self if self.held_up else None

    def drain(self) -> None: ...

    def wait_until_current(self) -> None: ...

    def contribute(self) -> None:
        self.held_up = True

    def synchronize(self, *, early: bool = False) -> None:
        self.synchronized += 1
        self.round += 1
        self.steps, self.due, self.held_up, self.asked = 0, False, False, False
        self.on_synchronize()


def settle(outers: list[Outer], books: list[LeaseBook] | None = None) -> list[Pace]:
    bench = Bench(len(outers))
    paces = [
        Pace(BenchTalk(bench, n), None, lambda: None, None)  # type: ignore[arg-type]
        for n in range(len(outers))
    ]
    together(
        *(
            lambda n=n: paces[n].settle(  # type: ignore[misc]
                outers[n],
                outers[n],
                books[n] if books else LeaseBook(),
                leased=books is not None,
                stepped=True,
            )
            for n in range(len(outers))
        )
    )
    return paces


class TestPace:
    def test_nobody_is_due(self) -> None:
        outers = [Outer(steps=2), Outer(steps=2)]
        assert [pace.round for pace in settle(outers)] == [1, 1]
        assert [one.synchronized for one in outers] == [0, 0]

    def test_one_is_asked_and_all_contribute(self) -> None:
        outers = [Outer(steps=2), Outer(steps=2, due=True), Outer(steps=2)]
        assert [pace.round for pace in settle(outers)] == [2, 2, 2]
        assert [one.synchronized for one in outers] == [1, 1, 1]

    def test_who_is_ahead_waits_until_the_others_are_there(self) -> None:
        outers = [Outer(round=4, steps=4, due=True), Outer(round=3, steps=4, due=True)]
        settle(outers)
        assert [one.synchronized for one in outers] == [0, 1]
        assert [one.round for one in outers] == [4, 4]

    def test_one_has_no_samples_left_and_gets_some(self) -> None:
        books = [LeaseBook(), LeaseBook()]
        books[0].grant((Range(0, 4),))
        books[1].grant((Range(4, 8),))
        books[1].hand_out((Range(4, 8),))
        outers = [Outer(steps=1), Outer(steps=2)]
        outers[1].on_synchronize = lambda: books[1].grant((Range(8, 12),))
        settle(outers, books)
        assert [one.synchronized for one in outers] == [1, 1]
        assert books[1].remaining

    def test_the_end_of_one_is_the_end_of_all(self) -> None:
        outers = [Outer(steps=2), Outer(steps=2)]
        outers[1].ended = "the run reached its end at round 7"
        assert [pace.finished for pace in settle(outers)] == [outers[1].ended] * 2
        assert [one.synchronized for one in outers] == [0, 0]

    def test_the_end_comes_with_the_round(self) -> None:
        outers = [Outer(steps=2, due=True), Outer(steps=2, due=True)]
        outers[0].on_synchronize = lambda: setattr(outers[0], "ended", "enough")
        assert [pace.finished for pace in settle(outers)] == ["enough", "enough"]

    def test_who_waits_for_the_others_to_come_in_has_nothing_to_add(self) -> None:
        outers = [Outer(), Outer()]
        outers[0].asked = True
        bench = Bench(2)
        paces = [
            Pace(BenchTalk(bench, n), None, lambda: None, None)  # type: ignore[arg-type]
            for n in (0, 1)
        ]
        together(*(lambda n=n: paces[n].enter(outers[n], outers[n]) for n in (0, 1)))  # type: ignore[misc, arg-type]
        assert not outers[0].held_up and outers[0].synchronized == 1
        assert outers[1].synchronized == 0


class TestWatch:
    def make(self, size: int = 3) -> list[Watch]:
        bench = Bench(size)
        made: dict[int, Watch] = {}
        together(
            *(
                lambda n=n: made.update({n: Watch(BenchTalk(bench, n))})  # type: ignore[misc, arg-type]
                for n in range(size)
            )
        )
        return [made[n] for n in range(size)]

    def test_goodbyes_are_no_failures(self) -> None:
        watches = self.make()
        together(*(one.close for one in watches))
        assert [one.failure() for one in watches] == [None] * 3
        assert not [t for t in threading.enumerate() if t.name == "island watch"]

    def test_everybody_hears_why_one_failed(self) -> None:
        watches = self.make()
        watches[2].close("the disk is full")
        for one in watches[:2]:
            failure = one.failure(wait_s=5)
            assert failure is not None
            assert "rank 2 of this island has failed: the disk is full" in failure.says
            with pytest.raises(PeerFailedError):
                one.check()
        together(*(one.close for one in watches[:2]))

    def test_who_has_left_will_not_come_any_more(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("decentral.islands.watch._LAST_WORDS_S", 0.0)
        watches = self.make(2)
        watches[1].close()
        deadline = time.monotonic() + 5
        with pytest.raises(PeerFailedError, match="rank 1 of this island has left the run while"):
            while time.monotonic() < deadline:
                watches[0].check()
                time.sleep(0.01)
        watches[0].close()

    @pytest.mark.parametrize("dead", [0, 1])
    def test_everybody_hears_who_died(self, dead: int) -> None:
        watches = self.make()
        watches[dead]._heard = lambda *news, **more: None  # the dead pass nothing on
        for link in watches[dead]._links.values():
            link.shutdown(2)  # as the kernel does for a process that is gone
        for one in (one for n, one in enumerate(watches) if n != dead):
            failure = one.failure(wait_s=5)
            assert failure is not None and f"rank {dead} of this island is gone" in failure.says
        together(*(one.close for one in watches))
