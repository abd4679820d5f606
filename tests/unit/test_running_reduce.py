"""An attempt that is beginning, running, over, or called off amid any of it."""

from __future__ import annotations

import threading
import time

import pytest

from decentral.errors import AbortedError, CollectiveError
from decentral.running_reduce import RunningReduce

SOON_S = 10.0


class Operation:
    """A `Work` that lasts until it is called off or `finish`ed."""

    def __init__(self) -> None:
        self.finish = threading.Event()
        self.says = ""

    def abort(self, says: str) -> None:
        self.says = self.says or says
        self.finish.set()

    def wait(self, timeout_s: float | None) -> bool:
        self.finish.wait(timeout_s)
        if self.says:
            raise AbortedError(self.says, phase="all-reduce")
        return True


class Links:
    """Waits for links like `Mesh.connect`: as long as it is wanted."""

    def __init__(self) -> None:
        self.waited, self.are_there = threading.Event(), threading.Event()
        self.operation = Operation()

    def begin(self, wanted):
        while wanted() and not self.are_there.wait(0.002):
            self.waited.set()
        return self.operation


class Ended:
    def __init__(self) -> None:
        self.errors: list[BaseException | None] = []
        self.over = threading.Event()

    def __call__(self, error: BaseException | None) -> None:
        self.errors.append(error)
        self.over.set()


def test_whoever_calls_it_off_does_not_wait_for_links_that_it_makes_itself():
    running, links, ended = RunningReduce(), Links(), Ended()
    running.start(3, 1, links.begin, ended)
    assert links.waited.wait(SOON_S), "starting does not wait for the links either"
    began = time.monotonic()
    running.abort(3, 1, "somebody is gone")
    assert time.monotonic() - began < 1.0
    running.end()
    assert ended.over.wait(SOON_S)
    assert [str(error) for error in ended.errors] == [
        str(AbortedError("somebody is gone", phase="all-reduce"))
    ]


def test_what_runs_is_called_off_and_what_has_ended_is_not():
    running, links, ended = RunningReduce(), Links(), Ended()
    links.are_there.set()
    running.start(3, 1, links.begin, ended)
    running.abort(2, 9, "of another round")
    links.operation.finish.set()
    assert ended.over.wait(SOON_S) and ended.errors == [None]
    running.abort(3, 1, "too late")
    running.end()
    assert links.operation.says == ""


def test_a_call_off_that_comes_first_wins_until_its_round_is_committed():
    running = RunningReduce()
    running.abort(3, 2, "a newer attempt begins")
    with pytest.raises(AbortedError, match="newer"):
        running.start(3, 2, Links().begin, Ended())
    running.forget(3)
    links, ended = Links(), Ended()
    running.start(3, 2, links.begin, ended)
    running.end("enough")
    assert ended.over.wait(SOON_S) and isinstance(ended.errors[0], AbortedError)


def test_what_cannot_begin_ends_with_its_error():
    def begin(wanted):
        raise CollectiveError("there is no link", phase="start")

    running, ended = RunningReduce(), Ended()
    running.start(3, 1, begin, ended)
    assert ended.over.wait(SOON_S)
    assert isinstance(ended.errors[0], CollectiveError)
    running.end()
    links = Links()
    links.are_there.set()
    running.start(3, 2, links.begin, Ended())
    running.end("enough")
    assert links.operation.says == "enough"
