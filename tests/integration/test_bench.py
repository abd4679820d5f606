"""`decentral bench` in small: every benchmark runs, and its JSON has the keys that README promises.

No figure is judged here: sizes are tiny, and the machine is busy.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from decentral.bench.aborts import slope
from decentral.bench.allreduce import ratios
from decentral.bench.lab import why_not
from decentral.bench.net import Net
from decentral.bench.systems import ring_bytes
from decentral.bench.unequal import lower_bound_s, operations_until_adapted, parse_changes
from decentral.bench.values import BLOCK, max_abs_error, values
from decentral.errors import ConfigError

RESULT = {
    "system", "peers", "size_bytes", "codec", "schedule", "encrypted", "seconds",
    "algbw_gib_s_median", "cpu_seconds", "bytes_on_wire", "max_abs_error",
}  # fmt: skip
ABOUT = {"cpu", "cores", "memory_gib", "kernel", "python", "commit"}


def bench(line: str, statuses: tuple[int, ...] = (0,)) -> dict[str, Any]:
    words = line.split()
    done = subprocess.run(
        [sys.executable, "-P", "-m", "decentral", "bench", *words, "--json"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode in statuses, done.stderr
    report = json.loads(done.stdout)
    assert report["bench"] == words[0] and set(report["machine"]) == ABOUT
    assert report["results"]
    return dict(report)


@pytest.fixture
def lab_possible() -> None:
    reason = why_not(delayed=True)
    if reason:
        pytest.skip(reason)


def test_allreduce_next_to_the_others() -> None:
    report = bench(
        "allreduce --peers 2 --size-kib 256 --runs 1 --encrypt off "
        "--schedule ring --streams 1 --against gloo,tcp,tls,pccl"
    )
    systems = [result["system"] for result in report["results"]]
    assert systems[:4] == ["decentral", "gloo", "tcp", "tls"]
    if "pccl" not in systems:
        (note,) = report["notes"]
        assert note.startswith("pccl was not measured: ")
    assert {"decentral/gloo", "decentral/tcp", "decentral/tls"} <= set(report["ratios"])
    for result in report["results"]:
        assert set(result) >= RESULT | {"cpu_seconds_per_gib_wire"}
        assert len(result["seconds"]) == 1 and result["max_abs_error"] < 1e-5
    ours, _, tcp, tls = report["results"][:4]
    assert ours["schedule"] == "ring" and not ours["encrypted"] and tls["encrypted"]
    assert 2 * 262144 <= ours["bytes_on_wire"] < 1.1 * tcp["bytes_on_wire"]


@pytest.mark.netns
@pytest.mark.usefixtures("lab_possible")
@pytest.mark.skipif(shutil.which("iperf3") is None, reason="no iperf3: apt install iperf3")
def test_allreduce_on_shaped_links() -> None:
    report = bench("allreduce --peers 2 --size-mib 1 --runs 1 --rates-mbit 100 --against iperf3")
    assert report["net"]["kind"] == "shaped" and report["net"]["rates_mbit"] == [100, 100]
    assert 50 < report["iperf3"]["rate_mbit"] < 100
    assert 0.1 < report["fraction_of_iperf3"] < 3  # one MiB: a burst is nearly all of it
    (ours,) = report["results"]
    assert ours["encrypted"] and ours["link_bytes"] > ours["bytes_on_wire"] >= 2 << 20


@pytest.mark.netns
@pytest.mark.usefixtures("lab_possible")
def test_unequal_with_a_change() -> None:
    report = bench("unequal --size-mib 1 --runs 3 --rates-mbit 100,100,40 --change 2:0:50")
    before, after = report["results"]
    assert before["from_run"] == 0 and after["from_run"] == 2
    assert {"auto_s_median", "ring_s_median", "ring/auto", "auto_of_bound"} <= set(before)
    assert [one["run"] for one in report["operations"]] == [0, 0, 1, 1, 2, 2]
    assert {one["schedule"] for one in report["operations"] if one["asked"] == "ring"} == {"ring"}
    assert all(one["max_abs_error"] < 1e-5 for one in report["operations"])


@pytest.mark.netns
@pytest.mark.usefixtures("lab_possible")
def test_link_and_latency_over_a_delay_line() -> None:
    report = bench(
        "link --size-mib 1 --seconds 0.1 --rate-mbit 100 --rtt-ms 10 --streams 1 "
        "--loss 0 --congestion cubic"
    )
    (one,) = report["results"]
    assert report["net"]["congestion"] == "cubic" and report["net"]["rtt_ms"] == 10
    assert one["streams_at_the_end"] == 1 and 0 < one["fraction_of_pipe"] < 1.1
    report = bench("latency --peers 3 --runs 1 --rtt-ms 10 --schedules ring,tree")
    ring, tree = report["results"]
    assert report["ratios"]["tree/ring"] == pytest.approx(
        tree["seconds_median"] / ring["seconds_median"], abs=1e-3
    )
    assert ring["seconds_median"] >= 4 * 0.005, "four hops of 5 ms cannot take less"


@pytest.mark.netns
@pytest.mark.usefixtures("lab_possible")
def test_concurrency_on_shaped_links() -> None:
    report = bench("concurrency --peers 2 --size-mib 2 --parts 4 --runs 1 --rates-mbit 100")
    assert [result["in_flight"] for result in report["results"]] == [1, 4]
    assert set(report["ratios"]) == {"4/1"}
    control = report["control"]
    assert control["probes"] > 0
    for name in ("unloaded_rtt_ms", "probe_rtt_ms", "shaper_rtt_ms", "wait_beyond_shaper_ms"):
        assert set(control[name]) == {"p50", "p95", "max"}


def test_memory() -> None:
    report = bench("memory --peers 2 --size-mib 8")
    for result in report["results"]:
        assert 1 <= result["extra_of_buffer"] < 3, "the result itself counts"


def test_strangers_get_nowhere_and_cost_little() -> None:
    """More of them than there are places for strangers. What is slower by how much is for a quiet
    machine to say."""
    report = bench(
        "admission --connections 300 --seconds 2 --state-kib 256 --seed 3", statuses=(0, 1)
    )
    assert report["nobody_got_in"] and not report["violations"]
    assert {result["attack"] for result in report["results"]} == {
        "dribble", "huge", "replay", "middle",
    }  # fmt: skip
    for result in report["results"]:
        assert result["tried"] == result["ended_by_peer"] > 0
        assert result["grew_mib"] < 32
    assert report["newcomer_joined_s"]["besieged"] is not None, "the crowd must not keep it out"


def test_a_killed_peer() -> None:
    report = bench(
        "faults --kind kill --instants 1 --size-mib 8 --peers 3 --seed 3", statuses=(0, 1)
    )
    (result,) = report["results"]
    assert report["held"] == (result["to_error_s_max"] <= result["limit_s"] == 1)
    assert result["faults"] == 1 and result["typed"] and result["src_intact"]
    (instant,) = report["instants"]
    assert instant["errors"] and len(instant["seconds_to_error"]) + instant["completed"] == 2


@pytest.mark.netns
@pytest.mark.usefixtures("lab_possible")
def test_a_cut_cable() -> None:
    report = bench(
        "faults --kind cut --instants 1 --size-mib 8 --peers 3 --silence-limit-s 1",
        statuses=(0, 1),  # 1: a busy machine noticed late
    )
    assert report["net"]["kind"] == "shaped"
    (result,) = report["results"]
    assert result["typed"] and result["src_intact"] and result["retry_max_abs_error"] < 1e-5
    assert report["held"] == (result["to_error_s_max"] <= result["limit_s"] == 1.5)
    assert 0.9 < result["to_error_s_max"] < 10


@pytest.mark.netns
@pytest.mark.usefixtures("lab_possible")
def test_an_interrupted_benchmark_leaves_nothing() -> None:
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "decentral", "bench", "latency", "--runs", "100000"]
        + ["--peers", "2", "--rtt-ms", "5"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        mine = f"dlab-{process.pid}-"
        deadline = time.monotonic() + 20
        while len(_workers(mine)) < 2:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        pids = _workers(mine)
        process.send_signal(signal.SIGTERM)
        _, says = process.communicate(timeout=20)
    assert process.returncode == 130 and says == b""
    assert mine not in subprocess.run(["ip", "netns"], capture_output=True, text=True).stdout
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def _workers(tag: str) -> list[int]:
    """Processes in the namespaces of a lab."""
    names = subprocess.run(["ip", "netns"], capture_output=True, text=True).stdout.split("\n")
    pids = []
    for name in (line.split()[0] for line in names if line.startswith(tag)):
        done = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True)
        pids += [int(pid) for pid in done.stdout.split()]
    return [pid for pid in pids if _is_worker(pid)]


def _is_worker(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return b"native_worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


@pytest.mark.parametrize(
    "words",
    [
        "allreduce --peers 1",
        "allreduce --against nonesuch",
        "allreduce --against iperf3",
        "allreduce --streams 65",
        "allreduce --net loopback --rates-mbit 5",
        "allreduce --net shaped --rtt-ms 5",
        "allreduce --rates-mbit fast",
        "unequal --change 1:2",
        "unequal --runs 2 --change 2:0:5",
        "faults --kind cut --net loopback",
        "faults --peers 2",
        "faults --aborts 3",
    ],
)
def test_what_cannot_be_measured_is_said_in_one_sentence(words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "decentral", "bench", *words.split()],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("decentral bench: ")


def test_arithmetic_of_the_reports() -> None:
    assert ring_bytes(4, 1000) == 1500
    mib = 1 << 20
    assert lower_bound_s(100 * mib, [400, 400, 400, 100]) == pytest.approx(mib * 8e-6)
    assert lower_bound_s(mib, [100, 100, 100, 100]) == pytest.approx(1.5 * mib * 8e-8)
    assert parse_changes(["2:0:50", "2:1:60"], 3, 4) == {2: [(0, 50.0), (1, 60.0)]}
    assert operations_until_adapted([3.0, 2.0, 1.0, 1.1, 1.0, 1.0]) == 2
    assert operations_until_adapted([1.0, 1.1]) == 0
    assert slope([1, 3, 5, 7]) == pytest.approx(2)
    rows = [
        {"system": name, "algbw_gib_s_median": speed, "cpu_seconds_per_gib_wire": cpu}
        for name, speed, cpu in (("decentral", 3.0, 0.6), ("gloo", 2.0, 0.5), ("tcp", 9.0, 0.4))
    ]
    assert ratios(rows) == {"decentral/gloo": 1.5, "decentral/tcp": 1.5}
    with pytest.raises(ConfigError, match="2 rates for 3 peers"):
        Net(kind="shaped", rates_mbit=(1, 2)).rates(3)


def test_values_show_every_wrong_place() -> None:
    count, ranks = BLOCK + 300_000, [0, 2]
    result = np.mean([values(rank, count) for rank in ranks], axis=0, dtype=np.float64)
    assert max_abs_error(result.astype(np.float32), ranks) < 1e-6
    assert max_abs_error(np.roll(result, 131072).astype(np.float32), ranks) > 1
    assert max_abs_error(result.astype(np.float32), [0, 1]) > 1
    assert 0.9 < statistics.pstdev(values(5, 20_000).tolist()) < 1.1
