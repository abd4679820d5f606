"""Processes of `mesh_member.py`, and meshes of this process beside them."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from mesh_member import TAGS, config, holdings, initial

from decentral.mesh_port import MeshFailed, Order, StateArrived
from decentral.peer.manifest import specs_of
from decentral.peer.protocol import Joined
from decentral.peer.runtime import Mesh

SCHEMAS = {tag: specs_of(initial(tag)) for tag in TAGS}
SCRIPT = Path(__file__).resolve().parent / "mesh_member.py"


class Member:
    """One process."""

    def __init__(self, name: str, takes: str, *, upload_mbit: float = 0, word: str = "") -> None:
        command = [sys.executable, "-P", str(SCRIPT), name, takes, str(upload_mbit)]
        self.process = subprocess.Popen(
            [*command, *([word] if word else [])],
            stdout=subprocess.PIPE,
            text=True,
            env={"PYTHONPATH": str(SCRIPT.parent), "PATH": ""},
        )
        self._events: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                with self._changed:
                    self._events.append(json.loads(line))
                    self._changed.notify_all()

    def wait_for(self, event: str, timeout_s: float = 30.0, **where: Any) -> dict[str, Any]:
        """The first event like that."""

        def found() -> dict[str, Any] | None:
            wanted = {"event": event, **where}
            return next((one for one in self._events if wanted.items() <= one.items()), None)

        with self._changed:
            assert self._changed.wait_for(found, timeout_s), f"no {event}: {self._events}"
            event_found = found()
        assert event_found is not None
        return event_found

    @property
    def me(self) -> str:
        return str(self.wait_for("listening")["peer"])

    @property
    def word(self) -> str:
        return str(self.wait_for("listening")["join"])

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._listener.join()


class Crew:
    """Everything that ends with a test."""

    def __init__(self) -> None:
        self.members: list[Member] = []
        self.meshes: list[Mesh] = []

    def start(self, takes: str, *, upload_mbit: float = 0.0) -> Member:
        """The first one founds the run."""
        word = self.members[0].word if self.members else ""
        name = f"member-{len(self.members)}"
        self.members.append(Member(name, takes, upload_mbit=upload_mbit, word=word))
        return self.members[-1]

    def member(self, takes: str, *, joins: bool = True) -> Mesh:
        """A member in this process, once it has joined; else a mesh that has not begun."""
        mesh = Mesh(config("here", self.members[0].word))
        self.meshes.append(mesh)
        if not joins:
            return mesh
        joined: Future[None] = Future()

        def on_order(order: Order) -> None:
            match order:
                case StateArrived(state, tag):
                    mesh.hold(state, tag=tag)
                case Joined() if not joined.done():
                    joined.set_result(None)
                case MeshFailed(error) if not joined.done():
                    joined.set_exception(error)

        mesh.start(
            holdings=holdings(takes, founder=False),
            fingerprint=bytes(32),
            lease_samples=1,
            on_order=on_order,
            tags=TAGS,
            schemas=SCHEMAS,
        )
        joined.result(30)
        return mesh

    def spectator(self) -> Mesh:
        """One that only observes, linked to all."""
        mesh = Mesh(config("watcher", self.members[0].word, role="observe"))
        self.meshes.append(mesh)
        mesh.watch(lambda order: None, tags=TAGS, schemas=SCHEMAS)
        linked(mesh, *self.members)
        return mesh

    def close(self) -> None:
        for mesh in self.meshes:
            mesh.close()
        for member in self.members:
            member.kill()


def linked(mesh: Mesh, *members: Member, timeout_s: float = 20.0) -> None:
    """Wait for links to all of these."""
    until(lambda: not any(not mesh.linked(one.me) for one in members), timeout_s, "no links")


def until(condition: Callable[[], Any], timeout_s: float, says: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{says}: not within {timeout_s} s"
        time.sleep(0.02)
