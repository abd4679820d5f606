"""Peers train from a folder of text; whoever dies or comes back, committed samples count once."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import Peers

from decentral.cli.processes import PeerProcess
from decentral.data import sample_indices

CONTEXT = 4
WINDOWS = 150
"""Five rounds of three peers are an epoch."""


class TextPeers:
    """Peers of the recipe; a peer's log of trained windows goes on when it comes back."""

    def __init__(self, peers: Peers) -> None:
        self.peers, self.folder = peers, peers.folder / "corpus"
        # Several files, and no separator inside a window that is told apart by its number.
        words = [f"{n:0{CONTEXT}}" for n in range(WINDOWS)]
        self.folder.mkdir()
        (self.folder / "a.txt").write_text("".join(words))
        self.words = words

    def start(self, name: str, *args: str, home: Path | None = None, **env: str) -> PeerProcess:
        folders = {
            "TEXT_FOLDER": str(self.folder),
            "TEXT_CONTEXT": str(CONTEXT),
            "TEXT_LOG": str(self.log(name)),
        }
        return self.peers.start(
            name,
            *("--witness", "1", *args),
            recipe="text_recipe:recipe",
            home=home,
            env=folders | env,
        )

    def log(self, name: str) -> Path:
        return self.peers.folder / f"{name}.log"

    def group(self, count: int) -> list[PeerProcess]:
        first = self.start("peer-1")
        word = first.wait_for("listening", timeout_s=30)["join"]
        group = [first, *(self.start(f"peer-{n}", "--join", word) for n in range(2, count + 1))]
        for peer in group:
            all_in(peer, count)
        return group

    def committed(self, group: list[PeerProcess]) -> tuple[dict[int, Any], set[int]]:
        """Contributions by round, to the last that all have told; what they may still use then."""
        rounds: dict[int, Any] = {}
        granted: dict[int, dict[str, list[int]]] = {}
        for peer in group:
            for line in (peer.home / "events.jsonl").read_text().splitlines():
                event = json.loads(line)
                if event["event"] == "commit":
                    told = rounds.setdefault(event["round"], event["contributions"])
                    assert told == event["contributions"], "peers tell of different rounds"
                    granted.setdefault(event["round"], {})[peer.name] = ids_of(event["granted"])
        assert sorted(rounds) == list(range(1, max(rounds) + 1))
        last = max(round for round, by in granted.items() if len(by) == len(group))
        left = {id for ids in granted[last].values() for id in ids}
        return {round: rounds[round] for round in range(1, last + 1)}, left

    def check(self, group: list[PeerProcess]) -> list[int]:
        """The ids that counted: none twice, none skipped, and the windows that peers trained on."""
        rounds, granted = self.committed(group)
        by_peer: dict[str, list[int]] = {}
        for contributions in rounds.values():
            for one in contributions:
                by_peer.setdefault(one["peer"], []).extend(ids_of(one["leases"]))
        counted = sorted(id for ids in by_peer.values() for id in ids)
        assert len(counted) == len(set(counted)), "a sample counted twice"
        missing = set(range(counted[-1])) - set(counted)
        assert missing <= granted, "a sample was skipped"
        names = {peer.peer_id: peer.name for peer in group}
        for peer_id, ids in by_peer.items():
            indices = sample_indices(np.array(ids, dtype=np.uint64), WINDOWS, 0)
            trained = Counter(self.log(names[peer_id]).read_text().split())
            unseen = Counter(self.words[index] for index in indices) - trained
            assert not unseen, f"{names[peer_id]} has counted what it never trained on"
        return counted


def ids_of(ranges: list[list[int]]) -> list[int]:
    return [id for start, stop in ranges for id in range(start, stop)]


def stop(*peers: PeerProcess) -> None:
    """At once: who is left alone would wait for the others."""
    for peer in peers:
        peer.send(signal.SIGTERM)
    for peer in peers:
        assert peer.process.wait(30) == 0, peer.stderr()


def all_in(peer: PeerProcess, count: int, after: int = 0) -> int:
    event = peer.wait_for(
        "round", timeout_s=60, where=lambda e: e["round"] > after and e["participants"] == count
    )
    return int(event["round"])


@pytest.mark.slow
def test_a_peer_is_killed_and_comes_back_within_an_epoch(peers: Peers) -> None:
    text = TextPeers(peers)
    group = text.group(3)
    victim, survivors = group[1], [group[0], group[2]]
    at = victim.wait_round(group[0].round + 1, timeout_s=30)["round"]
    victim.kill()
    for peer in survivors:
        peer.wait_round(at + 2, timeout_s=30)
    back = text.start(victim.name, home=victim.home)
    at = all_in(back, 3)
    for peer in (*survivors, back):
        peer.wait_round(at + 4, timeout_s=30)
    stop(*survivors, back)
    counted = text.check([*survivors, back])
    assert len(counted) > WINDOWS, "more than one epoch"


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_where_it_was(peers: Peers) -> None:
    text = TextPeers(peers)
    group = text.group(2)
    for peer in group:
        peer.wait_round(group[0].round + 2, timeout_s=30)
    other = peers.folder / "other"
    other.mkdir()
    (other / "a.txt").write_text("".join(text.words) + "one more")
    stranger = text.start("stranger", "--join", group[0].invite(), TEXT_FOLDER=str(other))
    assert stranger.process.wait(60) != 0, "a peer with other text is refused"
    assert "fingerprint" in stranger.last_words()
    stop(*group)
    before = len(text.check(group))
    again = [text.start(peer.name, home=peer.home) for peer in group]
    for peer in again:
        all_in(peer, 2)
    stop(*again)
    assert len(text.check(again)) > before


def test_the_examples_of_the_page(root: Path, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (root / "docs" / "data.md").read_text(), re.DOTALL)
    assert len(blocks) == 3
    checks = (
        "from decentral.data.streams import StreamSamples\n"
        "squares, letters = StreamSamples(Squares()), StreamSamples(Letters())\n"
        "print([squares[i][1].item() for i in (3, 1004)])\n"
        "print(*(StreamSamples(shards)[i] for i in range(10)))\n"
        "print(*(letters[i] for i in range(10)))\n"
    )
    script = tmp_path / "page.py"
    script.write_text("\n".join([*blocks, checks]))
    done = subprocess.run(
        [sys.executable, "-P", str(script)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert re.fullmatch(r"447 windows; loss \d\.\d\d after round 5", said[0])
    assert said[1:] == [
        "[9.0, 16.0]",
        "a0 a1 a2 a3 b0 b1 c0 c1 c2 a0",
        "a0 b0 c0 a1 b1 c1 a2 b0 c2 a3",
    ]
