"""decentral.local without processes: what it refuses, who waits for whom, who is told of failures.

Processes are in tests/integration/test_local.py.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
import time

import pytest
import torch
from fake_mesh import Cluster
from tiny_run import Numbers, train

from decentral import copies, local_run
from decentral.copies import COME, GO, MARK, Copies, Origin, _how
from decentral.errors import ConfigError, DecentralError
from decentral.local_run import CopyRun, FirstRun, local
from decentral.options import RunOptions
from decentral.strategies import DiLoCo

CALL = "from decentral.local_run import local; local(2, None, None, None)"


# ---- what it refuses


@pytest.mark.parametrize("n", [0, -1, 2.0, "2"])
def test_a_number_of_peers_is_wanted(n):
    with pytest.raises(ConfigError, match="local wants a number of peers"):
        local(n, None, None, None)


def test_a_script_is_wanted():
    done = subprocess.run(
        [sys.executable, "-P"], input=CALL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and "not from a prompt or a notebook" in done.stderr


def test_once_in_a_process_and_not_in_a_worker(monkeypatch):
    monkeypatch.setattr(local_run, "_called", True)
    with pytest.raises(ConfigError, match="once in a process"):
        local(2, None, None, None)
    monkeypatch.setattr(copies.multiprocessing, "parent_process", object)
    with pytest.raises(ConfigError, match="__main__"):
        local(2, None, None, None)


def test_a_mark_without_a_parent_is_named(monkeypatch):
    for mark in ("x", "987654"):
        monkeypatch.setenv(MARK, mark)
        with pytest.raises(ConfigError, match="unset it"):
            Origin.find()
        assert MARK not in os.environ
    assert Origin.find() is None


# ---- the pipe


def test_a_copy_hears_its_parent_and_ends_with_it(monkeypatch):
    signals = []
    monkeypatch.setattr(copies, "STOP_S", 0.01)
    monkeypatch.setattr(copies.os, "kill", lambda pid, number: signals.append(number))
    readable, writable = os.pipe()
    pipe = os.fdopen(writable, "wb", buffering=0)
    pipe.write(json.dumps({"number": 3, "word": "127.0.0.1:1#secret"}).encode() + b"\n")
    monkeypatch.setenv(MARK, str(readable))
    origin = Origin.find()
    assert (origin.number, origin.word) == (3, "127.0.0.1:1#secret") and MARK not in os.environ
    looks = iter([True, True, False])
    origin.wait(GO, lambda: next(looks))
    assert next(looks, None) is None, "it looked until it was not to wait any more"
    pipe.write(json.dumps(COME).encode() + b"\n")
    origin.wait(COME)
    assert not origin._heard[GO].is_set() and not signals
    pipe.close()
    deadline = time.monotonic() + 10
    while len(signals) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [number.name for number in signals] == ["SIGTERM", "SIGKILL"]


def test_ends_are_told_in_words():
    assert [_how(status) for status in (3, -9, -11, -64)] == [
        "ended with status 3",
        "was ended by SIGKILL",
        "was ended by SIGSEGV",
        "was ended by SIGRTMAX",
    ]


def test_without_copies_there_is_nothing_to_wait_for():
    none = Copies()
    none.start({}, "word", {})
    none.call(GO)
    none.wait()
    none.stop()
    assert none.living == 0 and none.failures() == {}


# ---- the runs, over a mesh of threads


class FakeCopies:
    """Threads in the place of processes. Notes what is asked of it."""

    def __init__(self, living: int, failures: dict[str, str] | None = None) -> None:
        self.living, self.said, self.ended = living, [], []
        self.heard = {what: threading.Event() for what in (COME, GO)}
        self._failures = failures or {}

    def call(self, what: str) -> None:
        self.said.append(what)
        self.heard[what].set()

    def wait(self) -> None:
        self.ended.append("waited for")

    def stop(self) -> None:
        self.ended.append("stopped")

    def failures(self) -> dict[str, str]:
        return self._failures


class FakeOrigin:
    def __init__(self, copies: FakeCopies) -> None:
        self._copies = copies

    def wait(self, what, meanwhile=lambda: True) -> None:
        while not self._copies.heard[what].wait(0.01) and meanwhile():
            pass


def make(kind, cluster: Cluster, index: int, **options):
    torch.manual_seed(index)
    model = torch.nn.Linear(1, 1)
    return kind(
        cluster.meshes[index],
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        DiLoCo(sync_every=3),
        RunOptions(**{"rounds": 2, **options}),
        founder=index == 0,
        make_group=cluster.make_group,
    )


def make_first(cluster: Cluster, fakes: FakeCopies, **options) -> FirstRun:
    run = make(FirstRun, cluster, 0, **options)
    run._copies = fakes
    return run


def test_nobody_trains_before_all_are_there_and_all_end_together():
    cluster, fakes = Cluster(3), FakeCopies(2)
    seen = []
    first = make_first(cluster, fakes)
    others = [make(CopyRun, cluster, i) for i in (1, 2)]
    for run in others:
        run.origin = FakeOrigin(fakes)

    def one(run) -> None:
        with run:
            train(run, on_step=lambda run: seen.append(len(run.members)))

    threads = [threading.Thread(target=one, args=(run,), daemon=True) for run in others]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    assert not seen and not cluster._present, "they do not even dial"
    one(first)
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert set(seen) == {3} and len(seen) == 3 * 2 * 3
    assert len({run.state_hash for run in (first, *others)}) == 1
    assert fakes.said == [COME, GO] and set(fakes.ended) == {"waited for"}
    assert cluster.meshes[0].phases[:2] == ["wait for the other peers", None]


def test_who_has_ended_is_not_waited_for():
    fakes = FakeCopies(0, {"peer-2": "ended with status 1", "peer-3": "was ended by SIGKILL"})
    says = "^peer-2 ended with status 1, peer-3 was ended by SIGKILL "
    cluster = Cluster(1)
    with pytest.raises(DecentralError, match=says) as failed, make_first(cluster, fakes) as run:
        train(run)
        assert run.round == 2
    assert (failed.value.peer, failed.value.phase) == ("peer-2, peer-3", "local")
    assert cluster.meshes[0].closed
    run.close()


def test_an_exception_stops_the_others_and_is_not_hidden_by_theirs():
    fakes = FakeCopies(0, {"peer-2": "ended with status 1"})
    cluster = Cluster(1)
    with pytest.raises(ZeroDivisionError), make_first(cluster, fakes) as run:
        for _ in run.data(Numbers(), 2):
            raise ZeroDivisionError
    assert fakes.ended == ["stopped"] and cluster.meshes[0].closed


def test_leaving_early_in_peace_waits_for_the_others():
    cluster, fakes = Cluster(1), FakeCopies(0)
    with make_first(cluster, fakes) as run:
        for _ in run.data(Numbers(), 2):
            break
    assert fakes.ended == ["waited for"] and cluster.meshes[0].left == "done"


def test_leaving_before_the_others_were_told_to_train_stops_them():
    fakes = FakeCopies(1)
    make_first(Cluster(1), fakes).close()
    assert fakes.ended == ["stopped"] and fakes.said == []


def test_an_interrupt_while_waiting_for_the_others_leaves_the_run():
    class Impatient(FakeCopies):
        def wait(self) -> None:
            raise KeyboardInterrupt

    cluster, fakes = Cluster(1), Impatient(0)
    run = make_first(cluster, fakes)
    train(run)
    with pytest.raises(KeyboardInterrupt):
        run.close()
    assert cluster.meshes[0].closed and fakes.ended == ["stopped"]


@pytest.mark.parametrize(("rounds", "ended"), [(2, "waited for"), (9, "stopped")])
def test_at_the_end_of_the_process(rounds, ended, monkeypatch, capsys):
    """Not finished means that something has ended the script; a status can only be forced."""
    statuses = []
    monkeypatch.setattr(local_run.os, "_exit", statuses.append)
    fakes = FakeCopies(0, {"peer-2": "ended with status 1"})
    run = make_first(Cluster(1), fakes, rounds=rounds)
    try:
        for number, _ in enumerate(run.data(Numbers(), 2)):
            if number == 6:
                break
            run.model(torch.ones(1, 1)).sum().backward()
            run.step(0.0)
        assert (run.finished is not None) == (ended == "waited for")
        run._at_exit()
    finally:
        atexit.unregister(run._at_exit)
    assert set(fakes.ended) == {ended}
    err = capsys.readouterr().err
    if ended == "waited for":
        assert statuses == [1]
        assert err == "decentral: peer-2 ended with status 1 (phase: local, peer: peer-2)\n"
    else:
        assert not statuses and not err
