"""Announcements on the local network: read strictly, whatever a neighbour sends."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from decentral.peer.identity import Identity
from decentral.peer.runtime.mdns import SERVICE, Neighbour, read, run_tag

PEER = Identity(b"p" * 32).peer_id
NAME = f"{PEER.removeprefix('peer:')}.{SERVICE}"
TAG = run_tag(b"r" * 32)
TEXT = {b"v": b"1", b"r": TAG.encode(), b"o": b"0"}


def test_what_we_announce_is_read() -> None:
    told = read(NAME, TEXT, ["192.168.1.7", "192.168.1.7", "10.0.0.1"], 4242)
    assert told == Neighbour(PEER, ("192.168.1.7:4242", "10.0.0.1:4242"), TAG, False)
    opened = read(NAME, {**TEXT, b"o": b"1"}, ["192.168.1.7"], 4242)
    assert opened is not None and opened.open
    assert (b"r" * 32).hex()[:8] not in TAG, "the run's id is not told"


def test_anything_else_is_nobody() -> None:
    for name, text, addresses, port in (
        (f"printer.{SERVICE}", TEXT, ["10.0.0.1"], 4242),
        (NAME, {**TEXT, b"v": b"2"}, ["10.0.0.1"], 4242),
        (NAME, {**TEXT, b"r": b"x" * 16}, ["10.0.0.1"], 4242),
        (NAME, {b"v": b"1", b"r": None}, ["10.0.0.1"], 4242),
        (NAME, {}, ["10.0.0.1"], 4242),
        (NAME, TEXT, [], 4242),
        (NAME, TEXT, ["0.0.0.0", "224.0.0.251"], 4242),
        (NAME, TEXT, ["no address"], 4242),
        (NAME, TEXT, ["10.0.0.1"], 0),
        (NAME, TEXT, ["10.0.0.1"], None),
    ):
        assert read(name, text, addresses, port) is None  # type: ignore[arg-type]


def test_a_flood_of_addresses_is_cut() -> None:
    told = read(NAME, TEXT, [f"10.0.0.{n}" for n in range(200)], 4242)
    assert told is not None and len(told.addresses) == 8


@given(
    st.text(max_size=80),
    st.dictionaries(st.binary(max_size=4), st.one_of(st.none(), st.binary(max_size=20))),
    st.lists(st.text(max_size=20), max_size=4),
    st.one_of(st.none(), st.integers(-1, 70000)),
)
def test_any_announcement(
    name: str, text: dict[bytes, bytes | None], addresses: list[str], port: int | None
) -> None:
    for label in (name, NAME):
        read(label, {**TEXT, **text}, addresses, port)
