"""Nothing from the network or the disk is ever unpickled: watched by an audit hook."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from decentral.cli.processes import PeerProcess

SUPPORT = Path(__file__).resolve().parent.parent / "support"
ENV = {"PYTHONPATH": f"{SUPPORT}:{Path(__file__).resolve().parent}"}
SLEEP = ("decentral.bench.sleep_peer",)


def peer(folder: Path, name: str, *args: str, what: tuple[str, ...] = SLEEP) -> PeerProcess:
    return PeerProcess(name, folder / name, args, program=("no_pickle", *what), env=ENV)


def test_the_hook_would_tell() -> None:
    program = (
        "import sys, pickle, pathlib, no_pickle; sys.addaudithook(no_pickle.watch); "
        "pickle.loads(pickle.dumps(pathlib.Path('.')))"
    )
    done = subprocess.run([sys.executable, "-c", program], env=ENV, check=False)
    assert done.returncode == 77


@pytest.mark.parametrize("what", ["sleep", "torch"])
def test_a_peer_joins_trains_and_resumes_without_unpickling(tmp_path: Path, what: str) -> None:
    if what == "sleep":
        program, args = SLEEP, ["--step-s", "0.02"]
    else:
        program, args = ("decentral.cli", "peer"), ["--recipe", "tiny_recipe:recipe"]
    first = peer(tmp_path, "one", *args, what=program)
    word = str(first.wait_for("listening", timeout_s=60)["join"])
    peers = [first, peer(tmp_path, "two", *args, "--join", word, what=program)]
    for one in peers:  # a state came over the network, and rounds of both
        one.wait_for("round", timeout_s=60, where=lambda e: e["participants"] == 2)
    assert [one.stop() for one in peers] == [0, 0]
    again = peer(tmp_path, "two", *args, what=program)  # the last to leave: from its checkpoint
    again.wait_for("round", timeout_s=60)
    assert again.stop() == 0
    for one in (*peers, again):
        one.close()
