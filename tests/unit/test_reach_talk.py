"""Messages about reaching: what goes in comes out, and nothing but ProtocolError for all else."""

from __future__ import annotations

import tracemalloc
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decentral.errors import ProtocolError
from decentral.peer import packing
from decentral.peer.joinword import MAX_ADDRESSES
from decentral.peer.reach import talk
from decentral.peer.reach.nat import FILTERINGS, MAPPINGS, Nat
from decentral.peer.reach.ways import BIRTHDAY_SOCKETS, BIRTHDAY_SPRAY
from decentral.types import peer_id

A, B = peer_id(b"a" * 32), peer_id(b"b" * 32)
NONCE, TOKEN = b"n" * 8, b"t" * 32
CARD = talk.Card(
    ("192.0.2.1:4242", "[2001:db8::1]:4242", "host.example.org:1"),
    "198.51.100.1:5555",
    Nat(mapping="independent", filtering="port", address="198.51.100.1:61000"),
    True,
    1.75e9,
)
BARE = talk.Card((), "", Nat(), False, 0.0)
LONG = f"{'a' * 253}:65535"
MOST = talk.Card(
    (LONG,) * MAX_ADDRESSES,
    LONG,
    Nat(mapping="dependent", filtering="port", address=LONG),
    True,
    9.0,
)
RELAYS = ((A, "192.0.2.7:1"), (B, "peer:4242"))
MESSAGES: list[Any] = [
    CARD,
    BARE,
    MOST,
    talk.Pass(A, B, b"x"),
    talk.Pass(A, B, b"x" * talk.MAX_SIGNAL_BYTES),
    talk.Lost(A),
    talk.Knock("192.0.2.1:4242"),
    talk.Knock("peer:4242"),
    talk.Knocked("192.0.2.1:4242", True),
    talk.RelayWanted(B),
    talk.RelayGrant(B, TOKEN, ""),
    talk.RelayGrant(B, b"", "peer:x relays for as many as it can"),
    talk.Call(NONCE, CARD, RELAYS),
    talk.Call(NONCE, MOST, ((A, LONG),) * talk.MAX_RELAYS),
    talk.Answer(NONCE, BARE, ()),
    talk.Answer(NONCE, MOST, ((A, LONG),) * talk.MAX_RELAYS),
    talk.GoPunch(NONCE, True, 1, BIRTHDAY_SPRAY),
    talk.GoPunch(NONCE, False, BIRTHDAY_SOCKETS, 0),
    talk.GoRelay(NONCE, A, "192.0.2.7:1", TOKEN),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_unpack_is_the_inverse_of_pack(message: Any) -> None:
    payload = talk.pack(message)
    assert talk.is_reach(payload)
    assert talk.unpack(payload) == message


@pytest.mark.parametrize("message", MESSAGES[-7:], ids=lambda message: type(message).__name__)
def test_every_signal_fits_into_a_pass(message: Any) -> None:
    passed = talk.Pass(A, B, talk.pack(message))
    carried = talk.unpack(talk.pack(passed))
    assert carried == passed and talk.unpack(carried.signal) == message


def test_no_other_control_message_is_taken_for_one_of_these() -> None:
    for other in (["l/move"], ["r", 1], {"r/": 1}, "r/x", [1], [["r/card"]], []):
        assert not talk.is_reach(packing.pack(other))
    for payload in (b"", b"\x91", b"\x91\xa6r"):
        assert not talk.is_reach(payload)


def fields(message: Any) -> list[Any]:
    return list(msgpack.unpackb(talk.pack(message), raw=False))


def variants() -> list[tuple[Any, int, Any]]:
    """Each field with a value that it must not have: (message, which field, the value)."""
    raw, long = b"a" * 32, "a" * 262 + ":4242"
    return [
        (CARD, 1, ["192.0.2.1:4242"] * (MAX_ADDRESSES + 1)),
        (CARD, 1, "192.0.2.1:4242"),
        *(
            (CARD, 1, [bad])
            for bad in ("", "192.0.2.1", "x:0", "x:65536", "a b:1", long, b"x:1", 7)
        ),
        (CARD, 2, "nowhere"),
        (CARD, 2, None),
        (CARD, 3, ["independent", "port"]),
        (CARD, 3, ["sideways", "port", ""]),
        (CARD, 3, ["independent", ["port"], ""]),
        (CARD, 3, ["independent", "port", "nowhere"]),
        (CARD, 4, 1),
        *((CARD, 5, bad) for bad in (1, -1.0, float("nan"), float("inf"), 2.0**41, "1")),
        *((talk.Pass(A, B, b"x"), n, bad) for n in (1, 2) for bad in (raw[1:], raw + b"a", A, 5)),
        (talk.Pass(A, B, b"x"), 3, b""),
        (talk.Pass(A, B, b"x"), 3, b"x" * (talk.MAX_SIGNAL_BYTES + 1)),
        (talk.Pass(A, B, b"x"), 3, "x"),
        (talk.Lost(A), 1, b""),
        (talk.Knock("a:1"), 1, "a"),
        (talk.Knocked("a:1", True), 2, 0),
        (talk.RelayWanted(A), 1, A),
        (talk.RelayGrant(A, TOKEN, ""), 2, TOKEN[1:]),
        (talk.RelayGrant(A, TOKEN, ""), 2, ""),
        (talk.RelayGrant(A, TOKEN, ""), 3, "x" * 513),
        (talk.RelayGrant(A, TOKEN, ""), 3, "\x1b[2J"),
        (talk.Call(NONCE, CARD, ()), 1, NONCE[1:]),
        (talk.Call(NONCE, CARD, ()), 2, []),
        (talk.Call(NONCE, CARD, ()), 3, [[raw, "a:1"]] * (talk.MAX_RELAYS + 1)),
        (talk.Call(NONCE, CARD, ()), 3, [[raw]]),
        (talk.Call(NONCE, CARD, ()), 3, [[raw, "a"]]),
        (talk.GoPunch(NONCE, True, 1, 0), 2, None),
        *((talk.GoPunch(NONCE, True, 1, 0), 3, bad) for bad in (0, -1, BIRTHDAY_SOCKETS + 1, True)),
        *((talk.GoPunch(NONCE, True, 1, 0), 4, bad) for bad in (-1, BIRTHDAY_SPRAY + 1, 0.0)),
        *((talk.GoRelay(NONCE, A, "a:1", TOKEN), 4, bad) for bad in (b"", TOKEN + b"t")),
        (talk.GoRelay(NONCE, A, "a:1", TOKEN), 3, ""),
    ]


@pytest.mark.parametrize(("message", "field", "value"), variants())
def test_no_field_may_be_what_it_must_not_be(message: Any, field: int, value: Any) -> None:
    packed = fields(message)
    talk.unpack(packing.pack(packed))
    packed[field] = value
    with pytest.raises(ProtocolError):
        talk.unpack(packing.pack(packed))


@pytest.mark.parametrize("message", MESSAGES[::2], ids=lambda message: type(message).__name__)
def test_as_many_fields_as_there_are(message: Any) -> None:
    packed = fields(message)
    for wrong in (packed[:-1], [*packed, 0], packed[:1], [], ["r/none", *packed[1:]], [7]):
        with pytest.raises(ProtocolError):
            talk.unpack(packing.pack(wrong))


@given(payload=st.binary(max_size=300))
def test_arbitrary_bytes_raise_nothing_but_protocol_errors(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        talk.unpack(payload)


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 2**63 - 1)
    | st.floats()
    | st.text(max_size=60)
    | st.binary(max_size=40)
    | st.sampled_from([NONCE, TOKEN, b"a" * 32, "192.0.2.1:1", "", *MAPPINGS, *FILTERINGS]),
    lambda inner: st.lists(inner, max_size=6),
    max_leaves=8,
)


