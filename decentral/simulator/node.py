"""One machine of a simulated world: a process that lives and dies, a disk and a clock that stay.

event ──▶ PeerCore.handle ──▶ actions ── Persist: the rest waits for the fsync ──▶ done
   frozen, or syncing: events wait
"""

from __future__ import annotations

import base64
import hashlib
from collections import deque
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from decentral.peer.core import PeerCore
from decentral.peer.protocol import (
    Action,
    CloseLink,
    Committed,
    Dial,
    Event,
    Fault,
    Fenced,
    Left,
    Persist,
    Probe,
    ProbeAcked,
    Received,
    Send,
    Tick,
)
from decentral.simulator.checker import VOTES
from decentral.simulator.conditions import draw_machine
from decentral.simulator.disk import Disk
from decentral.simulator.keepers import Keepers
from decentral.simulator.network import Link
from decentral.simulator.trainer import Trainer
from decentral.types import PeerId

if TYPE_CHECKING:
    from decentral.simulator.world import World

KNOCK_S = 3.0
TICK = Tick()


@lru_cache(maxsize=8192)
def peer_id(index: int) -> PeerId:
    raw = hashlib.sha256(f"peer {index}".encode()).digest()
    return "peer:" + base64.b32encode(raw).decode().lower().rstrip("=")


