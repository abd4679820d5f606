"""One well-formed message of every kind there is, about the present, the past or another lineage.

The kinds are those that `peer.codec` knows: a new message is attacked from its first day on. Its
fields get values by their names; an unknown name falls back on the field's own examples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from random import Random
from typing import Any

from decentral.peer import codec, messages
from decentral.peer.entries import encode_entry
from decentral.peer.news import Update
from decentral.peer.protocol import Entry, PauseEntry, RollbackEntry, RoundEntry, ViewEntry
from decentral.peer.views_log import LogState, Scope
from decentral.types import Contribution, PeerId, Range, View

KINDS: tuple[type[Any], ...] = codec.message_types()


@dataclass(frozen=True, slots=True)
class Scene:
    """What the forger knows: the log as a member sees it, and who it is."""

    run: bytes
    fingerprint: bytes
    state: LogState
    me: PeerId
    past: str = "00112233aabbccdd"
    """Another lineage."""


class Forger:
    def __init__(self, rng: Random, scene: Scene) -> None:
        self.rng, self.scene = rng, scene

    @property
    def scope(self) -> Scope:
        return self.scene.state.scopes[0]

    def message(self, kind: type[Any]) -> Any:
        return kind(**{one.name: self._value(kind, one.name) for one in fields(kind)})

    def payload(self, kind: type[Any]) -> bytes:
        return messages.pack(self.message(kind))

    def _value(self, kind: type[Any], name: str) -> Any:
        makers: dict[str, Callable[[], Any]] = {
            "run": lambda: self.scene.run,
            "fingerprint": lambda: self.scene.fingerprint,
            "boot": lambda: self.rng.randbytes(16),
            "fences": lambda: self.rng.choice((b"", self.rng.randbytes(16))),
            "boot_seq": lambda: self.rng.choice((0, 1, 1, 2)),
            "name": lambda: "mallory",
            "address": lambda: "127.0.0.1:9",
            "lineage": lambda: self.rng.choice(
                (*[self.scene.state.view.lineage] * 8, self.scene.past)
            ),
            "epoch": lambda: self.near(self.scene.state.view.epoch),
            "slot": lambda: self.near(self.scene.state.slot),
            "round": lambda: self.near(self.scope.round + 1),
            "held_round": lambda: self.near(self.scope.round),
            "durable_round": lambda: self.near(self.scope.round),
            "samples": lambda: self.near(self.scene.state.samples),
            "attempt": lambda: self.near(1),
            "attempt_seen": lambda: self.near(1),
            "ancestry": lambda: (self.scene.past,),
            "updates": self._updates,
            "book": self._updates,
            "target": self.peer,
            "peer": self.peer,
            "suspect": self.peer,
            "coordinator": self.peer,
            "participants": lambda: self.scene.state.view.members,
            "survivors": lambda: self.scene.state.view.members,
            "unlinked": lambda: self.scene.state.view.members[: self.rng.randrange(3)],
            "contributions": self._contributions,
            "ballot": self._ballot,
            "promised": self._ballot,
            "accepted": self._ballot,
            "value": lambda: encode_entry(self.entry()),
            "carried": lambda: self.rng.choice((b"", encode_entry(self.entry()))),
            "state": lambda: self.scene.state,
            "root": lambda: self.rng.choice((self.scope.root, self.rng.randbytes(32))),
            "held_root": lambda: self.rng.choice((self.scope.root, b"", self.rng.randbytes(32))),
            "held": lambda: (("", self.scope.round, self.scope.root),),
            "leases": self._leases,
            "kept": lambda: (0, self.scope.round),
            "tag": lambda: "",
            "stop": lambda: "",
            "what": lambda: self.rng.choice(("pause", "resume", "rollback", "else")),
            "reason": lambda: "because",
            "says": lambda: "so it is",
        }
        made = makers.get(name)
        if made is not None:
            return made()
        hint = kind.__dataclass_fields__[name].type
        return self.rng.random() < 0.5 if "Flag" in str(hint) else self.near(1)

    # -------------------------------------------------------------- parts

    def near(self, number: int) -> int:
        """Mostly what is due; sometimes what is over, or what has not come yet."""
        moved = number + self.rng.choice((0, 0, 0, 0, -1, -2, 1, 5))
        return max(0, moved)

    def peer(self) -> PeerId:
        return self.rng.choice((*self.scene.state.view.members, self.scene.me))

    def _ballot(self) -> tuple[int, str]:
        return self.rng.choice((0, 1, 2, 9)), self.rng.choice((self.scene.me, self.peer()))

    def _leases(self) -> tuple[Range, ...]:
        granted = self.scene.state.ledger.granted(self.peer())
        return granted[:1] if self.rng.random() < 0.7 else (Range(0, 8), Range(4, 12))

    def _contributions(self) -> tuple[Contribution, ...]:
        return tuple(
            Contribution(
                peer=peer,
                tokens=self.rng.choice((1, 1001, 1 << 40)),
                staleness=self.rng.randrange(3),
                steps=self.rng.randrange(3),
                leases=self.scene.state.ledger.granted(peer)[:1],
            )
            for peer in self.scene.state.view.members
        )

    def _updates(self) -> tuple[Update, ...]:
        return tuple(
            Update(peer, self.rng.randrange(2), self.rng.randrange(4), state, "x", "127.0.0.1:9")
            for peer in self.scene.state.view.members
            for state in (self.rng.randrange(4),)
        )

    def entry(self) -> Entry:
        view = self.scene.state.view
        match self.rng.randrange(4):
            case 0:
                members = self.rng.sample(view.members, self.rng.randint(1, len(view.members)))
                next_view = View(
                    lineage=view.lineage, epoch=self.near(view.epoch + 1), members=tuple(members)
                )
                return ViewEntry(view=next_view, reason="x")
            case 1:
                return RoundEntry(
                    round=self.near(self.scope.round + 1),
                    attempt=self.near(1),
                    contributions=self._contributions(),
                    state_root=self.rng.randbytes(32),
                    durable_round=0,
                )
            case 2:
                past = self.rng.choice(
                    [(self.scope.round, self.scope.root)]
                    + [(one.round, one.root) for one in self.scope.history]
                )
                return RollbackEntry(round=past[0], state_root=past[1])
        return PauseEntry(paused=self.rng.random() < 0.5, reason="x")
