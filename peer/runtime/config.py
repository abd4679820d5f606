"""What a peer is told at its start about itself and the network. The run's own options are not
here: they belong to the run and arrive with its state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from decentral.errors import ConfigError
from decentral.peer.credential import ROLES, Role

EVERYWHERE = "[::]:0"


def parse_listen_address(text: str) -> tuple[str, int]:
    """Like an address to dial, but port 0 takes a free one. ConfigError if it is none."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"{text!r} is not an address: it should look like HOST:PORT")
    return host, int(port)


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Validated at construction."""

    home: Path | None = None
    """Identity, credential, durable record, address book, checkpoints, event log. None: a
    directory that goes with the process."""
    name: str = "peer"
    """For people; unique names help them."""
    listen: str = EVERYWHERE
    """HOST:PORT; port 0 takes a free one; [::] is every address, of both families."""
    join: tuple[str, ...] = ()
    """Join words, or "lan": whoever of the run is found on the local network. Empty: go on with
    the run in `home`, or make one."""
    credential: Path | None = None
    """A credential file, for a join word that carries no invite."""
    open_run: bool = False
    """A run that admits anyone; only says something when this peer makes the run."""
    role: Role | None = None
    """"train", "relay" (carries others' links) or "observe"; None: what the credential allows."""
    on_quorum_loss: str = "fork"
    """"fork": survivors that are half of the view or more go on; "pause": they wait."""
    quorum_timeout_s: float = 15.0
    """How long a majority may be unreachable before `on_quorum_loss` applies."""
    join_timeout_s: float = 20.0
    """From the first dial until some member has admitted us."""
    bulk_streams: int = 2
    """Parallel TCP connections per link for bulk data."""
    max_upload_mbit: float = 0.0
    """Cap on what all bulk streams send together, in Mbit/s; 0: none."""
    encrypt_bulk: bool = True
    """False only on a network that you trust: bulk data then crosses it in the clear."""
    relay: str = "auto"
    """Whether this peer relays for pairs that cannot connect otherwise: "on", "off", or "auto",
    which means where strangers get in. It sees ciphertext only."""
    max_relay_mbit: float = 0.0
    """Cap on what this peer relays in all, shared fairly among the pairs, in Mbit/s; 0: none."""
    full_mesh_up_to: int = 32
    """Up to so many members all are linked to all. In a larger run each is linked to the first few
    and to some neighbours, and to others when they exchange data."""
    silence_limit_s: float = 5.0
    """A link on which nothing was heard for so long is dead."""
    lan_discovery: bool = True
    """Tell the local network (mDNS) that a peer is here, and find others there. Only for a listener
    on all interfaces, or where `join` says "lan"."""
    port_mapping: bool = True
    """Ask the router (PCP, NAT-PMP, UPnP) to let others in. Only for a listener on all interfaces
    of a machine that has private addresses alone."""
    on_event: Callable[[Mapping[str, Any]], None] = field(default=lambda event: None, repr=False)
    """Called with every event of the documented stream, on any thread."""

    def __post_init__(self) -> None:
        parse_listen_address(self.listen)
        if not self.name or len(self.name) > 64 or not self.name.isprintable():
            raise ConfigError("a peer's name has 1 to 64 printable characters")
        if self.role not in (None, *ROLES):
            raise ConfigError(f"a role is one of {', '.join(ROLES)}, not {self.role!r}")
        if self.on_quorum_loss not in ("fork", "pause"):
            raise ConfigError(f"on_quorum_loss is fork or pause, not {self.on_quorum_loss!r}")
        if self.relay not in ("on", "off", "auto"):
            raise ConfigError(f"relay is on, off or auto, not {self.relay!r}")
        if self.full_mesh_up_to < 1:
            raise ConfigError("full_mesh_up_to is at least 1")
        if not 1 <= self.bulk_streams <= 64:
            raise ConfigError("bulk_streams is between 1 and 64")
        if self.max_upload_mbit < 0 or self.max_relay_mbit < 0:
            raise ConfigError("max_upload_mbit and max_relay_mbit are positive, or 0 for no cap")
        for name in ("quorum_timeout_s", "join_timeout_s", "silence_limit_s"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} must be positive")
