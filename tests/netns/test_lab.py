"""The lab is what it says it is, as plain sockets see it: delay, rate, loss, cables, its end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from decentral.bench.crew import Crew
from decentral.bench.delay_lab import DelayLab
from decentral.bench.lab import Host, Lab, LabError, Lines, open_lab, sweep, why_not
from decentral.bench.workers import Place
from decentral.errors import ConfigError

pytestmark = pytest.mark.netns

KINDS = {
    "shaped": Lines(rates_mbit=(20, 20, 100)),
    "delayed": Lines(rates_mbit=(20, 20, 100), rtt_ms=10),
}


@pytest.fixture(autouse=True)
def possible() -> None:
    reason = why_not(delayed=True)
    if reason:
        pytest.skip(reason)


@pytest.fixture(params=sorted(KINDS))
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with open_lab(lines_of(request.param)) as made:
        yield made


def lines_of(kind: str) -> Lines:
    """Skips where this system lacks what this kind of line is made of."""
    reason = why_not(delayed=KINDS[kind].delayed)
    if reason:
        pytest.skip(reason)
    return KINDS[kind]


def namespaces() -> str:
    return subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout


def round_trips_ms(a: Host, b: Host, count: int, patience_s: float = 0.3) -> list[float]:
    """Of UDP packets, each sent when the last is back or given up; the lost ones are not in it."""
    taken = []
    with a.socket() as near, b.socket() as far:
        near.settimeout(patience_s)
        far.settimeout(patience_s)
        for number in range(count):
            sent = time.perf_counter()
            near.sendto(bytes([number % 256]), far.getsockname())
            try:
                data, back_to = far.recvfrom(10)
                far.sendto(data, back_to)
                while near.recv(10) != bytes([number % 256]):
                    pass
            except TimeoutError:
                continue
            taken.append((time.perf_counter() - sent) * 1e3)
    return taken


def mbit_per_s(a: Host, b: Host, seconds: float) -> float:
    """Of one TCP stream from a to b, after it has got going, payload only."""
    with b.socket(socket.SOCK_STREAM) as listener, a.socket(socket.SOCK_STREAM) as out:
        listener.listen(1)
        out.connect(listener.getsockname())
        into, _ = listener.accept()
        stop = time.monotonic() + 0.3 + seconds
        out.settimeout(5)

        def pour() -> None:
            with contextlib.suppress(OSError):  # the far end stops listening first
                while time.monotonic() < stop:
                    out.send(bytes(1 << 16))

        pouring = threading.Thread(target=pour)
        pouring.start()
        with into:
            into.settimeout(5)
            while time.monotonic() < stop - seconds:
                into.recv(1 << 20)
            begun, got = time.monotonic(), 0
            while time.monotonic() < stop:
                got += len(into.recv(1 << 20))
            taken = time.monotonic() - begun
        pouring.join()
        return got * 8 / taken / 1e6


def test_hosts_are_far_apart_as_asked() -> None:
    with open_lab(Lines(rates_mbit=(0, 0, 0), rtt_ms=50)) as lab:
        assert isinstance(lab, DelayLab)
        a, b, c = lab.hosts
        taken = round_trips_ms(a, b, 11)
        assert len(taken) == 11 and 50 <= statistics.median(taken) < 55, taken
        lab.set_delay(0, 2, 8)
        assert 8 <= statistics.median(round_trips_ms(a, c, 11)) < 12
        assert 50 <= statistics.median(round_trips_ms(b, c, 5)) < 55


def test_rates_hold_and_can_change(lab: Lab) -> None:
    a, b, c = lab.hosts
    assert 17 < mbit_per_s(a, b, 1.0) < 20.5
    assert 17 < mbit_per_s(c, b, 1.0) < 20.5, "what a host receives is shaped, too"
    lab.set_rate(0, 60)
    lab.set_rate(1, 60)
    assert 50 < mbit_per_s(a, b, 1.0) < 61
    lab.set_rate(1, 0)
    assert 50 < mbit_per_s(a, b, 1.0) < 61, "the sender's own line still holds"


def test_a_cut_cable_and_a_healed_one(lab: Lab) -> None:
    a, b, c = lab.hosts
    assert len(round_trips_ms(a, b, 2)) == 2, "and now they know each other's hardware address"
    lab.cut(1)
    assert round_trips_ms(a, b, 2, patience_s=0.1) == []
    assert len(round_trips_ms(a, c, 2)) == 2
    lab.heal(1)
    assert len(round_trips_ms(a, b, 2)) == 2
    before = lab.bytes_sent()
    round_trips_ms(a, b, 10)
    assert 10 * 2 * 29 <= lab.bytes_sent() - before < 5000


def test_packets_are_lost_by_a_seeded_chance() -> None:
    with open_lab(Lines(rates_mbit=(0, 0), loss=0.2)) as lab:
        assert isinstance(lab, DelayLab)
        a, b = lab.hosts
        with a.socket() as near, b.socket() as far:
            got = 0
            far.settimeout(0.1)
            for _ in range(20):
                for _ in range(100):
                    near.sendto(b"x", far.getsockname())
                with contextlib.suppress(TimeoutError):
                    while far.recv(10):
                        got += 1
        counters = lab.counters()
        assert counters[0]["sent_packets"] == 2000 == counters[0]["lost"] + got
        assert 330 < counters[0]["lost"] < 470
        lab.set_loss(0)
        assert len(round_trips_ms(a, b, 50)) == 50


def one_way(near: Host, far: Host, count: int = 20) -> int:
    """How many datagrams of so many arrive."""
    with near.socket() as out, far.socket() as into:
        into.settimeout(0.1)
        got = 0
        for begun in range(0, count, 100):  # more than that at once may not fit into the buffer
            for _ in range(min(100, count - begun)):
                out.sendto(b"x", into.getsockname())
            with contextlib.suppress(TimeoutError):
                while into.recv(10):
                    got += 1
        return got


def test_a_direction_can_be_blocked_and_reach_need_not_be_transitive() -> None:
    with open_lab(Lines(rates_mbit=(0, 0, 0), delay_line=True)) as lab:
        assert isinstance(lab, DelayLab)
        a, b, c = lab.hosts
        lab.block(0, 1, True)
        assert one_way(a, b) == 0 and one_way(b, a) == 20 and one_way(a, c) == 20
        lab.block(1, 0, True)
        assert one_way(b, a) == 0, "a and b do not see each other"
        assert len(round_trips_ms(a, c, 2)) == 2 == len(round_trips_ms(c, b, 2)), "c sees both"
        assert lab.counters()[0]["blocked"] == 20 == lab.counters()[1]["blocked"]
        lab.block(0, 1, False)
        lab.block(1, 0, False)
        assert len(round_trips_ms(a, b, 2)) == 2


def test_one_host_can_have_the_bad_line() -> None:
    with open_lab(Lines(rates_mbit=(0, 0, 0), delay_line=True)) as lab:
        assert isinstance(lab, DelayLab)
        a, b, c = lab.hosts
        lab.set_host_loss(2, 0.3)
        assert one_way(a, b, 100) == 100
        assert 230 < one_way(a, c, 400) < 330 and 230 < one_way(c, a, 400) < 330
        lab.set_host_loss(2, 0)
        assert one_way(a, c, 100) == 100


def pour(near: Host, far: Host, payload: bytes) -> bytes:
    """What comes out of a TCP connection."""
    with far.socket(socket.SOCK_STREAM) as listener, near.socket(socket.SOCK_STREAM) as out:
        listener.listen(1)
        out.connect(listener.getsockname())
        into, _ = listener.accept()
        pouring = threading.Thread(target=lambda: (out.sendall(payload), out.close()))
        pouring.start()
        with into:
            into.settimeout(10)
            got = b"".join(iter(lambda: into.recv(1 << 16), b""))
        pouring.join()
        return got


def test_flipped_bits_reach_the_application_and_tls_delivers_none_of_them() -> None:
    """A plain socket takes the wrong bytes for right ones; an all-reduce over links does not."""
    with open_lab(Lines(rates_mbit=(0, 0, 0), delay_line=True)) as lab:
        assert isinstance(lab, DelayLab)
        a, b, c = lab.hosts
        payload = os.urandom(2 << 20)
        lab.set_corruption(1, 0.05)
        got = pour(a, b, payload)
        flips = lab.counters()[0]["corrupted"]
        assert len(got) == len(payload), "TCP noticed nothing"
        wrong = sum(bin(x ^ y).count("1") for x, y in zip(got, payload, strict=True))
        assert 20 < wrong <= flips, "one bit each; what was sent twice may have come right first"
        assert pour(a, c, payload) == payload
        lab.set_corruption(1, 0)

        crew = Crew([Place(h.address, h.interface, tuple(h.prefix)) for h in lab.hosts])
        try:
            crew.prepare(8 << 20)
            crew.reduce()
            lab.set_corruption(1, 0.01)
            crew.begin()
            answers = crew.end()
            assert sum(counters["corrupted"] for counters in lab.counters()) > flips
            for answer in answers:
                assert not answer["ok"] and answer["src_intact"], answer
                assert answer["error"] in ("PeerFailedError", "AbortedError"), answer
            assert any("record" in answer["says"] for answer in answers), answers
            lab.set_corruption(1, 0)
            crew.replace(1)
            crew.prepare(8 << 20)
            assert all(answer["max_abs_error"] < 1e-5 for answer in crew.reduce())
        finally:
            crew.close()


def test_nothing_is_left_of_a_lab(lab: Lab) -> None:
    prefix = lab.hosts[0].prefix
    with subprocess.Popen([*prefix, "sleep", "60"]) as sleeper:
        while (
            str(sleeper.pid)
            not in subprocess.run(
                ["ip", "netns", "pids", lab.hosts[0].netns], capture_output=True, text=True
            ).stdout.split()
        ):
            time.sleep(0.01)
        assert lab.tag in namespaces()
        lab.close()
        assert sleeper.wait(5) == -signal.SIGKILL
    lab.close()
    assert lab.tag not in namespaces()


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_next_lab_sweeps_what_a_killed_process_left(kind: str) -> None:
    script = (
        "import os, signal; from decentral.bench.lab import *;"
        f"lab = open_lab({lines_of(kind)!r}); print(lab.tag, flush=True);"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    tag = done.stdout.strip()
    assert tag in namespaces()
    sweep()
    assert tag not in namespaces()


def test_what_cannot_work_is_said_in_words(monkeypatch: pytest.MonkeyPatch, lab: Lab) -> None:
    for wrong in ({"rates_mbit": (1,)}, {"rates_mbit": (1, 1), "loss": 2}):
        with pytest.raises(ConfigError):
            Lines(**wrong)
    with pytest.raises(ConfigError):
        lab.set_rate(1, -5)
    if isinstance(lab, DelayLab):
        with pytest.raises(LabError, match="not a number"):
            lab.tell("loss 7")
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(LabError, match="needs the ip command"):
        open_lab(KINDS["shaped"])
    monkeypatch.undo()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(LabError, match="root"):
        open_lab(KINDS["delayed"])
