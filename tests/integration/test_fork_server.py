"""Peers forked from one process: each is a process like any other."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from decentral.bench.sleep_peer import PROGRAM
from decentral.cli.fork_server import ForkServer
from decentral.cli.processes import PeerProcess
from decentral.errors import DecentralError


def test_a_forked_peer_lives_and_dies_like_any_other(tmp_path: Path) -> None:
    with ForkServer(PROGRAM[0]) as server:
        first = PeerProcess("one", tmp_path / "one", ["--step-s", "0.02"], launch=server.launch)
        word = str(first.wait_for("listening", timeout_s=30)["join"])
        other = PeerProcess(
            "two", tmp_path / "two", ["--step-s", "0.02", "--join", word], launch=server.launch
        )
        common = other.wait_for("round", timeout_s=30, where=lambda e: e["participants"] == 2)
        same = first.wait_for("round", timeout_s=30, where=lambda e: e["round"] == common["round"])
        assert same["state_hash"] == common["state_hash"]
        assert first.process.pid != other.process.pid
        assert other.stop() == 0
        first.kill()
        assert first.exit_status() == -signal.SIGKILL
        for peer in (first, other):
            peer.close()


def test_what_goes_wrong_in_one_stays_there(tmp_path: Path) -> None:
    with ForkServer(PROGRAM[0]) as server:
        bad = PeerProcess("bad", tmp_path / "bad", ["--join", "nonsense"], launch=server.launch)
        assert bad.process.wait(30) == 1
        assert "HOST:PORT" in bad.last_words()
        good = PeerProcess("good", tmp_path / "good", [], launch=server.launch)
        good.wait_for("listening", timeout_s=30)
        pid = good.process.pid
        bad.close()
    assert good.process.wait(5) == -signal.SIGKILL, "the children end with the server"
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    good.close()


def test_a_server_that_has_died_is_named(tmp_path: Path) -> None:
    server = ForkServer(PROGRAM[0])
    server._server.kill()
    with pytest.raises(DecentralError, match="fork server"):
        PeerProcess("one", tmp_path / "one", [], launch=server.launch)
    server.close()
