"""The churn harness on real processes. In CI size; `make churn` prints the reports, `make soak` is
the long form."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from decentral.churn.kinds import ALL

SECONDS = 240 if os.environ.get("DECENTRAL_SOAK") else 110
"""Of the broad run; `make churn` takes 240."""


def churn(folder: Path, *args: str, timeout_s: float) -> dict[str, Any]:
    """The report of a run that held."""
    done = subprocess.run(
        [
            *(sys.executable, "-P", "-m", "decentral", "churn", "--report", str(folder), *args),
            *("--gap-limit-s", "60"),  # how long gaps are on a quiet machine: docs/reliability.md
        ],
        capture_output=True, text=True, timeout=timeout_s, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout.startswith("held"), done.stdout
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    assert report["verdict"] == "held" and not report["violations"]
    assert report["checked"]["sums"] > 10, "the sums were added up again"
    return report


@pytest.mark.slow
@pytest.mark.timeout(420)
def test_sixteen_peers_survive_a_fault_a_second(tmp_path: Path) -> None:
    report = churn(
        tmp_path / "run",
        *("--peers", "16", "--seconds", str(SECONDS), "--rate", "1", "--seed", "1"),
        timeout_s=400,
    )
    assert report["faults"] > SECONDS / 2
    assert len(report["faults_by_kind"]) >= 12, report["faults_by_kind"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "createElementNS" in page and "://" not in page.replace("http://www.w3.org", "")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_death_now_and_then_costs_next_to_nothing(tmp_path: Path) -> None:
    """24 peers, one SIGKILL and restart every 29 s. The measured figure is in docs/reliability.md;
    here is room for a machine that does other things as well."""
    report = churn(
        tmp_path / "run",
        *("--peers", "24", "--seconds", "70", "--faults", "kill", "--rate", str(1 / 29)),
        *("--even", "--seed", "2", "--step-s", "0.5", "--network", "loopback"),
        timeout_s=280,
    )
    assert report["faults"] == 2
    assert report["goodput"]["ratio"] > 0.9, report["goodput"]
    assert report["recovery_s"]["max"] < 5, report["recovery_s"]


@pytest.mark.slow
@pytest.mark.timeout(260)
def test_pccls_own_schedule(tmp_path: Path) -> None:
    report = churn(
        tmp_path / "run",
        *("--preset", "pccl", "--seconds", "60", "--seed", "3", "--calm-s", "6"),
        *("--network", "loopback"),
        timeout_s=240,
    )
    assert {"spawn", "remove"} == set(report["faults_by_kind"])


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_hundreds_come_and_go_and_nothing_is_left_of_them(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    report = churn(
        folder,
        *("--preset", "turnover", "--joins", "250", "--every-s", "0.25", "--peers", "4"),
        *("--seed", "4", "--calm-s", "6", "--network", "loopback"),
        timeout_s=280,
    )
    assert report["faults"] > 200
    grown = growth(folder, after=0.2)
    assert len(grown) == 4
    for peer, (fds, threads, rss_kib) in grown.items():
        assert fds <= 0 and threads <= 0, (peer, grown)
        assert rss_kib <= 8 * 1024, (peer, grown)


def growth(folder: Path, after: float) -> dict[str, tuple[float, float, float]]:
    """Per peer that lived through it all: what it holds at the end beyond what it held when the
    share `after` of the run was over. Medians of ten samples, as sockets come and go."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for line in (folder / "samples.jsonl").read_text().splitlines():
        sample = json.loads(line)
        rows.setdefault(sample["peer"], []).append(sample)
    longest = max(len(samples) for samples in rows.values())
    found = {}
    for peer, samples in rows.items():
        if len(samples) < 0.9 * longest:
            continue
        first = int(after * len(samples))
        found[peer] = tuple(
            median(samples[-10:], what) - median(samples[first : first + 10], what)
            for what in ("fds", "threads", "rss_kib")
        )
    return found  # type: ignore[return-value]


def median(samples: list[dict[str, Any]], what: str) -> float:
    return float(sorted(sample[what] for sample in samples)[len(samples) // 2])


@pytest.mark.timeout(120)
def test_a_schedule_is_replayed_from_its_file(tmp_path: Path) -> None:
    """Saved, edited, run again, and audited again later."""
    first = tmp_path / "first"
    size = ("--peers", "4", "--seconds", "8", "--calm-s", "3", "--network", "loopback")
    churn(first, *size, "--faults", "kill,stop", "--rate", "0.4", "--seed", "5", timeout_s=60)
    edited = json.loads((first / "schedule.json").read_text())
    edited["faults"] = [{"at_s": 1.0, "kind": "kill", "seats": [2], "for_s": 1.0}]
    (tmp_path / "edited.json").write_text(json.dumps(edited))
    again = tmp_path / "again"
    report = churn(again, *size, "--replay", str(tmp_path / "edited.json"), timeout_s=60)
    assert report["faults_by_kind"] == {"kill": 1}
    checked = subprocess.run(
        [sys.executable, "-P", "-m", "decentral", "churn", "--check", str(again), "--json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stderr
    assert json.loads(checked.stdout)["rounds"] == report["rounds"]


@pytest.mark.timeout(120)
def test_a_log_that_was_tampered_with_fails(tmp_path: Path) -> None:
    """The verdict and the exit status come from what the peers wrote down."""
    folder = tmp_path / "run"
    size = ("--peers", "3", "--seconds", "5", "--calm-s", "3", "--network", "loopback")
    churn(folder, *size, "--faults", "kill", "--rate", "0.3", "--seed", "6", timeout_s=60)
    log = folder / "peers" / "peer-002" / "events.jsonl"
    lines = log.read_text().splitlines()
    last = max(n for n, line in enumerate(lines) if '"event": "round"' in line)
    event = json.loads(lines[last])
    lines[last] = json.dumps({**event, "state_hash": "00" * 32})
    log.write_text("\n".join(lines) + "\n")
    checked = subprocess.run(
        [sys.executable, "-P", "-m", "decentral", "churn", "--check", str(folder)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert checked.returncode == 1
    assert "I1" in checked.stdout and "peer-002" in checked.stdout


def test_what_cannot_be_done_is_said(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("a file of the user's")
    for args, says in (
        (["--report", str(tmp_path)], "other things"),
        (["--report", str(tmp_path / "new"), "--faults", "flood"], "flood"),
        (["--report", str(tmp_path / "new"), "--peers", "1"], "--peers"),
        (["--check", str(tmp_path)], "timeline.jsonl"),
    ):
        done = subprocess.run(
            [sys.executable, "-P", "-m", "decentral", "churn", *args],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 1 and says in done.stderr, done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    assert (tmp_path / "mine").exists()


def test_the_kinds_can_be_listed() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "decentral", "churn", "--list"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert all(kind in done.stdout for kind in ALL)


@pytest.mark.timeout(120)
def test_an_interrupt_leaves_nothing_behind(tmp_path: Path) -> None:
    harness = subprocess.Popen(
        [
            *(sys.executable, "-P", "-m", "decentral", "churn", "--report", str(tmp_path / "run")),
            *("--peers", "3", "--seconds", "60", "--seed", "7"),
        ],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert harness.stderr is not None
    for line in harness.stderr:
        if "train together" in line:
            break
    harness.send_signal(signal.SIGINT)
    assert harness.wait(30) == 130
    harness.stderr.close()
    pids = [
        json.loads(line)["pid"]
        for line in (tmp_path / "run" / "timeline.jsonl").read_text().splitlines()
        if '"start"' in line
    ]
    assert len(pids) == 3 and not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert str(tmp_path) not in Path("/proc/mounts").read_text()
