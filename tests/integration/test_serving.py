"""Text and images from runs of separate processes, by visitors, while peers die."""

from __future__ import annotations

import json
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import Peers, until

from decentral.cli.processes import PeerProcess
from decentral.dataflow.leases import Assignment
from decentral.dataflow.worker import COPIES
from decentral.diffusion.recipe import tiny as tiny_diffusion

DIPACO = "decentral.dipaco.recipe:tiny_recipe"
DIFFUSION = "decentral.diffusion.recipe:tiny_recipe"
DIFFUSION_CELLS = tiny_diffusion(0)
PROMPT = "0123 4567 8"


class Visitor:
    """``decentral generate`` or ``decentral sample``, with its JSON lines."""

    def __init__(self, stderr: Path, command: str, *args: str) -> None:
        self._stderr = stderr
        words = [sys.executable, "-P", "-m", "decentral", command, "--json", *args]
        with stderr.open("w") as log:
            self.process = subprocess.Popen(
                [*words, "--listen", "127.0.0.1:0"], stdout=subprocess.PIPE, stderr=log, text=True
            )

    def lines(self) -> Iterator[dict[str, Any]]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            yield json.loads(line)

    def done(self) -> dict[str, Any]:
        """The last event. Fails with what it said on stderr."""
        events = list(self.lines())
        assert self.process.wait(60) == 0, self.stderr()
        assert events[-1]["event"] == "done"
        return events[-1]

    def stderr(self) -> str:
        return self._stderr.read_text()


