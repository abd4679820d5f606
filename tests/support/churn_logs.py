"""A run that never was: the files that a churn run leaves, correct to the last bit, to be broken.

    run = PaperRun(peers=4)
    run.rounds(5); run.kill("b"); run.rounds(3); run.restart("b"); run.rounds(2)
    run.event("c", "commit", round=7)["state_hash"] = "ff"        # an edit by hand
    report = audit(run.write(tmp_path))

Time is the run's own. The arithmetic is that of the harness: DiLoCo in fp32, tokens as weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

NAMES = "abcdefghijklmnopqrstuvwxyz"
ELEMENTS = 6
SHARE = 16
"""Samples that each member holds before a round."""
USED = 8
"""Samples that a contribution uses."""
PERIOD_S = 0.3
ETA, MU = np.float32(0.7), np.float32(0.6)
Record = dict[str, Any]


@dataclass
class State:
    """What is committed, of one round."""

    round: int
    theta: np.ndarray
    momentum: np.ndarray

    @property
    def hash(self) -> str:
        told = self.round.to_bytes(8, "big") + self.theta.tobytes() + self.momentum.tobytes()
        return hashlib.sha256(told).hexdigest()

    def told(self) -> Record:
        return {
            "state_hash": self.hash,
            "theta": self.theta.tolist(),
            "momentum": self.momentum.tolist(),
        }


@dataclass
class PaperPeer:
    name: str
    pid: int = 0
    up: bool = False
    frozen: bool = False
    began_at: float = 0.0
    state: State | None = None
    offer: Record | None = None
    """Its last contribution, until a commit counts it."""
    events: list[Record] = field(default_factory=list)

    @property
    def id(self) -> str:
        return f"peer:{self.name * 8}"

    @property
    def well(self) -> bool:
        return self.up and not self.frozen


class PaperRun:
    def __init__(self, peers: int = 4, seed: int = 1, calm_rounds: int = 4) -> None:
        self.chance = np.random.default_rng(seed)
        self.now = 1000.0
        self.peers = {name: PaperPeer(name) for name in NAMES[:peers]}
        self.timeline: list[Record] = []
        self.samples: list[Record] = []
        self.lineage, self.epoch, self.faults, self.pids = "L1", 1, 0, 100
        self.members: list[str] = []
        self.next_sample = 0
        self.returned: list[tuple[int, int]] = []
        self.granted: dict[str, list[tuple[int, int]]] = {}
        theta = self.chance.standard_normal(ELEMENTS, dtype=np.float32)
        self.states = [State(0, theta, np.zeros(ELEMENTS, np.float32))]
        self.counted: list[list[tuple[int, int]]] = [[]]
        """Per round, the samples that it consumed."""
        for name in self.peers:
            self.restart(name)
        began, rounds = self.now, calm_rounds
        self.rounds(rounds)
        rate = rounds * USED * peers / (self.now - began)
        options = {"outer_lr": float(ETA), "outer_momentum": float(MU), "codec": "fp32"}
        self.note("run", seed=seed, peers=peers, period_s=PERIOD_S, options=options)
        self.note("calm", period_s=PERIOD_S, samples_per_s=rate)

    # ------------------------------------------------------------------ what is written

    def note(self, what: str, **fields: Any) -> None:
        self.timeline.append({"at": round(self.now, 6), "what": what, **fields})

    def tell(self, name: str, event: str, /, **fields: Any) -> Record:
        peer = self.peers[name]
        record = {"event": event, "t": round(self.now - peer.began_at, 4), **fields}
        peer.events.append(record)
        return record

    def event(self, name: str, event: str, /, **where: Any) -> Record:
        """The last record of this kind with these fields, to be edited."""
        return self.events(name, event, **where)[-1]

    def events(self, name: str, event: str, /, **where: Any) -> list[Record]:
        found = [
            one
            for one in self.peers[name].events
            if one["event"] == event and all(one[key] == value for key, value in where.items())
        ]
        assert found, f"{name} told no {event} with {where}"
        return found

    def told(self, event: str, /, **where: Any) -> list[Record]:
        """Likewise, of all peers."""
        return [
            one
            for peer in self.peers.values()
            for one in peer.events
            if one["event"] == event and all(one[key] == value for key, value in where.items())
        ]

    def write(self, folder: Path) -> Path:
        lines(folder / "timeline.jsonl", self.timeline)
        lines(folder / "samples.jsonl", self.samples)
        for peer in self.peers.values():
            lines(folder / "peers" / peer.name / "events.jsonl", peer.events)
        return folder

    # ------------------------------------------------------------------ peers come and go

    def restart(self, name: str) -> None:
        """A process, new or again; a member of the next view, with the newest state."""
        peer = self.peers[name]
        self.pids += 1
        peer.pid, peer.up, peer.began_at = self.pids, True, self.now
        self.note("start", peer=name, pid=peer.pid)
        self.tell(name, "start", monotonic_s=self.now, time=0.0, pid=peer.pid)
        self.now += 0.05
        self.tell(name, "listening", peer=peer.id, name=name, port=1, join="")
        self._view([*self.members, name] if name not in self.members else self.members)
        self.adopt(name, self.states[-1])
        self.tell(name, "joined", peer=peer.id, name=name, epoch=self.epoch,
                  round=self.states[-1].round, state_hash=self.states[-1].hash,
                  members=len(self.members))  # fmt: skip

    def adopt(self, name: str, state: State) -> None:
        self.peers[name].state = state
        self.tell(name, "adopted", lineage=self.lineage, round=state.round, **state.told())

    def kill(self, *names: str) -> None:
        """SIGKILL; the survivors go on without them."""
        self.fault("kill", names)
        for name in names:
            peer = self.peers[name]
            peer.up, peer.frozen, peer.offer = False, False, None
            self.note("exit", peer=name, pid=peer.pid, status=-9, expected=True, says="")
        self._view([name for name in self.members if name not in names])

    def freeze(self, *names: str) -> int:
        """SIGSTOP; they stay in the view. The number of the fault, for `thaw`."""
        number = self.fault("stop", names)
        for name in names:
            self.peers[name].frozen = True
        return number

    def thaw(self, number: int, *names: str) -> None:
        self.note("healed", id=number)
        for name in names:
            self.peers[name].frozen = False

    def fault(self, kind: str, names: Sequence[str] = (), **detail: Any) -> int:
        self.faults += 1
        self.note("fault", id=self.faults, kind=kind, peers=list(names), detail=detail)
        return self.faults

    def lapse(self, seconds: float) -> None:
        self.now += seconds

    def end(self) -> None:
        self.lapse(0.1)
        self.note("end")
        for peer in self.peers.values():
            if peer.up:
                self.lapse(0.1)
                self.tell(peer.name, "left", peer=peer.id, says="it has left")
                self.lapse(0.1)
                self.note("exit", peer=peer.name, pid=peer.pid, status=0, expected=True, says="")

    def _view(self, members: list[str]) -> None:
        for name in self.members:
            if name not in members:
                self.returned += self.granted.pop(name, [])
        self.members = list(members)
        self.epoch += 1
        self._top_up()
        for name in self.members:
            if self.peers[name].well and self.peers[name].state is not None:
                self._tell_view(name, "")

    def _tell_view(self, name: str, reason: str) -> None:
        where = {"lineage": self.lineage, "epoch": self.epoch}
        self.tell(name, "members", **where, peers=[self.peers[one].id for one in self.members])
        self.tell(name, "view", **where, members=len(self.members), reason=reason)

    # ------------------------------------------------------------------ rounds

    def rounds(self, count: int) -> None:
        for _ in range(count):
            self.round()

    def round(self, contributors: Sequence[str] | None = None) -> None:
        """Everybody who is well offers; `contributors` are counted and all who are well commit."""
        before = self.states[-1]
        here = [name for name in self.members if self.peers[name].well]
        self.lapse(PERIOD_S - 0.1)
        for name in here:
            self._offer(name, before)
        self.lapse(0.1)
        counted = [name for name in here if contributors is None or name in contributors]
        offers = [self.peers[name].offer for name in counted]
        weights = np.array(
            [one["tokens"] * (1 + one["staleness"]) ** -0.5 for one in offers],  # type: ignore[index]
            dtype=np.float32,
        )
        weights /= weights.sum(dtype=np.float32)
        mean = np.zeros(ELEMENTS, np.float32)
        for weight, offer in zip(weights, offers, strict=True):
            mean += weight * np.array(offer["delta"], np.float32)  # type: ignore[index]
        momentum = MU * before.momentum + mean
        state = State(before.round + 1, before.theta - ETA * (mean + MU * momentum), momentum)
        self.states.append(state)
        used: list[tuple[int, int]] = []
        for name, offer in zip(counted, offers, strict=True):
            ranges = [(a, b) for a, b in offer["leases"]]  # type: ignore[index]
            used += ranges
            self.granted[name] = minus(self.granted[name], ranges)
            self.peers[name].offer = None
        self.counted.append(used)
        self._top_up()
        told = [
            {
                "peer": self.peers[name].id,
                **{key: offer[key] for key in ("tokens", "staleness", "leases")},  # type: ignore[index]
            }
            for name, offer in zip(counted, offers, strict=True)
        ]
        for name in here:
            self.lapse(0.0005)
            self._commit(name, state, told)

    def _offer(self, name: str, before: State) -> None:
        """New work, or what no round has counted yet."""
        peer, late = self.peers[name], self.peers[name].offer
        if late is not None:
            fields = {key: late[key] for key in ("tokens", "leases", "delta")}
            fields["staleness"] = late["staleness"] + 1
        else:
            ranges = first(self.granted[name], USED)
            delta = (0.01 * self.chance.standard_normal(ELEMENTS)).astype(np.float32)
            fields = {
                "tokens": USED,
                "leases": [list(one) for one in ranges],
                "delta": delta.tolist(),
                "staleness": 0,
            }
        peer.offer = self.tell(
            name, "contribution", lineage=self.lineage, round=before.round + 1,
            anchor_round=before.round, **fields,
        )  # fmt: skip

    def _commit(self, name: str, state: State, contributions: list[Record]) -> None:
        self.peers[name].state = state
        self.tell(
            name, "commit", lineage=self.lineage, epoch=self.epoch, round=state.round, attempt=1,
            members=[self.peers[one].id for one in self.members],
            contributions=json.loads(json.dumps(contributions)),
            granted=[list(one) for one in self.granted.get(name, [])], **state.told(),
        )  # fmt: skip
        self.tell(
            name, "round", lineage=self.lineage, epoch=self.epoch, round=state.round,
            durable_round=max(0, state.round - 2), participants=len(contributions),
            state_hash=state.hash, loss=None, tokens=0, bytes_sent=0, bytes_received=0,
            seconds=PERIOD_S,
        )  # fmt: skip

    def _top_up(self) -> None:
        for name in self.members:
            held = self.granted.setdefault(name, [])
            missing = SHARE - sum(b - a for a, b in held)
            while missing > 0 and self.returned:
                self.returned.sort()
                a, b = self.returned.pop(0)
                cut = min(b, a + missing)
                held.append((a, cut))
                missing -= cut - a
                if cut < b:
                    self.returned.append((cut, b))
            if missing > 0:
                held.append((self.next_sample, self.next_sample + missing))
                self.next_sample += missing
            held.sort()

    # ------------------------------------------------------------------ rarer things

    def roll_back(self, to: int) -> None:
        """Everybody who is well goes back; the samples of later rounds are free again."""
        while self.states[-1].round > to:
            self.states.pop()
            self.returned += self.counted.pop()
        state = self.states[-1]
        for name in self.members:
            if self.peers[name].well:
                self.lapse(0.001)
                self.tell(name, "rolled-back", lineage=self.lineage, round=to,
                          state_hash=state.hash)  # fmt: skip
                self.adopt(name, state)
                self.peers[name].offer = None

    def fork(self, lineage: str, *survivors: str) -> None:
        """They go on without the others, from the last committed state."""
        self.lineage = lineage
        self.epoch += 1
        for name in self.members:
            if name not in survivors:
                self.returned += self.granted.pop(name, [])
        self.members = list(survivors)
        self._top_up()
        for name in survivors:
            self._tell_view(name, "fork: the others cannot be reached")
            self.tell(name, "fault", kind="fork", peer=None,
                      says="A majority was unreachable; two go on.")  # fmt: skip

    def sample(self, name: str, seconds: int, **growth_per_s: float) -> None:
        """What the driver sees of this process for so long: fds, threads, rss_kib and a leak."""
        usual = {"fds": 40.0, "threads": 5.0, "rss_kib": 60_000.0}
        for second in range(seconds):
            wobble = {"fds": second % 3, "threads": 0, "rss_kib": 100 * (second % 7)}
            self.samples.append(
                {"at": self.now + second, "peer": name, "pid": self.peers[name].pid}
                | {
                    key: int(usual[key] + wobble[key] + growth_per_s.get(key, 0.0) * second)
                    for key in usual
                }
            )


def lines(path: Path, records: Sequence[Record]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in records))


def first(ranges: list[tuple[int, int]], count: int) -> list[tuple[int, int]]:
    """The first so many samples."""
    found: list[tuple[int, int]] = []
    for a, b in ranges:
        if count > 0:
            found.append((a, min(b, a + count)))
            count -= found[-1][1] - a
    return found


def minus(ranges: list[tuple[int, int]], taken: list[tuple[int, int]]) -> list[tuple[int, int]]:
    left = {n for a, b in ranges for n in range(a, b)} - {n for a, b in taken for n in range(a, b)}
    found: list[tuple[int, int]] = []
    for n in sorted(left):
        if found and found[-1][1] == n:
            found[-1] = (found[-1][0], n + 1)
        else:
            found.append((n, n + 1))
    return found
