"""What is asked of a peer that serves: there and back, and nothing but a ProtocolError else."""

from __future__ import annotations

import struct
import tracemalloc
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from decentral.errors import ProtocolError
from decentral.serving import messages
from decentral.serving.messages import (
    SolveRequest,
    TextRequest,
    VelocityRequest,
    floats,
    rows_at_once,
)
from decentral.serving.parts import Version

ROOT = bytes(range(32))
DIM, CLASSES = 5, 4

TEXT: list[Any] = ["path/0", [["path/0", 3, ROOT]], b"once", 0, 8, 0.8, 1]
VELOCITY: list[Any] = [
    ["expert/1", 2, ROOT],
    [2, DIM],
    np.ones(2 * DIM, "<f4").tobytes(),
    np.array([0.5, 1], "<f4").tobytes(),
    bytes([0, CLASSES]),
]


SOLVE: list[Any] = [*VELOCITY[:3], bytes([0, CLASSES - 1]), 20, "heun", 1.5]


def solve(body: bytes) -> SolveRequest:
    return SolveRequest.unpack(body, DIM, CLASSES)


def text(body: bytes) -> TextRequest:
    return TextRequest.unpack(body)


def velocity(body: bytes) -> VelocityRequest:
    return VelocityRequest.unpack(body, DIM, CLASSES)


def changed(fields: list[Any], at: int, value: Any) -> bytes:
    packed: bytes = msgpack.packb([*fields[:at], value, *fields[at + 1 :]])
    return packed


def test_there_and_back() -> None:
    asked = TextRequest(
        path="path/0",
        versions=(Version("path/0", 3, ROOT), Version("module/0/0", 4, ROOT)),
        context=b"once upon",
        place=7,
        count=16,
        temperature=0.5,
        seed=2**62,
    )
    assert TextRequest.unpack(asked.pack()) == asked


@pytest.mark.parametrize("classes", [None, np.array([1, CLASSES])])
def test_arrays_there_and_back(classes: Any) -> None:
    x = np.arange(2 * DIM, dtype=np.float32).reshape(2, DIM)
    t = np.array([0, 1], np.float32)
    sent = VelocityRequest(version=Version("expert/0", 1, ROOT), x=x, t=t, classes=classes)
    came = velocity(sent.pack())
    assert came.version == sent.version
    assert np.array_equal(came.x, x) and np.array_equal(came.t, t)
    assert came.classes is None if classes is None else np.array_equal(came.classes, classes)


@pytest.mark.parametrize(
    ("at", "value", "says"),
    [
        (0, 5, "path is a cell's name"),
        (0, "", "path is a cell's name"),
        (0, "path/\x00", "path is a cell's name"),
        (0, "x" * 300, "not as agreed"),
        (1, "path/0", "versions is a list"),
        (1, [["path/0", 3]], "a version is"),
        (1, [["path/0", -1, ROOT]], "round is from 0"),
        (1, [["path/0", True, ROOT]], "round is a whole number"),
        (1, [["path/0", 3, ROOT[:-1]]], "root is 32 to 32 bytes"),
        (1, [["path/0", 3, ROOT]] * 65, "not as agreed"),
        (2, "once", "context is 1 to"),
        (2, b"", "context is 1 to"),
        (2, bytes(messages.MAX_CONTEXT + 1), "context is 1 to"),
        (3, -1, "place is from 0"),
        (4, 0, "count is from 1 to 256"),
        (4, 2**40, "count is from 1 to 256"),
        (4, 8.0, "count is a whole number"),
        (5, float("nan"), "temperature"),
        (5, -0.1, "temperature"),
        (5, 1, "temperature"),
        (6, 2**63, "seed is from 0"),
    ],
)
def test_text_requests_that_are_wrong(at: int, value: Any, says: str) -> None:
    text(msgpack.packb(TEXT))
    with pytest.raises(ProtocolError, match=says) as caught:
        text(changed(TEXT, at, value))
    assert caught.value.phase == "body"


@pytest.mark.parametrize(
    ("at", "value", "says"),
    [
        (0, "expert/1", "a version is"),
        (1, 2, "shape is"),
        (1, [2], "shape is"),
        (1, [0, DIM], "n is from 1"),
        (1, [2, DIM + 1], "d is from 5 to 5"),
        (1, [3, DIM], "x is 60 bytes"),
        (1, [2**31, DIM], "n is from 1"),
        (1, [2.0, DIM], "n is a whole number"),
        (2, [1.0] * 10, "x is 40 bytes"),
        (2, np.full(2 * DIM, np.inf, "<f4").tobytes(), "x has values that are not finite"),
        (3, b"", "t is 8 bytes"),
        (3, np.array([0.5, 1.5], "<f4").tobytes(), "t is in"),
        (3, np.array([0.5, np.nan], "<f4").tobytes(), "t has values that are not finite"),
        (4, [0, 1], "classes is 2 to 2 bytes"),
        (4, bytes(3), "classes is 2 to 2 bytes"),
        (4, bytes([0, CLASSES + 1]), "classes are 0 to 4"),
    ],
)
def test_velocity_requests_that_are_wrong(at: int, value: Any, says: str) -> None:
    velocity(msgpack.packb(VELOCITY))
    with pytest.raises(ProtocolError, match=says) as caught:
        velocity(changed(VELOCITY, at, value))
    assert caught.value.phase == "body"


