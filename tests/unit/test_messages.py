"""Control messages: what goes in comes out, and nothing but ProtocolError for all else."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from decentral.errors import ProtocolError
from decentral.peer import messages as m
from decentral.peer.acceptor import read_record
from decentral.peer.entries import decode_entry, encode_entry
from decentral.peer.protocol import PauseEntry, RollbackEntry, RoundEntry, ViewEntry
from decentral.peer.views_log import apply, founding_state
from decentral.simulator.world import peer_id
from decentral.types import Contribution, Range, View

A, B = peer_id(1), peer_id(2)
LINEAGE = "0123456789abcdef"
VIEW = ViewEntry(view=View(lineage=LINEAGE, epoch=3, members=(A, B)), reason="B joins")
ROUND = RoundEntry(
    round=4,
    attempt=2,
    contributions=(Contribution(peer=A, tokens=9, leases=(Range(1, 5),), staleness=1),),
    state_root=bytes(32),
    durable_round=3,
)
STATE = founding_state(bytes(32), A, b"b" * 16, 8)
MESSAGES: list[Any] = [
    m.Hello(bytes(32), b"f", b"b" * 16, 2, "n", "h:1", True, LINEAGE, 1, 2, 4, ("f" * 16,)),
    m.Gossip((m.Update(A, 1, 2, 0, "n", "h:1"), m.Update(B, 1, 2, 3, "", ""))),
    m.Prepare(LINEAGE, 3, (2, A)),
    m.Promise(LINEAGE, 3, (2, A), (0, ""), b""),
    m.Accept(LINEAGE, 3, (2, A), encode_entry(ROUND), False),
    m.Commit(LINEAGE, 3, encode_entry(VIEW)),
    m.Snapshot(STATE, None, ()),
    m.Start(LINEAGE, 3, "head", 4, 1, (A, B), ROUND.contributions),
    m.Failed(LINEAGE, "", 3, 1, 1, None, "no"),
    m.Offer(
        *(LINEAGE, 3, "head", True, 4, True, 9, 2, 7, (Range(1, 5),), 40, 1),
        *((B,), True, 3, bytes(32), 2, (1, 2), ""),
    ),
    m.Enter(LINEAGE, 3, (("", 4, bytes(32)), ("head", 2, bytes(32)))),
    m.Wish("rollback", 3, "it diverged", "a"),
    m.Quarantined(4000, 5),
    m.ForkAccept(LINEAGE, 3, (2, A), b"", encode_entry(VIEW)),
]


@pytest.mark.parametrize("msg", MESSAGES, ids=lambda msg: type(msg).__name__)
def test_unpack_is_the_inverse_of_pack(msg: Any) -> None:
    assert m.unpack(m.pack(msg)) == msg


ENTRIES = [
    *(VIEW, ROUND, PauseEntry(paused=True, reason="dinner")),
    RollbackEntry(round=2, state_root=bytes(32), tag="head", reason="it diverged"),
]


@pytest.mark.parametrize("entry", ENTRIES)
def test_entries_have_one_canonical_form(entry: Any) -> None:
    packed = encode_entry(entry)
    assert decode_entry(packed) == entry
    assert encode_entry(decode_entry(packed)) == packed


@given(payload=st.binary(max_size=300))
def test_arbitrary_bytes_raise_nothing_but_protocol_errors(payload: bytes) -> None:
    for read in (m.unpack, decode_entry, read_record):
        with pytest.raises(ProtocolError):
            read(payload)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**63 - 1) | st.text(max_size=60) | st.binary(),
    lambda inner: st.lists(inner, max_size=6),
    max_leaves=12,
)


@given(
    code=st.sampled_from([one[0] for one in [msgpack.unpackb(m.pack(x)) for x in MESSAGES]]),
    values=st.lists(PLAIN, max_size=20),
)
def test_right_code_with_wrong_fields_is_refused_or_valid(code: str, values: list[Any]) -> None:
    try:
        msg = m.unpack(msgpack.packb([code, *values]))
    except ProtocolError:
        return
    assert m.unpack(m.pack(msg)) == msg


@given(msg=st.sampled_from(MESSAGES), data=st.data())
def test_flipped_and_truncated_messages_are_refused_or_valid(msg: Any, data: Any) -> None:
    payload = bytearray(m.pack(msg))
    at = data.draw(st.integers(0, len(payload) - 1))
    payload[at] ^= data.draw(st.integers(1, 255))
    for wire in (bytes(payload), bytes(payload[:at])):
        try:
            m.unpack(wire)
        except ProtocolError:
            continue


def test_limits_are_enforced() -> None:
    for wrong in (
        m.Commit("no lineage", 3, encode_entry(VIEW)),
        m.Prepare(LINEAGE, -1, (2, A)),
        m.Prepare(LINEAGE, 1, (2, "peer:short")),
        m.Refuse("x" * 2000, b""),
        m.Start(LINEAGE, 3, "", 4, 1, (A, A), ()),
        m.Commit(LINEAGE, 3, b"no entry"),
        m.Result(LINEAGE, "", 1, 1, bytes(31)),
        m.Result(LINEAGE, "x" * 65, 1, 1, bytes(32)),
    ):
        with pytest.raises(ProtocolError):
            m.unpack(m.pack(wrong))
    with pytest.raises(ProtocolError, match="too large"):
        m.unpack(bytes(m.MAX_MESSAGE_BYTES + 1))


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(ProtocolError):
        m.unpack(b"\x91" * 100_000)


def test_state_of_a_log_survives_packing() -> None:
    state = apply(
        STATE,
        VIEW.__class__(
            view=View(lineage=STATE.view.lineage, epoch=1, members=(A, B)), reason="B joins"
        ),
    )
    assert m.unpack(m.pack(m.Snapshot(state, A, ()))).state == state
