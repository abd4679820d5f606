"""Failpoints: named places where a harness makes a peer die, stall or fail. A leaf, below errors.

    DECENTRAL_FAILPOINTS="vote-write=crash; all-gather=stall:2.5@3; checkpoint-rename=error"

    crash       the process dies at once, as by SIGKILL
    stall:S     the thread that passes sleeps for S seconds
    error       an error of the kind that this place can have in real life
    off         what was armed there is armed no longer
    @N          not at the next passage but at the Nth from now; every one acts once

The environment arms them at the start of a process (`arm_from_environment`), and the command
"failpoint" of a peer's local control while it runs. They are compiled in always; while none is
armed, a passage costs one look at an empty dict, or one relaxed load in native code.

A place names its point with a string: ``failpoints.passing("contribute")``. The points of native
code (`native/core/failpoint.h`) are in the same registry and are armed in the same way.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from decentral.errors import (
    CollectiveError,
    ConfigError,
    ConnectError,
    ContributionError,
    DecentralError,
    DiskError,
    ProtocolError,
    RefusedError,
    StateError,
)

ENVIRONMENT = "DECENTRAL_FAILPOINTS"
MAX_STALL_S = 3600.0
ANSWER_S = 0.05
_MAX_REMEMBERED = 256


@dataclass(frozen=True, slots=True)
class Failpoint:
    """One place. `error` makes what is raised there; None: native code makes its own."""

    name: str
    phase: str
    says: str
    error: Callable[[str], Exception] | None = None


def _disk(says: str) -> OSError:
    """What a real disk would raise: the code around the place must make a DiskError of it."""
    return OSError(errno.EIO, says)


REGISTRY: Mapping[str, Failpoint] = {
    point.name: point
    for point in (
        Failpoint("handshake-dial", "handshake", "TLS begins with a peer that we have dialled"),
        Failpoint("handshake-accept", "handshake", "TLS begins with a peer that has dialled us"),
        Failpoint("admission", "handshake", "both ends are to prove membership", RefusedError),
        Failpoint("hello", "join", "a link is up, and the first hello is to be sent", ConnectError),
        Failpoint("enter", "join", "a joiner with the state asks to be let in", ConnectError),
        Failpoint("joined", "join", "this peer has become a member", DiskError),
        Failpoint("fetch-manifest", "state-fetch", "a page of a manifest came", ProtocolError),
        Failpoint("fetch-chunk", "state-fetch", "a chunk came", ConnectError),
        Failpoint("serve-chunk", "state-fetch", "a chunk is to be sent to a joiner", ConnectError),
        Failpoint("inner-step", "inner step", "an inner step is to be made", StateError),
        Failpoint("contribute", "contribute", "own work is to be offered", ContributionError),
        Failpoint("quantize", "all-reduce", "a chunk is to be encoded"),
        Failpoint("reduce-scatter", "all-reduce", "a contribution came, and is to be added"),
        Failpoint("all-gather", "all-reduce", "a final value came"),
        Failpoint("reduced", "all-reduce", "the result's root is to be told", CollectiveError),
        Failpoint("vote-write", "agreement", "a vote is to be written", DiskError),
        Failpoint("vote-written", "agreement", "a vote is on disk, and nobody knows", DiskError),
        Failpoint("propose", "agreement", "a coordinator is to propose", ConnectError),
        Failpoint("commit-tell", "agreement", "a majority agreed, nobody knows", ConnectError),
        Failpoint("adopt", "commit", "a committed state is to be adopted", StateError),
        Failpoint("adopted", "commit", "it is adopted, and not acknowledged", StateError),
        Failpoint("checkpoint-write", "checkpoint", "a checkpoint is to be written", _disk),
        Failpoint("checkpoint-rename", "checkpoint", "it is written under another name", _disk),
        Failpoint("checkpoint-renamed", "checkpoint", "it has its name, not yet durably", _disk),
        Failpoint("event-write", "events", "a line is to be added to the event log", _disk),
        Failpoint("leave", "leave", "this peer is to tell the others that it leaves", ConnectError),
    )
}


@dataclass(frozen=True, slots=True)
class Arming:
    """What one point is to do, as it was said."""

    name: str
    action: str
    stall_s: float = 0.0
    passage: int = 1

    def __str__(self) -> str:
        action = f"stall:{self.stall_s:g}" if self.action == "stall" else self.action
        return f"{self.name}={action}" + (f"@{self.passage}" if self.passage > 1 else "")


_FORM = re.compile(
    r"(?P<name>[a-z-]+)=(?P<action>crash|error|off|stall:(?P<s>\d+(\.\d+)?|\.\d+))(@(?P<n>\d{1,9}))?"
)


def parse(text: str) -> tuple[Arming, ...]:
    """Several are separated by ";". Raises a ConfigError that says what there is."""
    armings = []
    for part in filter(None, (one.strip() for one in text.split(";"))):
        match = _FORM.fullmatch(part)
        if match is None:
            raise ConfigError(
                f"{part[:80]!r} is no failpoint: NAME=crash, NAME=error, NAME=stall:SECONDS or "
                "NAME=off, with @N for the Nth passage",
                phase="failpoint",
            )
        name, action = match["name"], match["action"].partition(":")[0]
        stall_s, passage = float(match["s"] or 0), int(match["n"] or 1)
        if name not in REGISTRY:
            known = ", ".join(REGISTRY)
            raise ConfigError(f"there is no failpoint {name!r} (there are: {known})")
        if stall_s > MAX_STALL_S or (action == "stall" and stall_s == 0) or passage == 0:
            raise ConfigError(
                f"{part!r}: a stall takes up to {MAX_STALL_S:g} seconds, and passages are counted "
                "from 1",
                phase="failpoint",
            )
        armings.append(Arming(name, action, stall_s, passage))
    return tuple(armings)


# ------------------------------------------------------------------ arming

_lock = threading.Lock()
_armed: dict[str, Arming] = {}  # changed under _lock; of Python's own points
_passed: dict[str, int] = {}  # guarded by _lock; passages since a point was armed
_failed: deque[tuple[str, str, float]] = deque(maxlen=_MAX_REMEMBERED)  # (name, action, at)
_environment_read = False


def arm(text: str) -> None:
    """Arm (or disarm) what `text` says, in place of what was armed at those points."""
    for arming in parse(text):
        if REGISTRY[arming.name].error is None:
            _arm_native(arming)
            continue
        with _lock:
            _passed[arming.name] = 0
            if arming.action == "off":
                _armed.pop(arming.name, None)
            else:
                _armed[arming.name] = arming


def _arm_native(arming: Arming) -> None:
    from decentral import _native

    if arming.action == "off":
        _native.disarm_failpoint(arming.name)
    else:
        _native.arm_failpoint(arming.name, arming.action, arming.stall_s, arming.passage)


def arm_from_environment() -> None:
    """Once a process: what DECENTRAL_FAILPOINTS says. Raises a ConfigError."""
    global _environment_read
    if not _environment_read:
        _environment_read = True
        arm(os.environ.get(ENVIRONMENT, ""))


def disarm_all() -> None:
    arm(";".join(f"{name}=off" for name in REGISTRY))


def armed() -> list[str]:
    """The names of those that have not acted yet."""
    from decentral import _native

    return [
        name
        for name, point in REGISTRY.items()
        if name in _armed or (point.error is None and _native.failpoint_is_armed(name))
    ]


def failed() -> list[dict[str, Any]]:
    """What has happened in this process: {"name", "action", "at" (monotonic seconds)}."""
    from decentral import _native

    with _lock:
        mine = list(_failed)
    rows = sorted([*mine, *_native.failpoints_failed()], key=lambda row: row[2])
    return [{"name": name, "action": action, "at": at} for name, action, at in rows]


def command(request: Mapping[str, Any]) -> dict[str, Any]:
    """The local control's "failpoint": arm what `arm` says, if anything, very soon, and tell what
    has happened."""
    text = request.get("arm", "")
    if not isinstance(text, str):
        raise ConfigError("failpoint takes a text, as DECENTRAL_FAILPOINTS does")
    parse(text)
    if text:  # the answer goes first: the process may not live to give one
        threading.Timer(ANSWER_S, arm, [text]).start()
    return {"armed": armed(), "failed": failed()}


# ------------------------------------------------------------------ passing


def passing(name: str) -> None:
    """This thread passes that point: does what is armed there."""
    if _armed and name in _armed:
        _act(name)


def failing(name: str) -> str | None:
    """As `passing`, for a place that has no error to raise but a sentence to pass on."""
    try:
        passing(name)
    except DecentralError as error:
        return error.says
    return None


def some_armed() -> bool:
    """For places that would have to work out which point they are."""
    return bool(_armed)


def _act(name: str) -> None:
    with _lock:
        arming = _armed.get(name)
        if arming is None:
            return
        _passed[name] += 1
        if _passed[name] < arming.passage:
            return
        del _armed[name]
        _failed.append((name, arming.action, time.monotonic()))
    # No buffers, no locks: this is for the log of a process that is about to die.
    os.write(2, f"failpoint {name}: {arming.action}\n".encode())
    if arming.action == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    elif arming.action == "stall":
        time.sleep(arming.stall_s)
    else:
        make = REGISTRY[name].error
        assert make is not None, "native code makes its own"
        error = make(f"the failpoint {name} made it fail")
        if isinstance(error, DecentralError):
            error.phase = REGISTRY[name].phase
        raise error
