"""Programs between separate processes: the same bits as in one process, whatever dies meanwhile."""

from __future__ import annotations

from itertools import pairwise

import pytest
import toy_recipe
from processes import Peers, until
from toy_program import Toy

from decentral import _native
from decentral.cli.processes import PeerProcess
from decentral.dataflow.alone import run_alone
from decentral.dataflow.handover import seal
from decentral.dataflow.program import Program
from decentral.recipes import ProgramRecipe, load

RECIPE = "toy_recipe:recipe"


def expected(program: Program) -> str:
    """The hash of all cells after an undisturbed run in this process."""
    final = run_alone(program)
    roots = [
        (cell, seal({name: one.copy() for name, one in final[cell].items()}, 0).root)
        for cell in program.cells
    ]
    return bytes(_native.state_root(roots)).hex()


def done(peer: PeerProcess, timeout_s: float = 60) -> str:
    return str(peer.wait_for("done", timeout_s=timeout_s)["state_hash"])


def rounds_of(peer: PeerProcess) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for event in peer.events():
        if event["event"] == "round":
            found.setdefault(event["tag"], []).append(event["round"])
    return found


def test_four_peers_come_to_the_bits_of_one_process(peers: Peers) -> None:
    first, word = peers.first("--members", "4", recipe=RECIPE)
    others = [
        peers.start(f"peer-{n}", "--join", word, "--members", "4", recipe=RECIPE) for n in (2, 3, 4)
    ]
    hashes = {done(peer) for peer in (first, *others)}
    assert hashes == {expected(Toy(last=toy_recipe.LAST))}
    for peer in (first, *others):
        for cell, rounds in rounds_of(peer).items():
            assert rounds == sorted(set(rounds)), cell
    everybody = (first, *others)
    until(
        lambda: all(peer.exit_status() == 0 for peer in everybody),
        timeout_s=20,
        says="all end",
    )


def test_one_peer_alone_does_all_of_it(peers: Peers) -> None:
    first, _ = peers.first(recipe="toy_recipe:wide")
    assert done(first) == expected(Toy(size=4, last=4))


def test_two_peers_hold_sixteen_paths(peers: Peers) -> None:
    first, word = peers.first("--members", "2", recipe="toy_recipe:wide")
    second = peers.start("peer-2", "--join", word, recipe="toy_recipe:wide")
    assert {done(first), done(second)} == {expected(Toy(size=4, last=4))}


@pytest.mark.parametrize("victim", [0, 2])
def test_killed_and_replaced(peers: Peers, victim: int) -> None:
    """One dies in mid-round, for good; later another comes: the same bits."""
    first, word = peers.first("--members", "4", recipe=RECIPE)
    others = [
        peers.start(f"peer-{n}", "--join", word, "--members", "4", recipe=RECIPE) for n in (2, 3, 4)
    ]
    all_peers = [first, *others]
    all_peers[victim].wait_for("round", timeout_s=30, where=lambda event: event["round"] == 3)
    all_peers[victim].kill()
    left = [peer for peer in all_peers if peer is not all_peers[victim]]
    word = str(left[1].wait_for("listening", timeout_s=1)["join"]) or word
    newcomer = peers.start("peer-5", "--join", word, recipe=RECIPE)
    hashes = {done(peer) for peer in (*left, newcomer)}
    assert hashes == {expected(Toy(last=toy_recipe.LAST))}
    assert rounds_of(newcomer), "it had a part in it"


def test_everybody_dies_and_comes_back(peers: Peers) -> None:
    """What was committed is on disks: nothing is computed anew but what was under way."""
    names = [f"peer-{n}" for n in (1, 2, 3, 4)]
    first, word = peers.first("--members", "4", recipe=RECIPE)
    all_peers = [first] + [
        peers.start(name, "--join", word, "--members", "4", recipe=RECIPE) for name in names[1:]
    ]
    first.wait_for("round", timeout_s=30, where=lambda event: event["round"] == 4)
    for peer in all_peers:
        peer.kill()
    before = {cell: rounds[-1] for cell, rounds in rounds_of(first).items()}
    again = [
        peers.start(f"{name}-again", recipe=RECIPE, home=peers.folder / name) for name in names
    ]
    assert {done(peer) for peer in again} == {expected(Toy(last=toy_recipe.LAST))}
    for cell, rounds in rounds_of(again[0]).items():
        assert min(rounds) > before.get(cell, 0), f"{cell} went back"
        assert all(b > a for a, b in pairwise(rounds)), cell


@pytest.mark.parametrize("kind", ["dipaco", "diffusion"])
def test_a_third_of_the_peers_killed_and_replaced_in_training(peers: Peers, kind: str) -> None:
    """Real models: every parameter, moment, router and average is what one process comes to."""
    recipe = f"decentral.{kind}.recipe:tiny_recipe"
    first, word = peers.first("--members", "3", recipe=recipe)
    others = [
        peers.start(f"peer-{n}", "--join", word, "--members", "3", recipe=recipe) for n in (2, 3)
    ]
    others[0].wait_for("round", timeout_s=60, where=lambda event: event["round"] == 2)
    others[0].kill()
    left = [first, others[1]]
    newcomer = peers.start("peer-4", "--join", others[1].invite(), recipe=recipe)
    loaded = load(recipe)
    assert isinstance(loaded, ProgramRecipe)
    program = loaded.build(0)
    hashes = {done(peer, timeout_s=120) for peer in left}
    assert hashes == {expected(program)}
    if newcomer.events("joined"):
        assert done(newcomer, timeout_s=60) in hashes
    for peer in left:
        assert not [event for event in peer.events("fault") if event["kind"] == "divergence"]


def test_another_program_is_refused_by_name(peers: Peers) -> None:
    first, word = peers.first(recipe=RECIPE)
    stranger = peers.start("peer-2", "--join", word, recipe="toy_recipe:other")
    until(lambda: stranger.exit_status() is not None, timeout_s=30, says="it is refused")
    fault = stranger.wait_for("fault", timeout_s=5, where=lambda e: "recipe" in e["says"])
    assert "fingerprint" in fault["says"]
    assert done(first) == expected(Toy(last=toy_recipe.LAST))