class Visitors:
    """Starts them, and ends them with the test."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._all: list[Visitor] = []

    def start(self, command: str, *args: str) -> Visitor:
        visitor = Visitor(self._folder / f"visitor-{len(self._all)}.log", command, *args)
        self._all.append(visitor)
        return visitor

    def generate(self, word: str, *args: str) -> Visitor:
        more = ["--recipe", DIPACO, "--prompt", PROMPT, *args]
        return self.start("generate", "--join", word, *more)

    def sample(self, word: str, out: Path, *args: str) -> Visitor:
        more = ["--recipe", DIFFUSION, "--out", str(out), "--classes", "0-3", "--n", "16", *args]
        return self.start("sample", "--join", word, *more)

    def close(self) -> None:
        for one in self._all:
            one.process.kill()
            one.process.wait()
            if one.process.stdout:
                one.process.stdout.close()


@pytest.fixture
def visitors(tmp_path: Path) -> Iterator[Visitors]:
    visitors = Visitors(tmp_path)
    yield visitors
    visitors.close()


def serving(peers: Peers, count: int, recipe: str, cell: str, last_round: int) -> list[PeerProcess]:
    """Peers whose run is over, and who stay. `cell`: one that is done last."""
    options = ("--serve", "--members", str(count), "--on-quorum-loss", "pause")
    first, word = peers.first(*options, recipe=recipe)
    others = [
        peers.start(f"peer-{n}", "--join", word, *options, recipe=recipe)
        for n in range(2, count + 1)
    ]
    everybody = [first, *others]

    def at_the_end(which: str) -> bool:
        rounds = [e for peer in everybody for e in peer.events("round") if e["tag"] == which]
        return any(event["round"] == last_round for event in rounds)

    cells = {cell} | ({f"expert/{k}" for k in range(4)} if recipe == DIFFUSION else set())
    until(lambda: all(map(at_the_end, cells)), timeout_s=150, says="everything is trained")
    return everybody


@pytest.mark.slow
def test_text_is_the_same_here_and_there_and_survives_a_peer(
    peers: Peers, visitors: Visitors
) -> None:
    first, second = serving(peers, 2, DIPACO, "router", 3)
    word = first.invite()
    texts = {
        way: visitors.generate(word, "--paths", way, "--tokens", "120")
        for way in ("local", "remote")
    }
    done = {way: visitor.done() for way, visitor in texts.items()}
    assert done["local"]["bytes"] == done["remote"]["bytes"]
    assert len(bytes.fromhex(done["local"]["bytes"])) == 120
    for way, one in done.items():
        assert {used for _, used in one["paths"]} == {way}
    assert done["remote"]["fetched_bytes"] < done["local"]["fetched_bytes"]

    # One of two peers dies in the middle: the other keeps every path, too.
    undisturbed = visitors.generate(word, "--paths", "remote", "--tokens", "1500").done()
    visitor, text = visitors.generate(word, "--paths", "remote", "--tokens", "1500"), ""
    for event in visitor.lines():
        if event["event"] == "done":
            done_late = event
        else:
            text += event["text"]
        if len(text) > 150 and second.exit_status() is None:
            second.kill()
    assert visitor.process.wait(60) == 0, visitor.stderr()
    assert second.exit_status() is not None, "it was killed before the end"
    assert done_late["bytes"] == undisturbed["bytes"]


@pytest.mark.slow
def test_text_while_it_trains_leaves_the_bits_alone(peers: Peers, visitors: Visitors) -> None:
    """Peers that are asked all the time come to the state that they would come to anyway."""
    # They stay after the end: on a busy machine a visitor takes as long to start as they to train.
    first, word = peers.first("--members", "2", "--serve", recipe=DIPACO)
    second = peers.start("peer-2", "--join", word, "--members", "2", "--serve", recipe=DIPACO)
    alone = peers.start("alone", recipe=DIPACO)
    everybody = (first, second, alone)
    answered = 0
    until(
        lambda: any(e["tag"].startswith("path") for e in first.events("round")),
        timeout_s=60,
        says="a path is there",
    )
    while first.last("done") is None:
        visitor = visitors.generate(first.invite(), "--paths", "remote", "--tokens", "200")
        list(visitor.lines())
        status = visitor.process.wait(60)
        answered += status == 0
    hashes = {peer.wait_for("done", timeout_s=60)["state_hash"] for peer in everybody}
    assert len(hashes) == 1 and answered


@pytest.mark.slow
def test_a_visitor_is_told_what_is_wrong(peers: Peers, visitors: Visitors, tmp_path: Path) -> None:
    (first,) = serving(peers, 1, DIPACO, "router", 3)
    word = first.invite()
    for visitor, says in (
        (visitors.sample(word, tmp_path / "x.png"), "this run is of another recipe"),
        (visitors.generate(word, "--temperature", "-1"), "temperature is from 0"),
        (visitors.generate(word, "--recipe", "tiny_recipe:recipe"), "cannot be imported"),
        (visitors.generate(word, "--recipe", "gpt"), "is no program"),
        (visitors.generate(word, "--prompt", "letters"), "these models know bytes below 64"),
    ):
        assert visitor.process.wait(60) == 1
        assert says in visitor.stderr()


def leases(peers: list[PeerProcess]) -> dict[str, set[str]]:
    """By cell, who keeps it."""
    found = Assignment(DIFFUSION_CELLS, COPIES).leases([peer.peer_id for peer in peers])
    return {cell: set(keepers) for cell, keepers in found.items()}


def picture(path: Path) -> bytes:
    """The pixels of a PNG of ours."""
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n") and data.endswith(b"IEND\xaeB`\x82")
    at = data.index(b"IDAT")
    size = int.from_bytes(data[at - 4 : at], "big")
    return zlib.decompress(data[at + 4 : at + 4 + size])


@pytest.mark.slow
def test_images_are_the_same_here_and_there_and_survive_a_peer(
    peers: Peers, visitors: Visitors, tmp_path: Path
) -> None:
    first, second = serving(peers, 2, DIFFUSION, "router", 4)
    word = first.invite()
    asked = {
        way: visitors.sample(word, tmp_path / f"{way}.png", "--experts", way)
        for way in ("local", "remote")
    }
    done = {way: visitor.done() for way, visitor in asked.items()}
    assert done["local"]["sha256"] == done["remote"]["sha256"]
    assert [done[way]["experts"] for way in done] == ["local", "remote"]
    pixels = picture(tmp_path / "local.png")
    assert len(set(pixels)) > 50 and pixels == picture(tmp_path / "remote.png")

    second.kill()
    replicated = visitors.sample(word, tmp_path / "one.png", "--experts", "remote").done()
    assert replicated["sha256"] == done["remote"]["sha256"] and not replicated["lost"]


@pytest.mark.slow
def test_an_expert_that_nobody_keeps_is_masked(
    peers: Peers, visitors: Visitors, tmp_path: Path
) -> None:
    everybody = serving(peers, 3, DIFFUSION, "router", 4)
    kept = leases(everybody)
    # Who is left has what is always needed (two of three keep it), and seldom all experts: who
    # keeps what follows from the peers' ids.
    able = [one for one in everybody if one.peer_id in kept["router"] & kept["clusters"]]
    lacks = {
        one.name: [k for k in range(4) if one.peer_id not in kept[f"expert/{k}"]] for one in able
    }
    last = max(able, key=lambda one: len(lacks[one.name]))
    gone = lacks[last.name]
    for peer in everybody:
        if peer is not last:
            peer.kill()  # both at once: one after the other, the run would have new replicas
    visitor = visitors.sample(
        last.invite(), tmp_path / "two.png", "--experts", "remote", "--mode", "full"
    )
    assert visitor.done()["lost"] == gone
    for k in gone:
        assert f"expert/{k} is lost, samples go on without it" in visitor.stderr()
    assert len(set(picture(tmp_path / "two.png"))) > 50


@pytest.mark.parametrize("words", ["4-9", "x", "", "3-", "1,,2"])
def test_classes_that_there_are_not(words: str) -> None:
    from decentral.cli.sample import _classes
    from decentral.errors import ConfigError

    with pytest.raises(ConfigError):
        _classes(words, 8, DIFFUSION_CELLS)


def test_classes_take_turns() -> None:
    from decentral.cli.sample import _classes

    def asked(words: str | None, n: int) -> list[int]:
        found = _classes(words, n, DIFFUSION_CELLS)
        assert found is not None
        return found.tolist()

    assert asked("0-3", 8) == asked(None, 8) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert asked("0-9", 4) == [0, 1, 2, 3], "ten are asked for where there may be fewer"
    assert asked("1,3", 5) == [1, 1, 1, 3, 3]
