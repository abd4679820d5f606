"""What SWIM keeps per peer, and per probe that is under way."""

from __future__ import annotations

from dataclasses import dataclass, field

from decentral.types import PeerId

ALIVE, SUSPECT, DEAD, LEFT = range(4)
STATES = ("alive", "suspect", "dead", "left")


@dataclass(slots=True)
class Member:
    """What we believe about one peer."""

    name: str = ""
    address: str = ""
    state: int = ALIVE
    boot_seq: int = 0
    incarnation: int = 0
    suspect_since: float = 0.0
    deadline: float = float("inf")
    witnesses: set[PeerId] = field(default_factory=set)
    by_closing: bool = False
    refused: bool = False
    progress: int = -1
    progress_at: float = 0.0

    def key(self) -> tuple[int, int, int]:
        return self.boot_seq, self.incarnation, self.state


@dataclass(slots=True)
class Asked:
    """A probe under way: for ourselves, or for another peer (`on_behalf`)."""

    target: PeerId
    deadline: float
    indirect: bool = False
    heard_helper: bool = False
    on_behalf: tuple[PeerId, int] | None = None
