"""Ways to a peer, and which of them two NATs leave open."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from decentral.peer.reach.nat import Nat
from decentral.types import PeerId

Kind: TypeAlias = Literal["direct", "mapped", "punched", "relayed"]
RANK: dict[str, int] = {"direct": 0, "mapped": 0, "punched": 1, "relayed": 2}
"""Lower is better; equals do not replace each other."""

BIRTHDAY_SOCKETS = 256
BIRTHDAY_SPRAY = 1024
"""256 open ports of 64,512, met by 1,024 guesses: 98 % hit one (1 - e^(-256 · 1024 / 64512))."""
FEW = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One attempt to get a connection to a peer, as the endpoint's `dial` takes it."""

    kind: Kind
    how: str
    """For people."""
    address: str
    """Whom to connect to: the peer, its NAT, or the relay; ``IP:PORT``."""
    role: Literal["client", "by-id", "server"] = "client"
    from_listening_port: bool = False
    carrier: bool = False
    sockets: int = 1
    spray: int = 0
    relay: PeerId = ""
    relay_token: bytes = b""
    relay_side: int = 0
    timeout_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Punch:
    """What one end does in a punch."""

    from_listening_port: bool
    sockets: int = 1
    spray: int = 0


def punch(mine: Nat, theirs: Nat) -> tuple[Punch, Punch] | None:
    """(our part, their part), or None: no punch can work.

    Two cones (or firewalls) open from their listening ports. Where one end's outer port is
    another for every connection, it opens many, and the other end, whose port is known, tries
    many of them: a birthday (FACTS of the field: 192 to 832 attempts).
    """
    if not mine.address or not theirs.address or (mine.symmetric and theirs.symmetric):
        return None
    if not mine.symmetric and not theirs.symmetric:
        return Punch(True), Punch(True)
    known = theirs if mine.symmetric else mine
    if known.filtering in ("independent", "address"):  # a packet of ours lets all of theirs in
        guesser, guessed = Punch(True, spray=FEW), Punch(False, sockets=FEW)
    else:
        guesser = Punch(True, spray=BIRTHDAY_SPRAY)
        guessed = Punch(False, sockets=BIRTHDAY_SOCKETS)
    return (guessed, guesser) if mine.symmetric else (guesser, guessed)
