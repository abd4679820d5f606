"""The peers of a churn run: where each sits, which process it is, and that it comes back.

A *seat* is a place (a host of the lab, a folder); whoever sits there has a name and a home, and
keeps both over restarts. `tick` does what a service manager does: who should be up and is not is
started again.

    out/peers/<name>/home          identity, votes, checkpoints (a small disk of its own, as root)
    out/peers/<name>/events.jsonl  its log: not on that disk, which may be full
    out/peers/<name>/stderr.log
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from decentral.churn.timeline import Timeline
from decentral.cli.fork_server import Forked, ForkServer
from decentral.cli.processes import PeerProcess

RESTART_S = 1.0
"""Who ended by itself is started again after so long."""
DISK_MIB = 64


@dataclass
class Seat:
    number: int
    """Also its host in the lab."""
    name: str
    args: list[str]
    wanted: bool = True
    process: PeerProcess | None = None
    not_before: float = 0.0
    stopped: bool = False
    dying: bool = False
    """Its end is ours: it is no surprise."""
    faults: set[str] = field(default_factory=set)
    """Kinds that are on here now."""

    @property
    def up(self) -> bool:
        return self.process is not None and self.process.exit_status() is None

    @property
    def word(self) -> str:
        """What a newcomer can join by: "" before this one is a member itself."""
        if self.process is None or self.process.last("joined") is None:
            return ""
        return str((self.process.last("listening") or {}).get("join", ""))

    @property
    def well(self) -> bool:
        return self.up and not self.stopped and not self.dying


class Crew:
    """`hosts`: per seat a namespace and an address. `program`: what a peer runs (module, …)."""

    def __init__(
        self,
        folder: Path,
        timeline: Timeline,
        hosts: Sequence[tuple[str, str]],
        *,
        program: Sequence[str],
        server: ForkServer | None,
        args: Sequence[str],
        disks: bool,
    ) -> None:
        self.folder, self.timeline, self.hosts = folder, timeline, hosts
        self.program, self.server, self.args = program, server, list(args)
        self.disks = disks
        self.seats: dict[int, Seat] = {}
        self.gone: list[PeerProcess] = []
        """Processes that have ended; their pipes are closed with the crew."""
        self.surprises: list[str] = []
        """Ends that nobody had asked for, in the process's own last words."""
        self._mounts: list[Path] = []
        self._named = 0

    # ------------------------------------------------------------------ who is there

    def well(self) -> list[Seat]:
        return [seat for seat in self.seats.values() if seat.well]

    def vacant(self) -> int | None:
        """A place where nobody sits."""
        return next((n for n in range(len(self.hosts)) if n not in self.seats), None)

    def words(self, count: int = 2) -> list[str]:
        """Join words of members, for a newcomer."""
        known = [seat.word for seat in self.well() if seat.word]
        return [part for word in known[:count] for part in ("--join", word)]

    def seat_of(self, peer_id: str) -> Seat | None:
        found = (
            seat for seat in self.seats.values() if seat.process and seat.process.peer_id == peer_id
        )
        return next(found, None)

    # ------------------------------------------------------------------ coming and going

    def sit(self, number: int, args: Sequence[str]) -> Seat:
        """Somebody new, with a home of its own. The same arguments start it every time."""
        self._named += 1
        seat = Seat(number, f"peer-{self._named:03}", [*self.args, *args])
        self.seats[number] = seat
        self._make_home(seat)
        self.start(seat)
        return seat

    def start(self, seat: Seat) -> None:
        netns, address = self.hosts[seat.number]
        home = self.folder / "peers" / seat.name / "home"
        seat.process = PeerProcess(
            seat.name,
            home,
            seat.args,
            prefix=("ip", "netns", "exec", netns) if netns else (),
            listen=f"{address}:0",
            program=self.program,
            env={"OPENBLAS_NUM_THREADS": "1"},
            launch=self._launch(netns) if self.server is not None else None,
        )
        seat.stopped = seat.dying = False
        self.timeline.note("start", peer=seat.name, pid=seat.process.process.pid)

    def _launch(
        self, netns: str
    ) -> Callable[[Sequence[str], Mapping[str, str], IO[bytes]], Forked]:
        server = self.server
        assert server is not None
        return lambda args, env, stderr: server.launch(args, env, stderr, netns)

    def kill(self, seat: Seat, back_s: float) -> None:
        self._end(seat, signal.SIGKILL, back_s)

    def leave(self, seat: Seat, back_s: float) -> None:
        self._end(seat, signal.SIGTERM, back_s)

    def _end(self, seat: Seat, sig: signal.Signals, back_s: float) -> None:
        assert seat.process is not None
        self.let_go_on(seat)  # a stopped process cannot leave
        seat.dying = True
        seat.not_before = time.monotonic() + back_s
        seat.process.send(sig)

    def stop(self, seat: Seat) -> None:
        assert seat.process is not None
        seat.process.send(signal.SIGSTOP)
        seat.stopped = True

    def let_go_on(self, seat: Seat) -> None:
        if seat.process is not None and seat.stopped:
            seat.process.send(signal.SIGCONT)
        seat.stopped = False

    def dismiss(self, seat: Seat, sig: signal.Signals = signal.SIGTERM) -> None:
        """It goes and does not come back; its place is free once it has ended."""
        seat.wanted = False
        if seat.up:
            self._end(seat, sig, 0)

    def tick(self) -> None:
        """Note who has ended, and start who should be up."""
        now = time.monotonic()
        for seat in list(self.seats.values()):
            if seat.process is not None and seat.process.exit_status() is not None:
                self._ended(seat, now)
            if seat.process is None:
                if not seat.wanted:
                    del self.seats[seat.number]
                elif now >= seat.not_before:
                    self.start(seat)

    def _ended(self, seat: Seat, now: float) -> None:
        process = seat.process
        assert process is not None
        status = process.exit_status()
        says = process.last_words() if status else ""
        self.timeline.note(
            "exit", peer=seat.name, pid=process.process.pid, status=status, expected=seat.dying,
            says=says,
        )  # fmt: skip
        if not seat.dying:
            self.surprises.append(f"{seat.name} ended with status {status}: {says}")
            seat.not_before = now + RESTART_S
        process.close()
        self.gone.append(process)
        seat.process, seat.dying, seat.stopped = None, False, False

    def sample(self) -> None:
        for seat in self.seats.values():
            if seat.well and seat.process is not None:
                self.timeline.sample(seat.name, seat.process.process.pid)

    # ------------------------------------------------------------------ homes

    def _make_home(self, seat: Seat) -> None:
        folder = self.folder / "peers" / seat.name
        home = folder / "home"
        home.mkdir(parents=True)
        if self.disks:
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "decentral-churn", str(home)],
                check=True,
            )
            self._mounts.append(home)
        for name in ("events.jsonl", "stderr.log"):
            (home / name).symlink_to(folder / name)

    def fill_disk(self, seat: Seat) -> Path:
        """Nothing more fits on it. The file to delete afterwards."""
        path = self.folder / "peers" / seat.name / "home" / "filler"
        with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(65536))
        return path

    def close(self) -> None:
        for seat in self.seats.values():
            if seat.process is not None:
                self.let_go_on(seat)
                seat.process.close()
        for home in self._mounts:
            subprocess.run(["umount", "--lazy", str(home)], check=False)


def can_mount(folder: Path) -> bool:
    """Whether peers can have disks of their own here, small enough to fill up."""
    if os.geteuid() != 0:
        return False
    probe = folder / ".probe"
    probe.mkdir(parents=True, exist_ok=True)
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "decentral-churn", str(probe)],
        capture_output=True,
        check=False,
    )
    if made.returncode == 0:
        subprocess.run(["umount", str(probe)], check=False)
    probe.rmdir()
    return made.returncode == 0