def test_all_steps_there_and_back() -> None:
    x = np.arange(2 * DIM, dtype=np.float32).reshape(2, DIM)
    sent = SolveRequest(
        version=Version("expert/0", 1, ROOT),
        x=x,
        classes=np.array([1, 0]),
        steps=20,
        solver="heun",
        guidance=2.0,
    )
    came = solve(sent.pack())
    assert (came.version, came.steps, came.solver) == (sent.version, 20, "heun")
    assert came.guidance == 2.0 and came.classes is not None
    assert np.array_equal(came.x, x) and np.array_equal(came.classes, [1, 0])


@pytest.mark.parametrize(
    ("at", "value", "says"),
    [
        (1, [2, DIM + 1], "d is from 5 to 5"),
        (1, [3, DIM], "x is 60 bytes"),
        (2, b"", "x is 40 bytes"),
        (3, None, "each row has a class"),
        (3, bytes([0, CLASSES]), "each row has a class"),
        (3, bytes(3), "classes is 2 to 2 bytes"),
        (4, 0, "steps is from 1 to 1000"),
        (4, 1001, "steps is from 1 to 1000"),
        (4, 20.0, "steps is a whole number"),
        (5, "exact", "solver is euler or heun"),
        (5, ["heun"], "solver is euler or heun"),
        (6, 2, "guidance is a float"),
        (6, float("nan"), "guidance is a float"),
        (6, 101.0, "guidance is a float"),
    ],
)
def test_solve_requests_that_are_wrong(at: int, value: Any, says: str) -> None:
    solve(msgpack.packb(SOLVE))
    with pytest.raises(ProtocolError, match=says) as caught:
        solve(changed(SOLVE, at, value))
    assert caught.value.phase == "body"


def test_no_call_is_work_for_minutes() -> None:
    rows = rows_at_once(DIM, messages.MAX_STEPS)
    x = np.zeros((rows + 1, DIM), "<f4")
    body = [
        SOLVE[0],
        [rows + 1, DIM],
        x.tobytes(),
        bytes(rows + 1),
        messages.MAX_STEPS,
        "euler",
        1.0,
    ]
    with pytest.raises(ProtocolError, match="steps is from 1 to"):
        solve(msgpack.packb(body))
    most = [SOLVE[0], [rows, DIM], x[1:].tobytes(), bytes(rows), messages.MAX_STEPS, "euler", 1.0]
    assert solve(msgpack.packb(most)).steps == messages.MAX_STEPS


def test_a_run_without_classes_is_asked_for_none() -> None:
    with pytest.raises(ProtocolError, match="knows no classes"):
        VelocityRequest.unpack(msgpack.packb(VELOCITY), DIM, 0)


@pytest.mark.parametrize("unpack", [text, velocity, solve])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\xdd" + struct.pack(">I", 2**32 - 1),  # a list of four thousand million
        b"\xdf" + struct.pack(">I", 2**32 - 1),  # a map
        b"\xc6" + struct.pack(">I", 2**32 - 1),  # bytes
        b"\x91" * 5000,  # lists in lists
        b"\xc7\x04\x01abcd",  # an extension
        msgpack.packb({"path": 1}),
        msgpack.packb(TEXT)[:-1],
        msgpack.packb(TEXT) + b"\x00",
        msgpack.packb(TEXT[:-1]),
    ],
)
def test_bodies_that_are_nothing(unpack: Any, body: bytes) -> None:
    with pytest.raises(ProtocolError):
        unpack(body)


@pytest.mark.parametrize("shape", [[messages.MAX_ROWS, DIM], [2**62, DIM], [messages.MAX_ROWS, 1]])
def test_nothing_is_allocated_for_a_size_that_is_only_said(shape: list[int]) -> None:
    body, other = changed(VELOCITY, 1, shape), changed(SOLVE, 1, shape)
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            velocity(body)
        with pytest.raises(ProtocolError):
            solve(other)
        with pytest.raises(ProtocolError):
            text(b"\x97\xdd" + struct.pack(">I", 2**32 - 1))
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.binary()
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=8),
    max_leaves=12,
)  # fmt: skip


@given(st.binary(max_size=200), st.lists(values, min_size=5, max_size=7))
def test_whatever_comes(body: bytes, fields: list[Any]) -> None:
    for one in (body, msgpack.packb(fields)):
        for unpack in (text, velocity, solve):
            try:
                unpack(one)
            except ProtocolError as error:
                assert error.phase == "body"


@given(st.integers(0, 6), values)
def test_one_wrong_field(at: int, value: Any) -> None:
    for fields, unpack in ((TEXT, text), (VELOCITY, velocity), (SOLVE, solve)):
        try:
            unpack(changed(fields, at % len(fields), value))
        except ProtocolError as error:
            assert error.phase == "body"


def test_an_answer_has_the_size_that_was_asked_for() -> None:
    given_ = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert np.array_equal(floats("the answer", given_.tobytes(), (2, 3)), given_)
    with pytest.raises(ProtocolError, match="the answer is 24 bytes"):
        floats("the answer", given_.tobytes()[:-1], (2, 3))


def test_as_many_rows_as_a_call_can_carry() -> None:
    for dim in (1, 64, 784, 1 << 20):
        rows = rows_at_once(dim)
        assert 1 <= rows <= messages.MAX_ROWS and rows * (4 * dim + 5) < 16 << 20
