"""Calls between processes: small and large, many at once, in vain, and to those that die."""

from __future__ import annotations

import time
from concurrent.futures import CancelledError, wait
from typing import Any

import numpy as np
import pytest
from mesh_member import serve
from mesh_members import Crew, linked, until

from decentral.errors import CallError, ConfigError
from decentral.peer.calls.messages import MAX_BODY_BYTES, Answer, inline
from decentral.peer.runtime import Mesh

LARGE = np.random.default_rng(1).integers(0, 256, 8 << 20, np.uint8).tobytes()


def failure(future: Any, timeout_s: float = 20.0) -> CallError:
    error = future.exception(timeout_s)
    assert isinstance(error, CallError), error
    return error


def at_rest(mesh: Mesh) -> bool:
    """No call is open, no memory posted, no place taken."""
    calling = mesh._node.calling
    places = [guest.places for guest in calling._callee._guests.values()]
    return not (calling._caller._open or calling._room or calling._futures or any(places))


@pytest.mark.parametrize("who", ["member", "spectator"])
def test_small_and_large_and_many_at_once(crew: Crew, who: str) -> None:
    first = crew.start("ab")
    mesh = crew.member("b") if who == "member" else crew.spectator()
    linked(mesh, first)
    assert mesh.call(first.me, "echo", b"hello", 10).result(15) == b"hello"
    assert mesh.call(first.me, "echo", b"", 10).result(15) == b""
    assert mesh.call(first.me, "echo", LARGE, 30).result(35) == LARGE
    caller, thread = mesh.call(first.me, "who", b"", 10).result(15).decode().split(" ", 1)
    assert caller == mesh.me and thread.startswith("decentral calls")
    bodies = [LARGE[: 1 << n] + bytes([n]) for n in range(4, 23)]  # as many as may be open at once
    asked = [mesh.call(first.me, "echo", body, 30) for body in bodies]
    assert [one.result(35) for one in asked] == bodies
    assert len(mesh.call(first.me, "grow", str(MAX_BODY_BYTES).encode(), 30).result(35)) == 16 << 20
    assert at_rest(mesh)


def test_whoever_is_linked_serves_and_links_are_waited_for(crew: Crew) -> None:
    first, second = crew.start("a"), crew.start("a")
    second.wait_for("joined")
    mesh = crew.member("b")  # linked to one of them so far
    for member in (first, second):
        assert mesh.call(member.me, "echo", LARGE[:100_000], 15).result(20) == LARGE[:100_000]
    other = crew.spectator()
    serve(mesh)
    assert other.call(mesh.me, "echo", LARGE, 30).result(35) == LARGE
    serve(other)
    assert mesh.call(other.me, "echo", LARGE, 30).result(35) == LARGE


def test_what_goes_wrong_names_the_peer_and_the_phase(crew: Crew) -> None:
    first = crew.start("ab")
    mesh = crew.member("b")
    linked(mesh, first)
    for method, body, phase, says in (
        ("other", b"", "method", "nothing of that name is served"),
        ("fails", LARGE, "handler", f"cannot do with {len(LARGE)} bytes"),
        ("nap", b"5", "timeout", "no answer within 0.5 s"),
        ("grow", str(MAX_BODY_BYTES + 1).encode(), "handler", "is more than"),
    ):
        error = failure(mesh.call(first.me, method, body, 0.5 if phase == "timeout" else 10))
        assert (error.peer, error.phase) == (first.me, phase) and says in error.says, error
    naps = [mesh.call(first.me, "nap", b"0.4", 20) for _ in range(25)]
    wait(naps, 20)
    busy = [one for one in naps if one.exception() is not None]
    assert len(busy) == 25 - (4 - 1 + 16) and all(failure(one).phase == "busy" for one in busy)
    stranger = "peer:" + "a" * 52
    begun = time.monotonic()
    error = failure(mesh.call(stranger, "echo", b"", 1.0))
    assert (error.phase, error.peer) == ("connect", stranger)
    assert time.monotonic() - begun < 3
    with pytest.raises(ConfigError, match="up to 16777216 of them"):
        mesh.call(first.me, "echo", bytes(MAX_BODY_BYTES + 1), 5).result(5)
    with pytest.raises(ConfigError, match="this very peer"):
        mesh.call(mesh.me, "echo", b"", 5).result(5)
    with pytest.raises(ConfigError, match="printable"):
        mesh.serve("two\nlines", lambda caller, body: body)
    until(lambda: at_rest(mesh), 10, "something is left behind")