@settings(max_examples=120)
@given(
    kind=st.sampled_from(sorted({fields(message)[0] for message in MESSAGES})),
    rest=st.lists(PLAIN, max_size=6),
)
def test_plausible_messages_raise_nothing_but_protocol_errors(kind: str, rest: list[Any]) -> None:
    try:
        message = talk.unpack(packing.pack([kind, *rest]))
    except ProtocolError:
        return
    assert talk.unpack(talk.pack(message)) == message  # what is believed can be passed on


@settings(max_examples=120)
@given(message=st.sampled_from(MESSAGES), at=st.integers(0, 400), byte=st.integers(0, 255))
def test_a_flipped_byte_raises_nothing_but_protocol_errors(
    message: Any, at: int, byte: int
) -> None:
    payload = bytearray(talk.pack(message))
    payload[at % len(payload)] = byte
    try:
        found = talk.unpack(bytes(payload))
    except ProtocolError:
        return
    assert talk.unpack(talk.pack(found)) == found


@pytest.mark.parametrize(
    "payload",
    [
        b"\x92\xa6r/card" + b"\xdd\xff\xff\xff\xff",
        b"\x92\xa6r/pass" + b"\xc6\xff\xff\xff\xff",
        b"\x92\xa6r/pass" + b"\xdb\xff\xff\xff\xff",
        b"\x92\xa6r/card" + b"\xdf\xff\xff\xff\xff",
        b"\x91" * 5000,
        b"\xdc\x0f\xff" * 1300,
        b"x" * (1 << 22),
    ],
    ids=["array", "binary", "text", "map", "deep", "deep and wide", "long"],
)
def test_announced_sizes_allocate_nothing(payload: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            talk.unpack(payload)
        assert tracemalloc.get_traced_memory()[1] < 256 << 10
    finally:
        tracemalloc.stop()
