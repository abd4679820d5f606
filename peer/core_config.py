"""The times and limits of the sans-IO core, and the snapshot of it that people see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from decentral.types import PeerId

MAX_TAGS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreConfig:
    """Times in seconds. Validated at construction."""

    run: bytes
    """Run id, 32 bytes."""
    fingerprint: bytes
    """Digest of the recipe's names, shapes, dtypes and options; peers that differ are refused."""
    lease_samples: int = 0
    """Samples leased to each member per round; 0: the data has no stable ids."""
    tags: tuple[str, ...] = ("",)
    """What has rounds and a state of its own: the model ("" alone), or its fragments or modules.
    Equal on all peers of a run."""
    spectator: bool = False
    """Linked, and told what is committed, but never a member: it does not ask to enter."""
    takes: tuple[str, ...] | None = None
    """The tags that this peer takes part in at first; None: all. Only they are held and fetched."""
    copies: int = 0
    """0: a round is a sum, to which all who take part contribute. Else its state is worked out by
    one of them and kept by so many (by all members, where there are fewer): a round begins when
    so many are ready and one has work. Nothing is committed that one death could lose."""
    min_contributors: int = 0
    """K: a round may close on so many contributions (never voters); 0: all members'."""
    grace_s: float = 0.0
    """How long a round that has its K contributors waits for more."""
    probe_period_s: float = 0.7
    probe_timeout_s: float = 0.5
    indirect_probes: int = 3
    suspicion_s: float = 2.0
    """Silent peer: from first suspicion to death, at least (Lifeguard stretches it)."""
    closed_suspicion_s: float = 0.4
    """The same when the other end closed its connection."""
    quorum_timeout_s: float = 15.0
    """A majority unreachable for so long: fork or pause."""
    on_quorum_loss: str = "fork"
    """"fork" or "pause"."""
    election_s: float = 0.5
    """A coordinator that makes no progress with something due for so long is doubted."""
    retry_s: float = 0.25
    """Unanswered protocol messages are repeated after this."""
    reduce_timeout_s: float = 120.0
    """An attempt that has not finished after this is aborted."""
    hung_after_s: float = 60.0
    """No trainer progress for so long while others wait: evicted."""
    full_mesh_up_to: int = 4096
    """Up to so many members all are linked to all, which all-reduces need; in a larger crowd a
    member is linked to the first few and to some neighbours."""
    lifeguard: bool = True
    """Off: plain SWIM, for comparison. Its times do not stretch when this peer itself is slow or
    nobody confirms a suspicion, and suspects are not asked again out of turn."""
    straggler_grace: float = 0.5
    """Once half of the members have contributed, the others get this part of the time that took
    (and at least a second) before they are asked to close the round with what they have."""

    def __post_init__(self) -> None:
        if len(self.run) != 32:
            raise ValueError("run id is 32 bytes")
        if not self.tags or len(self.tags) > MAX_TAGS or len(set(self.tags)) != len(self.tags):
            raise ValueError(f"tags are 1 to {MAX_TAGS} different names")
        if self.takes is not None and not set(self.takes) <= set(self.tags):
            raise ValueError("a peer takes part in tags that the run has")
        if self.min_contributors < 0 or self.grace_s < 0 or self.copies < 0:
            raise ValueError("min_contributors, grace_s and copies are not negative")
        if self.on_quorum_loss not in ("fork", "pause"):
            raise ValueError(f"on_quorum_loss is 'fork' or 'pause', not {self.on_quorum_loss!r}")
        for name in ("probe_period_s", "probe_timeout_s", "suspicion_s", "closed_suspicion_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreStatus:
    """A snapshot for people and tools."""

    lineage: str
    epoch: int
    round: int
    """Of the first tag, as `durable_round`."""
    durable_round: int
    paused: str
    """Why no round begins; "" while they do."""
    members: Mapping[PeerId, str]
    """Peer → "alive", "suspect", "dead", "left" or "joining"."""
    names: Mapping[PeerId, str]
    coordinator: PeerId | None
