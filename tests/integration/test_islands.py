"""Islands of several processes under torchrun: real processes, gloo and loopback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from processes import until
from safetensors.torch import load_file

LOCAL = "127.0.0.1"
SCRIPT = Path(__file__).with_name("island_script.py")


class Island:
    """torchrun and its ranks, and what they said."""

    def __init__(self, name: str, ranks: int, **options: Any) -> None:
        self.name, self.said, self.text = name, [], ""
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        if ranks == 1:  # what torchrun would set; it takes as long to start as a rank
            launcher = []
            env |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": LOCAL, "MASTER_PORT": "0"}
        self.process = subprocess.Popen(
            [sys.executable, "-P", *launcher, str(SCRIPT), json.dumps(options)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env,
            start_new_session=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.text += line
            if line.startswith("{"):
                self.said.append(json.loads(line))

    def events(self, kind: str, **where: Any) -> list[dict[str, Any]]:
        return [
            one
            for one in list(self.said)
            if one["event"] == kind and all(one[key] == value for key, value in where.items())
        ]

    def wait_for(self, kind: str, timeout_s: float = 60, **where: Any) -> dict[str, Any]:
        def found() -> Any:
            return self.events(kind, **where) or self.process.poll() is not None

        until(found, timeout_s=timeout_s, says=f"{self.name}: {kind} {where}\n{self.text[-3000:]}")
        assert self.events(kind, **where), f"{self.name} ended\n{self.text[-5000:]}"
        return self.events(kind, **where)[0]

    def end(self, timeout_s: float = 60) -> int:
        status = self.process.wait(timeout_s)
        self._reader.join(10)
        return status

    def close(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for event in self.events("word"):
            with suppress(ProcessLookupError):
                os.kill(event["pid"], signal.SIGKILL)
        self.process.wait()
        self._reader.join(10)
        assert self.process.stdout is not None
        self.process.stdout.close()


def open_gate(gate: Path, *islands: Island, ranks: int) -> None:
    """All train from round 0 on, once all are in."""
    for island in islands:
        for rank in range(ranks):
            island.wait_for("in", rank=rank)
    gate.touch()


@pytest.fixture
def islands() -> Iterator[list[Island]]:
    made: list[Island] = []
    try:
        yield made
    finally:
        for one in made:
            one.close()


def start(islands: list[Island], name: str, ranks: int = 2, **options: Any) -> Island:
    islands.append(Island(name, ranks, **options))
    return islands[-1]


@pytest.mark.timeout(120)
def test_two_islands_agree_shard_by_shard(islands: list[Island], tmp_path: Path) -> None:
    """Each shard has the same bits on both islands after each round, and both end together."""
    home, gate = tmp_path / "a", tmp_path / "gate"
    common = {"rounds": 5, "eval": True, "gate": str(gate)}
    one = start(islands, "a", home=str(home), save=str(tmp_path / "final"), **common)
    word = one.wait_for("word", rank=0)["word"]
    other = start(islands, "b", word=word, **common)
    open_gate(gate, one, other, ranks=2)
    assert one.end() == 0, one.text
    assert other.end() == 0, other.text
    for rank in (0, 1):
        ends = [island.events("done", rank=rank)[0] for island in (one, other)]
        assert ends[0]["round"] == ends[1]["round"] == 5
        assert ends[0]["hash"] == ends[1]["hash"]
        assert ends[0]["why"] == ends[1]["why"] == "the run reached its end at round 5"
        seen = [{e["round"]: e["hash"] for e in i.events("round", rank=rank)} for i in islands]
        assert seen[0] == seen[1] and len(seen[0]) == 6, seen
    for island in islands:
        # Inner steps and looks at a round are made by all ranks, or by none.
        assert len({e["steps"] for e in island.events("done")}) == 1
        looks = [[(e["round"], e["value"]) for e in island.events("eval", rank=r)] for r in (0, 1)]
        assert looks[0] == looks[1] and looks[0], looks
    tokens = {e["tokens"] for island in islands for e in island.events("done")}
    assert tokens == {5 * 4 * 4 * 4}, "5 rounds of 4 steps by 4 ranks with 4 samples each"

    whole = load_file(tmp_path / "final" / "model-00001-of-00001.safetensors")
    assert {name: tuple(t.shape) for name, t in whole.items()} == {
        "0.weight": (5, 1), "0.bias": (5,), "2.weight": (1, 5), "2.bias": (1,),
    }  # fmt: skip
    index = json.loads((tmp_path / "final" / "decentral.json").read_text())
    assert index["rounds"] == [5, 5]
    assert index["state_hashes"] == [one.events("done", rank=r)[0]["hash"] for r in (0, 1)]
    for rank in (0, 1):
        kept = home / f"rank-{rank}" / "checkpoints" / f"module-shard-{rank}-of-2"
        assert (kept / "round-00000005" / "state.safetensors").exists()
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".pt", ".distcp")]


@pytest.mark.timeout(120)
def test_a_rank_dies_and_its_island_with_it(islands: list[Island]) -> None:
    """SIGKILL takes its island out; the other goes on, and refuses an island of another size."""
    one = start(islands, "a", rounds=100_000, step_s=0.02)
    word = one.wait_for("word", rank=0)["word"]
    other = start(islands, "b", word=word, step_s=0.02)
    stranger = start(islands, "c", ranks=1, word=word)
    one.wait_for("round", rank=0, members=4)
    other.wait_for("round", rank=1, members=4)
    os.kill(other.wait_for("word", rank=1)["pid"], signal.SIGKILL)
    killed_at = time.monotonic()
    assert other.end(30) != 0
    assert "rank 1 of this island is gone: its process has died" in other.text, other.text
    gone_s = time.monotonic() - killed_at
    until(
        lambda: one.events("round")[-1]["members"] == 2,
        timeout_s=10,
        says=f"the dead island is out of the view\n{one.text[-3000:]}",
    )
    assert time.monotonic() - killed_at < 25
    print(f"its island ended {gone_s:.1f} s later, was out {time.monotonic() - killed_at:.1f} s")
    begin = max(e["round"] for e in one.events("round"))
    for rank in (0, 1):
        until(
            lambda rank=rank: max(e["round"] for e in one.events("round", rank=rank)) > begin + 2,
            timeout_s=20,
            says=f"the other island goes on\n{one.text[-3000:]}",
        )

    assert stranger.end() != 0
    says = "this is an island of 1 rank, and all islands of a run have equally many ranks"
    assert says in stranger.text and "FingerprintError" in stranger.text, stranger.text
    assert one.process.poll() is None


@pytest.mark.timeout(120)
def test_replicas_train_with_a_single_peer(islands: list[Island], tmp_path: Path) -> None:
    """DDP: two ranks are one peer, whose replicas hold the same bits as the peer beside it."""
    gate = tmp_path / "gate"
    common = {"rounds": 5, "gate": str(gate)}
    one = start(islands, "a", kind="ddp", save=str(tmp_path / "final"), **common)
    word = one.wait_for("word", rank=0)["word"]
    other = start(islands, "b", ranks=1, kind="alone", word=word, **common)
    one.wait_for("in", rank=1)
    open_gate(gate, one, other, ranks=1)
    assert one.end() == 0, one.text
    assert other.end() == 0, other.text
    ends = [*one.events("done"), *other.events("done")]
    assert len(ends) == 3
    assert {(e["round"], e["hash"], e["tokens"]) for e in ends} == {
        (5, ends[0]["hash"], ends[0]["tokens"])
    }
    assert ends[0]["weights"] == ends[1]["weights"] == ends[2]["weights"]
    assert ends[0]["steps"] == ends[1]["steps"]
    assert set(load_file(tmp_path / "final.safetensors")) == {
        "0.weight", "0.bias", "2.weight", "2.bias",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_all_are_killed_and_come_back(islands: list[Island], tmp_path: Path) -> None:
    """Each rank goes on from its own disk; the founder's new join word is as good as the first."""

    def both(rounds: int) -> list[Island]:
        one = start(islands, "a", home=str(tmp_path / "a"), rounds=rounds, step_s=0.02)
        word = one.wait_for("word", rank=0)["word"]
        other = start(islands, "b", home=str(tmp_path / "b"), word=word, step_s=0.02)
        one.wait_for("round", rank=0, members=4)
        other.wait_for("round", rank=1, members=4)
        return [one, other]

    def newest(island: Island, rank: int) -> int:
        return max(int(e["round"]) for e in island.events("round", rank=rank))

    def go_on(pair: list[Island], more: int) -> None:
        begin = newest(pair[0], 0)
        for one in pair:
            for rank in (0, 1):
                until(
                    lambda one=one, rank=rank: newest(one, rank) >= begin + more,
                    timeout_s=40,
                    says=f"{one.name}: rank {rank} goes on\n{one.text[-3000:]}",
                )

    first = both(100_000)
    go_on(first, 5)
    for one in first:
        one.close()
    reached = min(newest(first[0], rank) for rank in (0, 1))
    again = both(100_000)
    go_on(again, 5)
    for rank in (0, 1):
        seen = [{e["round"]: e["hash"] for e in i.events("round", rank=rank)} for i in again]
        assert min(seen[0]) >= reached - 2, "it did not begin anew"
        same = seen[0].keys() & seen[1].keys()
        assert len(same) > 3 and all(seen[0][n] == seen[1][n] for n in same), seen