def test_a_callee_is_killed_in_the_middle(crew: Crew) -> None:
    first, second = crew.start("a"), crew.start("a", upload_mbit=20)
    mesh = crew.member("b")
    linked(mesh, first, second)
    napping = mesh.call(first.me, "nap", b"60", 60)
    first.wait_for("napping")
    begun = time.monotonic()
    first.kill()
    error = failure(napping)
    assert (error.phase, error.peer) == ("link", first.me) and time.monotonic() - begun < 6
    begun = time.monotonic()
    error = failure(mesh.call(first.me, "echo", b"", 60))
    assert (error.phase, error.peer) == ("connect", first.me)
    assert time.monotonic() - begun < 6, "a dead one is waited for"
    before = mesh.traffic()[1]
    coming = mesh.call(second.me, "grow", str(len(LARGE)).encode(), 60)
    until(lambda: mesh.traffic()[1] > before + (1 << 20), 20, "nothing comes")
    second.kill()
    assert failure(coming).phase in ("link", "body"), "whichever is noticed first"
    until(lambda: at_rest(mesh), 5, "something is left behind")


def test_calls_are_called_off(crew: Crew) -> None:
    first = crew.start("ab", upload_mbit=20)
    mesh = crew.member("b")
    linked(mesh, first)
    queued = [mesh.call(first.me, "nap", b"1", 20) for _ in range(4 + 16)]
    first.wait_for("napping")
    assert all(one.cancel() for one in queued)
    with pytest.raises(CancelledError):
        queued[0].result(0)
    begun = time.monotonic()
    assert mesh.call(first.me, "echo", b"x", 20).result(20) == b"x"
    assert time.monotonic() - begun < 4, "those that waited were not taken back"
    before = mesh.traffic()[1]
    coming = mesh.call(first.me, "grow", str(len(LARGE)).encode(), 60)
    until(lambda: mesh.traffic()[1] > before + (1 << 20), 20, "nothing comes")
    assert coming.cancel()
    until(lambda: at_rest(mesh), 5, "something is left behind")
    waiting = mesh.call(first.me, "nap", b"3", 20)
    mesh.close()
    assert failure(waiting).phase == "link"
    with pytest.raises(CancelledError):
        mesh.call(first.me, "echo", b"", 5).result(5)


@pytest.mark.parametrize("what", ["wrong number", "double answer", "another size", "nonsense"])
def test_who_does_not_play_fair_loses_its_link(
    crew: Crew, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The callee is a mesh of this process whose words are replaced; the honest one refuses it."""
    crew.start("ab")
    honest, liar = crew.member("b"), crew.member("b")
    until(lambda: honest.linked(liar.me), 20, "no link")
    serve(liar)
    said = liar._node.links.send
    lies: dict[str, list[bytes]] = {
        "wrong number": [Answer(99, 1, b"x").pack()],
        "double answer": [Answer(1, *inline(LARGE)).pack()] * 2,
        "another size": [Answer(1, len(LARGE) - 1, b"").pack()],
        "nonsense": [b"\x93\xa8c/answer\x01\xc0"],
    }

    def lie(peer: str, payload: bytes, priority: int = 1) -> bool:
        if peer == honest.me and payload[2:10] == b"c/answer":
            return [said(peer, one, priority) for one in lies[what]][-1]
        return said(peer, payload, priority)

    monkeypatch.setattr(liar._node.links, "send", lie)
    refused: list[tuple[str, str]] = []
    refuse = honest._node.links.refuse

    def noted(peer: str, says: str) -> None:
        refused.append((peer, says))
        refuse(peer, says)

    monkeypatch.setattr(honest._node.links, "refuse", noted)
    error = failure(honest.call(liar.me, "echo", LARGE, 20))
    assert error.peer == liar.me and error.phase in ("link", "body"), error
    until(lambda: refused, 5, "it was not refused")
    assert [peer for peer, _ in refused] == [liar.me]
    until(lambda: at_rest(honest), 10, "something is left behind")
