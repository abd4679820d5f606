"""What a state consists of, and the messages that say so: hashes, bounds, and foreign bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fetch_world import CHUNK, ROOT, STATE, make_state
from hypothesis import given
from hypothesis import strategies as st

from decentral.errors import FingerprintError, ProtocolError
from decentral.peer import merkle, packing
from decentral.peer.manifest import (
    META,
    Manifest,
    check_schema,
    decode_manifest,
    manifest_of,
    max_manifest_bytes,
    specs_of,
)
from decentral.peer.transfer import (
    PAGE_BYTES,
    ChunkMissing,
    ChunkUnwanted,
    ChunkWanted,
    KeyMaker,
    ManifestMissing,
    ManifestPage,
    Pin,
    Read,
    Release,
    StateWanted,
    UpdateOffer,
    UpdateWanted,
    is_transfer,
    unpack_message,
)
from decentral.types import TensorSpec

# ------------------------------------------------------------------------------- hashes


def test_the_tree_is_that_of_rfc_6962() -> None:
    def by_the_book(leaves: Sequence[bytes]) -> bytes:
        if len(leaves) == 1:
            return leaves[0]
        left = 1
        while left * 2 < len(leaves):
            left *= 2
        pair = by_the_book(leaves[:left]) + by_the_book(leaves[left:])
        return hashlib.sha256(b"\x01" + pair).digest()

    for count in range(1, 40):
        leaves = [bytes([n]) * 32 for n in range(count)]
        assert merkle.tree_root(b"".join(leaves)) == by_the_book(leaves)


def test_the_root_of_a_small_state_by_hand() -> None:
    def sha(data: bytes) -> bytes:
        return hashlib.sha256(data).digest()

    state = make_state(b=np.arange(3, dtype=np.uint8), a=np.ones((1, 2), np.float32))
    one = np.ones(2, np.float32).tobytes()
    root_a = sha(
        b"\x02" + b"\x01\0\0\0a" + b"\x07\0\0\0float32" + b"\x02\0\0\0"
        + (1).to_bytes(8, "little") + (2).to_bytes(8, "little") + (8).to_bytes(8, "little")
        + sha(b"\x00" + one)
    )  # fmt: skip
    root_b = sha(
        b"\x02" + b"\x01\0\0\0b" + b"\x05\0\0\0uint8" + b"\x01\0\0\0"
        + (3).to_bytes(8, "little") + (3).to_bytes(8, "little") + sha(b"\x00\x00\x01\x02")
    )  # fmt: skip
    assert state.root == sha(b"\x03" + b"\x02\0\0\0" + root_a + root_b)


def test_the_root_that_native_code_computes() -> None:
    """`native/core/hash.cc` gives this for the same bytes: chunks, a scalar, an empty tensor."""
    count = 5 * CHUNK + 3
    i = np.arange(count, dtype=np.int64)
    big = ((i * 7 + i // 1000) % 256).astype(np.uint8)
    root = merkle.state_root([
        (TensorSpec(name="param/z", dtype="uint8", shape=(count,)), merkle.leaf_hashes(big)),
        (TensorSpec(name="param/e", dtype="float32", shape=(0, 4)), merkle.leaf_hashes(b"")),
        (TensorSpec(name="a", dtype="float32", shape=()), merkle.leaf_hashes(b"\1\2\3\4")),
    ])  # fmt: skip
    assert root.hex() == "4002d444e37870a61e781e509a7718a6285714b8cf85426ae23aa3538b709ab9"


def test_chunks() -> None:
    assert merkle.leaf_hashes(b"") == merkle.leaf_hash(b"")
    data = bytes(CHUNK) + b"x"
    assert merkle.leaf_hashes(data) == merkle.leaf_hash(bytes(CHUNK)) + merkle.leaf_hash(b"x")
    assert [merkle.chunk_count(n) for n in (0, 1, CHUNK, CHUNK + 1)] == [1, 1, 1, 2]
    assert merkle.chunk_bytes(CHUNK + 1, 1) == 1


# ------------------------------------------------------------------------------- messages

MESSAGES = [
    Pin(3, ROOT),
    Read(3, ROOT),
    Release(3, ROOT),
    StateWanted(3, ROOT, 0),
    ManifestPage(3, ROOT, 1, 2, b"data"),
    ManifestMissing(3, ROOT),
    ChunkWanted(3, ROOT, "param/w", 9, 2**64 - 1),
    ChunkMissing(3, ROOT, 5, True),
    ChunkUnwanted(3, ROOT, 5),
    UpdateWanted(3, ROOT),
    UpdateOffer(3, ROOT, ROOT, 2**40, 1000),
    UpdateOffer(3, ROOT, b"", 0, 0),
]
MESSAGES += [replace(message, tag="a module") for message in MESSAGES]


@pytest.mark.parametrize("message", MESSAGES)
def test_messages_survive_the_wire(message: Any) -> None:
    payload = message.pack()
    assert is_transfer(payload) and unpack_message(payload) == message


def test_other_messages_are_not_ours() -> None:
    for other in (b"", b"x/", packing.pack(["m/ping", 1]), packing.pack("x/"), packing.pack(["x"])):
        assert not is_transfer(other)


@pytest.mark.parametrize(
    "fields",
    [
        ["x/want"],
        ["x/want", 3, ROOT, ""],
        ["x/want", 3, ROOT, "", -1],
        ["x/want", 3, ROOT, "", 10**9],
        ["x/want", True, ROOT, "", 0],
        ["x/want", 3, b"short", "", 0],
        ["x/other", 3, ROOT, ""],
        ["x/page", 3, ROOT, "", 2, 2, b"data"],
        ["x/page", 3, ROOT, "", 0, 1, b""],
        ["x/page", 3, ROOT, "", 0, 1, bytes(PAGE_BYTES + 1)],
        ["x/chunk", 3, ROOT, "", "name", 1, 0],
        ["x/chunk", 3, ROOT, "", b"name", 1, 1],
        ["x/chunk", 3, ROOT, "", "n" * 513, 1, 1],
        ["x/nochunk", 3, ROOT, "", 5, 1],
        ["x/drop", 3, ROOT, "", 0],
        ["x/update", 3, ROOT, "", b"short", 1, 1],
        ["x/update", 3, ROOT, "", ROOT, 1, 10**6],
        ["x/pin", 3, ROOT],
        ["x/pin", 3, ROOT, 0],
        ["x/pin", 3, ROOT, "a\n"],
        ["x/pin", 3, ROOT, "a" * 257],
        [["x/pin"], 3, ROOT, ""],
    ],
)
def test_malformed_messages(fields: list[Any]) -> None:
    with pytest.raises(ProtocolError):
        unpack_message(packing.pack(fields))


@given(st.binary(max_size=200))
def test_garbage_is_a_protocol_error(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        unpack_message(payload)


def test_keys_are_unique() -> None:
    one, other = KeyMaker(1), KeyMaker(2**32 + 2)
    keys = [one() for _ in range(100)] + [other() for _ in range(100)]
    assert len(set(keys)) == 200 and all(0 < key < 2**64 for key in keys)


# ------------------------------------------------------------------------------- manifest


def test_manifests_survive_the_wire() -> None:
    manifest = manifest_of(STATE)
    assert decode_manifest(manifest.encode(), specs_of(STATE)) == manifest
    assert manifest.root == STATE.root
    assert manifest.nbytes == sum(a.nbytes for a in STATE.tensors.values())


@pytest.mark.parametrize(
    "row",
    [
        ["n", "float32", [1], b"short"],
        ["n", "object", [1], bytes(32)],
        ["n", ["float32"], [1], bytes(32)],
        ["n", "float32", [-1], bytes(32)],
        ["n", "float32", [2**40, 2**40], bytes(32)],
        ["n", "float32", [1] * 17, bytes(32)],
        ["n", "float32", [0], bytes(32)],
        ["n\n", "float32", [1], bytes(32)],
        ["n", "float32", [1]],
    ],
)
def test_impossible_tensors(row: list[Any]) -> None:
    with pytest.raises(ProtocolError):
        decode_manifest(packing.pack([1, [row]]), ())


def test_names_are_unique_and_sorted() -> None:
    row = ["n", "float32", [1], bytes(32)]
    with pytest.raises(ProtocolError, match="not in the order"):
        decode_manifest(packing.pack([1, [row, row]]), ())


def test_a_huge_manifest_is_not_parsed() -> None:
    schema = specs_of(STATE)
    with pytest.raises(ProtocolError, match="exceeds the limit"):
        decode_manifest(bytes(max_manifest_bytes(schema) + 1), schema)
    with pytest.raises(ProtocolError):
        decode_manifest(b"\xdd\xff\xff\xff\xff" * 1000, schema)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s[:-2], r"the run's model has a tensor 'param/w' that this one has not"),
        (
            lambda s: (*s, TensorSpec(name="param/a", dtype="float32", shape=())),
            r"this model has a tensor 'param/a' that the run's has not",
        ),
        (
            lambda s: (replace(s[0], shape=(1,)), *s[1:]),
            r"'momentum/w' has shape \(1,\) in this model, but \(262144, 2\) in the run's",
        ),
        (
            lambda s: (replace(s[0], dtype="float64"), *s[1:]),
            r"'momentum/w' has dtype float64 in this model, but float32",
        ),
    ],
)
def test_the_first_tensor_that_differs_is_named(
    change: Callable[[tuple[TensorSpec, ...]], tuple[TensorSpec, ...]], says: str
) -> None:
    with pytest.raises(FingerprintError, match=says):
        check_schema(manifest_of(STATE), change(specs_of(STATE)))


def test_meta_may_have_any_size_up_to_a_limit() -> None:
    def with_meta(*shape: int, dtype: str = "uint8") -> Manifest:
        return Manifest(((TensorSpec(name=META, dtype=dtype, shape=shape), b""),))

    ours = (TensorSpec(name=META, dtype="uint8", shape=(5,)),)
    check_schema(with_meta(77), ours)
    check_schema(with_meta(77), ())
    check_schema(Manifest(()), ours)
    for wrong in (with_meta(2**20 + 1), with_meta(2, 2), with_meta(2, dtype="int8")):
        with pytest.raises(FingerprintError, match="run/meta"):
            check_schema(wrong, ours)
