"""What a guest may say, by the bytes of the message."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decentral.errors import ProtocolError
from decentral.peer import messages as m
from decentral.peer.codec import message_types
from decentral.peer.roles import forbidden

PEER = "peer:" + "a" * 52
HELLO = m.Hello(
    bytes(32), b"", bytes(8), 1, "name", "", member=False, lineage="", epoch=0, slot=0, samples=0,
    ancestry=(),
)  # fmt: skip


@pytest.mark.parametrize(
    "message",
    [HELLO, m.Refuse("no", b""), m.Gossip(()), m.JoinRequest("", 0), m.Learn("", 0)],
    ids=lambda message: type(message).__name__,
)
def test_guests_may_greet_and_ask(message: object) -> None:
    for role in ("relay", "observe", "train"):
        assert forbidden(role, m.pack(message)) == ""  # type: ignore[arg-type]


def test_guests_may_not_enter_vote_or_wish() -> None:
    for message in (
        m.Enter("0" * 16, 1, ()),
        m.Wish("pause", 0, "", ""),
        m.LeaveRequest("bye"),
        m.Close("0" * 16, "", 1),
    ):
        assert "its role is observe" in forbidden("observe", m.pack(message))
        assert forbidden("train", m.pack(message)) == ""


def test_a_guest_that_calls_itself_a_member_is_found_out() -> None:
    from dataclasses import replace

    liar = replace(HELLO, member=True, lineage="0" * 16)
    assert "calls itself a member" in forbidden("relay", m.pack(liar))


def test_every_other_kind_of_message_is_for_those_who_train() -> None:
    """A new kind is forbidden to guests until somebody thinks about it."""
    guests = {"Hello", "Refuse", "Gossip", "PingReq", "PingAck", "Learn", "JoinRequest"}
    assert guests < {kind.__name__ for kind in message_types()}


@given(st.binary(max_size=60))
def test_any_bytes(data: bytes) -> None:
    try:
        forbidden("observe", data)
    except ProtocolError as error:
        assert error.says
