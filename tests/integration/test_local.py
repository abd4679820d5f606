"""decentral.local: one script as several processes, that end well, badly, or by force."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from processes import until

SCRIPT = """
import os, sys, time, torch, decentral

fault, rounds, peers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
home = "homes" if fault == "stopped" else None
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
strategy = decentral.DiLoCo(sync_every=5)
points = [torch.full((4,), float(i % 7)) for i in range(5000)]
run = decentral.local(peers, model, optimizer, strategy, rounds=rounds, home=home)
name, seen = run.mesh.name, 0

def train():
    global seen
    for batch in run.data(points, batch_size=4):
        if not seen:
            print("training", os.getpid(), len(run.members), torch.get_num_threads(), flush=True)
        time.sleep(0.005)
        loss = (model(batch) - batch.sum(1, keepdim=True)).square().mean()
        loss.backward()
        run.step(loss)
        seen += 1
        if fault == name and seen == 7:
            raise RuntimeError("on purpose")

if fault == "no-with":
    train()
    sys.stderr.write("an unfinished line")
else:
    with run:
        train()
        run.save("final")
print("state", run.round, run.state_hash, flush=True)
sys.exit(3 if fault == "no-with" and name == "peer-2" else 0)
"""


class Local:
    """The script as a process, and what it and its copies have said."""

    def __init__(self, folder: Path, fault: str, rounds: int, peers: int) -> None:
        script = folder / "train.py"
        script.write_text(SCRIPT)
        self.out, self.err = folder / "out", folder / "err"
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-P", str(script), fault, str(rounds), str(peers)],
                cwd=folder,
                stdout=out,
                stderr=err,
            )
        self.peers = peers
        self.pids: list[int] = []

    def said(self, pattern: str) -> list[tuple[str, ...]]:
        return re.findall(pattern, self.out.read_text(), re.MULTILINE)

    def train(self) -> None:
        """Until all of them do."""
        pattern = r"^(?:(peer-\d) \| )?training (\d+) (\d) (\d+)$"
        until(
            lambda: self.process.poll() is not None or len(self.said(pattern)) == self.peers,
            timeout_s=60,
            says="all train",
        )
        found = {name or "peer-1": (int(pid), rest) for name, pid, *rest in self.said(pattern)}
        names = {f"peer-{number}" for number in range(1, self.peers + 1)}
        assert set(found) == names, self.err.read_text()
        cores = len(os.sched_getaffinity(0))
        for _, (members, threads) in found.values():
            assert int(members) == self.peers, "nobody trains before all are there"
            assert int(threads) == max(1, cores // self.peers) or "OMP_NUM_THREADS" in os.environ
        self.pids = [found[name][0] for name in sorted(found)]

    def end(self, *, timeout_s: float = 40) -> int:
        status = self.process.wait(timeout_s)
        self.gone(timeout_s=1)
        return status

    def gone(self, *, timeout_s: float) -> None:
        until(
            lambda: not any(map(psutil.pid_exists, self.pids[1:])),
            timeout_s=timeout_s,
            says="no copy is left behind",
        )

    def states(self) -> list[tuple[str, ...]]:
        return self.said(r"^(?:peer-\d \| )?state (\d+) (\w{64})$")


@pytest.fixture
def started(tmp_path: Path) -> Iterator[list[Local]]:
    """What the test has started; all of it is gone afterwards."""
    made: list[Local] = []
    yield made
    for one in made:
        for process in (
            psutil.Process(one.process.pid).children() if one.process.poll() is None else ()
        ):
            process.kill()
        one.process.kill()
        one.process.wait()
        print(one.out.read_text(), one.err.read_text())


def start(
    started: list[Local], folder: Path, fault: str = "", rounds: int = 10**6, peers: int = 2
) -> Local:
    started.append(Local(folder, fault, rounds, peers))
    return started[-1]


def test_three_peers_train_one_script_to_the_same_bits(
    started: list[Local], tmp_path: Path
) -> None:
    run = start(started, tmp_path, rounds=8, peers=3)
    run.train()
    for pid in run.pids:
        process = psutil.Process(pid)
        assert "#" not in " ".join(process.cmdline()), "the join word is a secret"
        assert not any("#" in value for value in process.environ().values() if ":" in value)
        hosts = {c.laddr.ip for c in process.net_connections("inet") if c.status == "LISTEN"}
        assert hosts == {"127.0.0.1"}
    assert run.end() == 0, run.err.read_text()
    states = run.states()
    assert len(states) == 3 and len(set(states)) == 1 and states[0][0] == "8"
    assert (tmp_path / "final.safetensors").exists()


def test_a_failing_peer_is_survived_and_told(started: list[Local], tmp_path: Path) -> None:
    run = start(started, tmp_path, "peer-2", rounds=12, peers=3)
    run.train()
    assert run.end() == 1
    err = run.err.read_text()
    assert "peer-2 | RuntimeError: on purpose\n" in err
    assert "decentral: peer-2 ended with status 1; the others go on without it\n" in err
    assert "DecentralError: peer-2 ended with status 1 (phase: local, peer: peer-2)" in err
    assert run.said(r"^peer-3 \| state (12)")
    assert len(run.states()) == 1, "peer-1 learns at the end of its `with`"


def test_a_killed_peer_is_survived_and_told_without_a_with(
    started: list[Local], tmp_path: Path
) -> None:
    run = start(started, tmp_path, "no-with", rounds=15, peers=3)
    run.train()
    os.kill(run.pids[2], signal.SIGKILL)
    assert run.end() == 1
    assert len(run.states()) == 2 and len(set(run.states())) == 1
    err = run.err.read_text()
    assert "decentral: peer-3 was ended by SIGKILL; the others go on without it\n" in err
    assert "peer-2 | an unfinished line\n" in err
    says = "decentral: peer-2 ended with status 3, peer-3 was ended by SIGKILL (phase: local, "
    assert err.splitlines()[-1].startswith(says)


def test_a_failing_parent_stops_its_copies(started: list[Local], tmp_path: Path) -> None:
    run = start(started, tmp_path, "peer-1")
    run.train()
    before = time.monotonic()
    assert run.end() == 1
    assert time.monotonic() - before < 30
    err = run.err.read_text()
    assert "\nRuntimeError: on purpose\n" in err and "peer-2 |" not in err


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, -2), (signal.SIGTERM, 143)])
def test_interrupts_end_all_of_them_cleanly(
    started: list[Local], tmp_path: Path, number: signal.Signals, status: int
) -> None:
    run = start(started, tmp_path)
    run.train()
    time.sleep(0.3)
    run.process.send_signal(number)
    assert run.end(timeout_s=30) == status
    assert "peer-" not in run.err.read_text(), "copies leave in silence"


def test_with_homes_the_same_command_goes_on_where_it_was_stopped(
    started: list[Local], tmp_path: Path
) -> None:
    first = start(started, tmp_path, "stopped", rounds=60)
    first.train()
    until(
        lambda: list(tmp_path.glob("homes/peer-2/checkpoints/round-*")),
        timeout_s=30,
        says="a round is on disk",
    )
    first.process.terminate()
    assert first.end() == 143 and not first.states()
    again = start(started, tmp_path, "stopped", rounds=60)
    again.train()
    assert again.end(timeout_s=90) == 0, again.err.read_text()
    assert len(again.states()) == 2 and {round for round, _ in again.states()} == {"60"}
    assert len(set(again.states())) == 1


def test_no_copy_outlives_a_killed_parent(started: list[Local], tmp_path: Path) -> None:
    run = start(started, tmp_path)
    run.train()
    run.process.kill()
    run.process.wait()
    run.gone(timeout_s=30)
