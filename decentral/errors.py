"""Every error that decentral raises on purpose. A leaf: imports nothing of ours.

    DecentralError                    has .peer and .phase
    ├── ConfigError                   an option, a recipe or a call that cannot work
    ├── ConnectError                  no link came up
    │   ├── UnreachableError          nothing answers there, or not in time
    │   ├── NotDecentralError         something answers, but it does not speak our protocol
    │   ├── VersionMismatchError      both ends name the versions they speak
    │   ├── IdentityError             the other end is not the peer that was asked for
    │   ├── SelfJoinError             the address leads back to this very peer
    │   └── RefusedError              the other end said no, and says why
    │       └── CredentialError       a credential is missing, stale, foreign or revoked
    ├── PortMappingError              no router opens a port for us: a loss, never a failure
    ├── ProtocolError                 a frame or message that breaks the format or a limit
    ├── CollectiveError               an all-reduce did not happen; buffers are untouched
    │   ├── PeerFailedError           a member died or went silent
    │   ├── AbortedError              somebody called it off
    │   └── MismatchError             members disagree about the operation
    ├── CallError                     a peer did not answer a call; `phase` says what became of it
    ├── QuorumLostError               too few members are left to decide anything
    ├── EvictedError                  the others went on without this peer
    ├── StateError                    training state cannot be used
    │   ├── FingerprintError          this recipe or model is not the run's
    │   ├── CorruptCheckpointError    a checkpoint does not match its hashes
    │   ├── DiskError                 the disk refused (full, read-only)
    │   └── DivergenceError           a member holds other bits than the committed ones
    └── ContributionError             a contribution is not finite or far out of line

A broken invariant is not in this tree: it is an ``AssertionError``, and nothing retries it.
"""

from __future__ import annotations


class DecentralError(Exception):
    """Base of all. `says` is one sentence for a person; `peer` and `phase` name the culprit."""

    def __init__(self, says: str, *, peer: str | None = None, phase: str | None = None) -> None:
        super().__init__(says)
        self.says = says
        self.peer = peer
        self.phase = phase

    def __str__(self) -> str:
        where = ", ".join(
            part
            for part in (
                f"phase: {self.phase}" if self.phase else "",
                f"peer: {self.peer}" if self.peer else "",
            )
            if part
        )
        return f"{self.says} ({where})" if where else self.says


class ConfigError(DecentralError):
    """An option, a recipe or a call that cannot work."""


class ConnectError(DecentralError):
    """No link came up."""


class UnreachableError(ConnectError):
    """Nothing answers at the address, or not within the time allowed."""


class NotDecentralError(ConnectError):
    """Something answers at the address, but it does not speak our protocol."""


class VersionMismatchError(ConnectError):
    """The two ends share no protocol version; the message names both lists."""


class IdentityError(ConnectError):
    """The other end is not the peer that was asked for."""


class SelfJoinError(ConnectError):
    """The address leads back to this very peer."""


class RefusedError(ConnectError):
    """The other end refused, and said why."""


class CredentialError(RefusedError):
    """A credential is missing, stale, foreign or revoked."""


class PortMappingError(DecentralError):
    """No router opens a port for this peer; it goes on without."""


class ProtocolError(DecentralError):
    """A frame or message that breaks the format or a limit."""


class CollectiveError(DecentralError):
    """A collective operation did not happen; every buffer is as it was."""


class PeerFailedError(CollectiveError):
    """A member died or went silent during the operation."""


class AbortedError(CollectiveError):
    """A member called the operation off."""


class MismatchError(CollectiveError):
    """Members disagree about the operation (count, dtype, codec, plan)."""


class CallError(DecentralError):
    """A peer did not answer a call. What it has done of it is known from `phase`:

    connect     nothing: there was no link in time
    busy        nothing: it has too many calls to answer, try again later
    method      nothing: it serves nothing of that name
    body        nothing, or all of it: the question or the answer did not come whole
    handler     some: its handler raised, and this is what it said
    timeout     unknown
    cancelled   unknown
    link        unknown: the link ended before the answer came
    """


class QuorumLostError(DecentralError):
    """Too few members of the last view are left to decide anything."""


class EvictedError(DecentralError):
    """The other members went on without this peer."""


class StateError(DecentralError):
    """Training state that cannot be used."""


class FingerprintError(StateError):
    """This peer's recipe, model or options are not the run's."""


class CorruptCheckpointError(StateError):
    """A checkpoint's bytes do not match its manifest."""


class DiskError(StateError):
    """The disk refused a write."""


class DivergenceError(StateError):
    """A member holds other bits than the committed ones."""


class ContributionError(DecentralError):
    """A contribution that is not finite or far out of line with the others."""