class Node:
    """What survives its crashes is the disk, and the clock."""

    def __init__(self, world: World, index: int) -> None:
        self.world = world
        self.index = index
        self.peer = peer_id(index)
        self.name = f"n{index}"
        self.address = f"10.0.{index >> 8}.{index & 255}:1"
        self.machine = draw_machine(world.rng, world.conditions, founder=index == 0)
        self.disk = Disk()
        self.core: PeerCore | None = None
        self.life = 0
        self.on = True
        """The machine has power: without a process, it refuses connections."""
        self.links: dict[PeerId, Link] = {}
        self.uploaded_at = self.downloaded_at = 0.0
        self.incarnation = 1
        self.frozen = False
        """The process does not run: stopped, or on a suspended machine."""
        self.woke = False
        self.left = False
        self.crash_after: int | None = None
        self.power_fails = False
        """What `crash_after` does is a power cut."""
        self.faults: list[Fault] = []
        self.takes: tuple[str, ...] | None = None
        """The tags that this peer takes part in; None: all."""
        self.trainer = self._new_trainer()
        self._frozen_until = 0.0
        self._suspended_at: float | None = None
        self._waiting: deque[Event] = deque()
        self._syncing = False
        self._rest: list[Action] | None = None
        self._timer = -1.0

    @property
    def up(self) -> bool:
        return self.core is not None

    # -------------------------------------------------------------- life and death

    def boot(self, *, found: bool = False, entries: tuple[PeerId, ...] = ()) -> None:
        world = self.world
        self.life += 1
        self.on = True
        self.left = self.frozen = self._syncing = False
        self._rest = None
        self.incarnation = 1
        self.trainer = self._new_trainer()
        boot = hashlib.sha256(f"{self.index} {self.life}".encode()).digest()[:16]
        seed = world.seed * 1_000_003 + self.index * 1009 + self.life
        record = self.disk.read()
        takes = () if world.config.copies else self.takes
        config = world.config if takes is None else replace(world.config, takes=takes)
        self.core = PeerCore(config, self.peer, self.name, self.address, boot, record, seed)
        self._timer = -1.0
        world.trace(self, b"boot")
        self._execute(self.core.start(self.clock(), found))
        if self.core is not None:
            self.trainer.boot()
            if found and isinstance(self.trainer, Keepers):
                self.trainer.found()
            self._knock(self.life, entries)

    def _new_trainer(self) -> Trainer:
        return Keepers(self) if self.world.config.copies else Trainer(self)

    def _knock(self, life: int, entries: tuple[PeerId, ...]) -> None:
        """Try the addresses of the invite until a member is known, as the runtime does."""
        if self.life != life or not entries or self.core is None:
            return
        if self.core.lost:
            for peer in entries:
                self.world.network.dial(self, peer)
        if not self.core.replica.member:
            self.world.after(KNOCK_S, self._knock, life, entries)

    def crash(self) -> None:
        """The process dies at once (SIGKILL); its kernel closes its links and keeps its files."""
        if self.core is not None:
            self.disk.process_died()
            self._die("crash")
            self.world.network.process_died(self)

    def power_cut(self) -> None:
        """The machine dies: nobody is told, and what was not synced is lost."""
        if self.core is not None:
            self.disk.power_failed(self.world.rng)
            self.on = False
            self._die("power cut")
            self.world.network.machine_died(self)

    def _die(self, how: str) -> None:
        self.core = None
        self.life += 1
        self._clock_goes_on()
        self._waiting.clear()
        self._rest = None
        self._syncing = self.frozen = False
        self.crash_after = None
        self.world.trace(self, how.encode())
        self.world.reduces.gone(self.peer)
        self._show(how)

    def _show(self, how: str = "") -> None:
        if self.world.recorder is not None:
            self.world.recorder.saw(self, how)

    # -------------------------------------------------------------- standing still

    def pause(self, seconds: float) -> None:
        """The process is stopped (SIGSTOP) while its kernel and its clock go on."""
        if self.core is None:
            return
        self._frozen_until = max(self._frozen_until, self.world.now + seconds)
        self.frozen = True
        self._show()
        self.world.network.reconsider(self)
        self.world.after(seconds, self._resume, self.life)

    def suspend(self, seconds: float) -> None:
        """A laptop is closed: its monotonic clock stands still, too."""
        if self.core is not None and not self.frozen:
            self._suspended_at = self.world.now
            self.pause(seconds)

    def _clock_goes_on(self) -> None:
        """Before anybody reads it again: to a process, a monotonic clock never goes back."""
        if self._suspended_at is not None:
            stood_s = self.world.now - self._suspended_at
            self.machine.clock_offset_s -= stood_s * self.machine.clock_rate
            self._suspended_at = None

    def wake(self) -> None:
        """Whatever held the process up is over."""
        if self.frozen:
            self._frozen_until = self.world.now
            self._resume(self.life)

    def _resume(self, life: int) -> None:
        if life != self.life or not self.frozen or self.world.now < self._frozen_until:
            return
        self.frozen = False
        self._clock_goes_on()
        self.woke = True
        self.world.network.reconsider(self)
        self.woke = False
        self._go_on()
        if not self._syncing:
            self.deliver(TICK)

    def clock(self) -> float:
        return self.machine.clock(self.world.now)

    def step_clock(self, seconds: float) -> None:
        """The clock jumps ahead, as after a hypervisor's pause."""
        self.machine.clock_offset_s += seconds
        if self.core is not None and not self.frozen and not self._syncing:
            self.deliver(TICK)

    # -------------------------------------------------------------- events and actions

    def deliver(self, event: Event) -> None:
        core = self.core
        if core is None:
            return
        if self.frozen or self._syncing:
            self._waiting.append(event)
            return
        world = self.world
        if type(event) is Received:
            world.trace(self, b"Received", event.payload)
        else:
            world.trace(self, type(event).__name__.encode())
        self._execute(core.handle(event, self.machine.clock(world.now)))

    def answer(self, probe: Probe) -> ProbeAcked:
        """What native code does without asking the core."""
        if probe.suspected_incarnation >= self.incarnation:
            self.incarnation = probe.suspected_incarnation + 1
        progress = self.trainer.progress()
        return ProbeAcked(self.peer, probe.seq, self.incarnation, progress)

    def _execute(self, actions: list[Action]) -> None:
        life = self.life
        for at, action in enumerate(actions):
            if self.crash_after is not None:
                self.crash_after -= 1
                if self.crash_after < 0:
                    self.power_cut() if self.power_fails else self.crash()
            if self.life != life:
                return
            if type(action) is Send:
                if action.payload[1:4] in VOTES:
                    self.world.checker.voted(self, action.payload)
                self.world.network.send(self, action.peer, action.payload)
            elif type(action) is Probe:
                self.world.network.send(self, action.peer, action)
            elif type(action) is Persist:
                if at + 1 < len(actions) and type(actions[at + 1]) is Persist:
                    continue  # of several in a row the last one says it all
                if self._persist(action, actions[at + 1 :]):
                    return
            else:
                self._do(action)
        if self.life == life:
            self._set_timer()
            if self.world.recorder is not None:
                self._show()

    def _persist(self, action: Persist, rest: list[Action]) -> bool:
        """Write and sync; True where what follows has to wait for the disk."""
        if self.world.drop_persist:
            return False
        self.disk.write(action.record)
        fsync_s = self.world.conditions.fsync_s * self.machine.disk_slowness
        if not fsync_s:
            self.disk.sync()
            return False
        self._syncing = True
        self._rest = rest
        fsync_s *= 0.5 + self.world.rng.random()
        self.world.after(fsync_s, self._synced, self.life)
        return True

    def _synced(self, life: int) -> None:
        if life == self.life:
            self.disk.sync()
            self._syncing = False
            self._go_on()

    def _go_on(self) -> None:
        """What had to wait: first the rest of the actions, then the events."""
        if self._rest is not None and not self.frozen and not self._syncing:
            rest, self._rest = self._rest, None
            self._execute(rest)
        while self._waiting and not self.frozen and not self._syncing:
            self.deliver(self._waiting.popleft())

    def _do(self, action: Action) -> None:
        world = self.world
        match action:
            case Dial():
                world.network.dial(self, action.peer)
            case CloseLink():
                world.network.close(self, action.peer, action.says)
            case Fault():
                self.faults.append(action)
                if world.recorder is not None:
                    world.recorder.reported(self, action)
            case Left():
                self.left = True
                self.crash()
            case Fenced():
                self.crash()
            case Committed():
                world.checker.committed(self, action)
                self.trainer.on(action)
            case _:
                self.trainer.on(action)

    def _set_timer(self) -> None:
        if self.core is None:
            return
        now = self.world.now
        at = max(self.machine.time_of(self.core.next_timer()), now + 1e-4)
        if not now < self._timer <= at:
            self._timer = at
            self.world.at(at, self._tick, self.life)

    def _tick(self, life: int) -> None:
        if life != self.life or self.world.now < self._timer or self.core is None:
            return
        self._timer = -1.0
        if self.frozen or self._syncing:
            return
        if self.machine.time_of(self.core.next_timer()) > self.world.now + 1e-4:
            self._set_timer()  # what it was set for has come sooner: nothing is due yet
        else:
            self.deliver(TICK)
