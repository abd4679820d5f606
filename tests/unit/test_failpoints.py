"""Failpoints: the syntax, what they do and when, and that nothing is paid while none is armed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from processes import until

from decentral import _native, failpoints
from decentral.errors import ConfigError, ContributionError, DecentralError, StateError
from decentral.failpoints import Arming, Failpoint


@pytest.fixture(autouse=True)
def nothing_armed() -> Iterator[None]:
    yield
    failpoints.disarm_all()


def last() -> tuple[str, str]:
    happened = failpoints.failed()[-1]
    return happened["name"], happened["action"]


def test_the_registry_knows_the_points_of_both_languages() -> None:
    native = [name for name, point in failpoints.REGISTRY.items() if point.error is None]
    assert native == _native.failpoint_names()
    assert all(name == point.name and point.says for name, point in failpoints.REGISTRY.items())


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("", ()),
        (" ; ", ()),
        ("adopt=crash", (Arming("adopt", "crash"),)),
        ("adopt=stall:2.5", (Arming("adopt", "stall", 2.5),)),
        ("adopt=error@7", (Arming("adopt", "error", 0.0, 7),)),
        (
            "vote-write=crash; quantize=stall:.5@3;",
            (Arming("vote-write", "crash"), Arming("quantize", "stall", 0.5, 3)),
        ),
        ("leave=off", (Arming("leave", "off"),)),
    ],
)
def test_syntax(text: str, meant: tuple[Arming, ...]) -> None:
    assert failpoints.parse(text) == meant
    assert failpoints.parse(";".join(map(str, meant))) == meant


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("adopt", "is no failpoint: NAME=crash"),
        ("adopt=explode", "is no failpoint"),
        ("adopt=crash;leave=stall", "'leave=stall' is no failpoint"),
        ("adopt=stall:-1", "is no failpoint"),
        ("adopt=stall:1e9", "is no failpoint"),
        ("adopt=crash:3", "is no failpoint"),
        ("adopt=crash@x", "is no failpoint"),
        ("adopt=stall:0", "counted from 1"),
        ("adopt=stall:99999", "up to 3600 seconds"),
        ("adopt=crash@0", "counted from 1"),
        ("nonesuch=crash", "no failpoint 'nonesuch' (there are: handshake-dial, "),
        ("ADOPT=crash", "is no failpoint"),
    ],
)
def test_what_is_wrong_is_said_and_arms_nothing(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        failpoints.arm(text)
    assert says in caught.value.says
    assert not failpoints.some_armed()


def test_an_error_is_of_the_kind_that_the_place_can_have_and_comes_once() -> None:
    failpoints.arm("contribute=error; adopt=error")
    with pytest.raises(ContributionError) as caught:
        failpoints.passing("contribute")
    assert caught.value.phase == "contribute" and "contribute" in caught.value.says
    failpoints.passing("contribute")
    with pytest.raises(StateError):
        failpoints.passing("adopt")
    assert last() == ("adopt", "error") and not failpoints.some_armed()


@pytest.mark.parametrize(
    "point", [p for p in failpoints.REGISTRY.values() if p.error is not None], ids=lambda p: p.name
)
def test_every_error_can_be_made(point: Failpoint) -> None:
    failpoints.arm(f"{point.name}=error")
    with pytest.raises((DecentralError, OSError), match=f"the failpoint {point.name} made it fail"):
        failpoints.passing(point.name)


def test_a_sentence_instead_of_an_error() -> None:
    failpoints.arm("serve-chunk=error")
    assert failpoints.failing("serve-chunk") == "the failpoint serve-chunk made it fail"
    assert failpoints.failing("serve-chunk") is None


def test_the_nth_passage_counts_from_the_arming_and_others_do_not_count() -> None:
    failpoints.passing("adopt")
    failpoints.arm("adopt=error@3")
    failpoints.passing("adopt")
    failpoints.passing("leave")
    failpoints.passing("adopt")
    with pytest.raises(StateError):
        failpoints.passing("adopt")
    failpoints.arm("adopt=error@2")
    failpoints.arm("adopt=error@2")  # in place of what was armed
    failpoints.passing("adopt")
    failpoints.arm("adopt=off")
    failpoints.passing("adopt")


def test_of_many_threads_one_fails() -> None:
    failpoints.arm("adopt=error@100")
    failed = []

    def work() -> None:
        for _ in range(100):
            try:
                failpoints.passing("adopt")
            except StateError:
                failed.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(failed) == 1


def test_a_stall_sleeps_in_the_thread_that_passes() -> None:
    failpoints.arm("adopt=stall:0.05")
    before = time.monotonic()
    failpoints.passing("adopt")
    assert time.monotonic() - before >= 0.05
    assert last() == ("adopt", "stall")
    assert before <= failpoints.failed()[-1]["at"] <= time.monotonic()


CRASH = """
import atexit, sys
from decentral import failpoints
atexit.register(print, "at exit")
failpoints.arm_from_environment()
failpoints.arm_from_environment()   # once a process
print("not flushed", end="")
failpoints.passing("adopt")
failpoints.passing("adopt")
"""


def test_a_crash_from_the_environment_is_a_kill_that_says_where() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", CRASH],
        env={**os.environ, failpoints.ENVIRONMENT: "adopt=crash@2", "PYTHONUNBUFFERED": ""},
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    assert (done.stdout, done.stderr) == ("", "failpoint adopt: crash\n")


def test_a_wrong_environment_is_one_sentence() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "decentral", "peer", "--home", "/nonexistent/here"],
        env={**os.environ, failpoints.ENVIRONMENT: "nonesuch=crash"},
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "there is no failpoint 'nonesuch'" in done.stderr


def test_native_points_are_armed_in_the_same_way() -> None:
    failpoints.arm("all-gather=error; quantize=stall:1@2")
    assert failpoints.armed() == ["quantize", "all-gather"]
    assert not failpoints.some_armed(), "they are none of Python's own"
    failpoints.arm("all-gather=off; adopt=crash@2")
    assert failpoints.armed() == ["quantize", "adopt"]
    with pytest.raises(ConfigError, match="there is no native failpoint adopt"):
        _native.arm_failpoint("adopt", "crash", 0.0, 1)
    with pytest.raises(ConfigError, match="a failpoint cannot explode"):
        _native.arm_failpoint("quantize", "explode", 0.0, 1)


def test_the_command_arms_and_tells() -> None:
    before = len(failpoints.failed())
    with pytest.raises(ConfigError, match="is no failpoint"):
        failpoints.command({"arm": "adopt=explode"})
    assert len(failpoints.command({"arm": "adopt=error"})["failed"]) == before
    until(failpoints.some_armed, timeout_s=5, says="armed soon after the answer")
    with pytest.raises(StateError):
        failpoints.passing("adopt")
    assert failpoints.command({})["failed"][-1]["name"] == "adopt"
    with pytest.raises(ConfigError, match="takes a text"):
        failpoints.command({"arm": 3})


def test_a_passage_costs_next_to_nothing() -> None:
    count = 200_000
    best_s = min(_passages_s(count) for _ in range(5))
    assert best_s / count < 1e-6  # about 40 ns on a quiet machine, with the loop


def _passages_s(count: int) -> float:
    before = time.perf_counter()
    for _ in range(count):
        failpoints.passing("inner-step")
    return time.perf_counter() - before
