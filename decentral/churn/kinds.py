"""The faults that there are: how often, how long, and what they need of the system."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One row of the table. What it does is in `decentral.churn.faults`, under the same name."""

    says: str
    weight: int
    """How many of it there are in a deck of faults; the deck is shuffled and dealt."""
    for_s: tuple[float, float] = (0.0, 0.0)
    """How long it lasts: drawn from this range. For a death: until the restart."""
    seats: tuple[int, int] = (1, 1)
    """How many peers it hits: drawn from this range."""
    needs: str = ""
    """"network": hosts of their own (root, namespaces, TUN); "tmpfs", "cgroup": root."""
    takes_out: bool = True
    """Whether those hit count as missing while it lasts."""
    alone_s: float = 0.0
    """Nothing else begins for so long after it: the run needs a chance to come back."""


KINDS: dict[str, Kind] = {
    "kill": Kind(says="SIGKILL, then a restart with the same home", weight=10, for_s=(1, 6)),
    "stop": Kind(says="SIGSTOP for a while", weight=6, for_s=(0.5, 12)),
    "leave": Kind(says="SIGTERM: a clean leave, later back", weight=4, for_s=(1, 6)),
    "join": Kind(says="a newcomer, who leaves again", weight=5, for_s=(5, 15), takes_out=False),
    "join-storm": Kind(
        says="several newcomers at once", weight=2, for_s=(8, 15), seats=(4, 6), takes_out=False
    ),
    "restart-old": Kind(
        says="SIGKILL, and back with a state from long ago", weight=3, for_s=(10, 20)
    ),
    "partition": Kind(
        says="a minority is cut off, both ways", weight=2, for_s=(3, 15), seats=(2, 6),
        needs="network",
    ),
    "one-way": Kind(
        says="what these send reaches nobody else; they hear everything", weight=2, for_s=(3, 10),
        seats=(1, 2), needs="network",
    ),
    "non-transitive": Kind(
        says="two cannot reach each other, everybody else can", weight=2, for_s=(3, 12),
        seats=(2, 2), needs="network",
    ),
    "link-cut": Kind(says="a cable is pulled", weight=3, for_s=(0.5, 8), needs="network"),
    "loss-5": Kind(
        says="5 % of a host's packets are lost", weight=3, for_s=(3, 10), needs="network",
        takes_out=False,
    ),
    "loss-20": Kind(
        says="20 % of a host's packets are lost", weight=2, for_s=(3, 8), needs="network",
        takes_out=False,
    ),
    "bandwidth": Kind(
        says="a host's line falls to 1 %", weight=2, for_s=(3, 8), needs="network",
        takes_out=False,
    ),
    "delay": Kind(
        says="a host is 100 to 400 ms further away", weight=3, for_s=(3, 10), needs="network",
        takes_out=False,
    ),
    "half-open": Kind(
        says="a host vanishes without a FIN, and another process comes back", weight=3,
        for_s=(1, 6), needs="network",
    ),
    "corrupt": Kind(
        says="bits flip on a host's line, under fitting checksums", weight=2, for_s=(2, 5),
        needs="network",
    ),
    "slow": Kind(says="a peer's steps take ten times as long", weight=3, for_s=(3, 8),
                 takes_out=False),
    "disk-full": Kind(says="a peer's disk is full", weight=2, for_s=(2, 6), needs="tmpfs"),
    "clock": Kind(says="a peer's clock jumps by 5 to 60 s", weight=2, takes_out=False),
    "oom": Kind(says="the kernel kills a peer for its memory", weight=2, for_s=(1, 6),
                needs="cgroup"),
    "coordinator": Kind(says="SIGKILL of the coordinator", weight=4, for_s=(1, 6)),
    "entry": Kind(says="SIGKILL of the member through which a newcomer enters", weight=2,
                  for_s=(2, 6)),
    "rolling": Kind(says="everybody restarts, one after another", weight=1, alone_s=10),
    "everybody": Kind(says="SIGKILL of all, and all start again", weight=1, for_s=(1, 3),
                      alone_s=15),
    # Of the presets only: who comes stays, and who goes stays away.
    "spawn": Kind(says="a newcomer, who stays", weight=0, takes_out=False),
    "remove": Kind(says="SIGKILL for good", weight=0, takes_out=False),
}  # fmt: skip

ALL = tuple(name for name, kind in KINDS.items() if kind.weight)


def possible(kinds: tuple[str, ...], has: set[str]) -> tuple[str, ...]:
    """Those that this system can have; `has` as in `Kind.needs`."""
    return tuple(name for name in kinds if not KINDS[name].needs or KINDS[name].needs in has)
