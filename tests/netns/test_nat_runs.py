"""Training across NATs: the entry dies, newcomers come in by others, networks change."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from nat_world import NatWorld, Start, executed, forked, in_mid_round

from decentral.bench.lab import why_not
from decentral.bench.nat_lab import Site
from decentral.bench.nat_rules import Router
from decentral.cli.fork_server import ForkServer
from decentral.cli.processes import PeerProcess

pytestmark = [pytest.mark.netns, pytest.mark.slow]

FOUR = ("full-cone", "address-restricted", "port-restricted", "symmetric")
BACK_S = 5.0
"""After a change of the network, until all links are back."""
PATIENCE_S = 30.0
SETTLED_ROUNDS = 20
SLEEPS = ("--step-s", "0.05", "--sync-every", "6", "--state-kib", "256")


@pytest.fixture(autouse=True)
def possible() -> None:
    reason = why_not()
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with ForkServer("decentral.bench.sleep_peer") as made:
        yield made


TASKS = ["sleep", "gpt"] if os.environ.get("DECENTRAL_SOAK") else ["sleep"]
"""The demo's training takes most of a minute: `make soak` has it, too."""

# ------------------------------------------------------------------- four NATs and no entry left


@pytest.mark.parametrize("task", TASKS)
def test_the_entry_dies_and_four_nats_train_on(
    task: str, tmp_path: Path, server: ForkServer
) -> None:
    start: Start
    if task == "sleep":
        start, patience_s = forked(server, tmp_path, *SLEEPS), PATIENCE_S
    else:
        start, patience_s = executed(tmp_path, "--recipe", "gpt"), 100.0
    sites = {"entry": Site(), **{kind: Site(router=Router(kind=kind)) for kind in FOUR}}
    with NatWorld({**sites, "newcomer": Site()}, tmp_path, start) as world:
        entry, *four = world.found("entry", *FOUR, timeout_s=patience_s)
        entry.wait_round(SETTLED_ROUNDS, timeout_s=patience_s)  # the best links are there by then
        in_mid_round(entry)
        entry.kill()
        killed_at = time.monotonic()
        world.complete(four, killed_at, patience_s, rounds=2)
        newcomer = world.start("newcomer", "--join", four[0].invite())
        world.complete([*four, newcomer], killed_at, patience_s, rounds=2)
        assert all(link_class(peer, other) for peer in four for other in four if peer is not other)
        world.check()


def test_a_neighbour_joins_by_a_member_behind_the_same_nat(
    tmp_path: Path, server: ForkServer
) -> None:
    """The member that it joins by is reachable from its LAN only, and leads it to all others."""
    sites = {
        "entry": Site(),
        "home": Site(router=Router(kind="symmetric"), hosts=2),
        "far": Site(router=Router(kind="full-cone")),
    }
    with NatWorld(sites, tmp_path, forked(server, tmp_path, *SLEEPS)) as world:
        crew = world.found("entry", "home", "far")
        neighbour = world.start(
            "neighbour", "--join", world.peers["home"].invite(), site="home", number=1
        )
        world.complete([*crew, neighbour], time.monotonic(), PATIENCE_S)
        assert link_class(neighbour, world.peers["home"]) == "direct"
        world.check()


def link_class(peer: PeerProcess, other: PeerProcess) -> str:
    """As `decentral status` has it; empty for no link."""
    links = peer.status()["links"]
    return next((one["class"] for one in links if one["peer"] == other.peer_id), "")


# ------------------------------------------------------------------------- networks that change

HOME = Router(kind="port-restricted")
CHANGES: dict[str, tuple[Router, Callable[[NatWorld], None]]] = {
    "the provider gives the home another address": (HOME, lambda w: w.lab.renumber("home")),
    "the host moves to another network": (
        HOME,
        lambda w: w.lab.move(w.lab.host("home"), "cafe"),
    ),
    "a public member gets another address": (HOME, lambda w: w.lab.renumber("entry")),
    "the router forgets, and drops": (HOME, lambda w: w.lab.forget("home")),
    "the router forgets, and resets": (
        Router(kind="port-restricted", stale="reset"),
        lambda w: w.lab.forget("home"),
    ),
    "the router forgets, and maps anew": (
        Router(kind="symmetric", stale="adopt"),
        lambda w: w.lab.forget("home"),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_links_come_back_and_the_round_is_not_lost(
    change: str, tmp_path: Path, server: ForkServer
) -> None:
    router, happens = CHANGES[change]
    sites = {
        "entry": Site(),
        "home": Site(router=router),
        "far": Site(router=Router(kind="full-cone")),
        "cafe": Site(router=Router(kind="address-restricted"), hosts=0),
    }
    with NatWorld(sites, tmp_path, forked(server, tmp_path, *SLEEPS)) as world:
        crew = world.found("entry", "home", "far")
        in_mid_round(crew[0])
        happens(world)
        since = time.monotonic()
        comes_back(world, crew, since)


def test_a_machine_that_slept_is_back_at_once(tmp_path: Path, server: ForkServer) -> None:
    sites = {
        "entry": Site(),
        "home": Site(router=HOME),
        "far": Site(router=Router(kind="full-cone")),
    }
    with NatWorld(sites, tmp_path, forked(server, tmp_path, *SLEEPS)) as world:
        crew = world.found("entry", "home", "far")
        home = world.peers["home"]
        in_mid_round(crew[0])
        home.send(signal.SIGSTOP)
        time.sleep(8)  # longer than anybody waits for a sign of life
        assert crew[0].round > home.round + 1, "the others went on"
        home.send(signal.SIGCONT)
        comes_back(world, crew, time.monotonic())


def comes_back(world: NatWorld, crew: list[PeerProcess], since: float) -> None:
    whole_at = world.complete(crew, since, PATIENCE_S, rounds=2)
    took_s = world.links_back_s(crew, since, whole_at)
    print(f"links back after {took_s:.2f} s, two rounds of all after {whole_at - since:.2f} s")
    assert took_s <= BACK_S
    world.check()
