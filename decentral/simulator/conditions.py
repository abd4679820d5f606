"""What a simulated world is like: its network, its machines, its work. All of it from the seed."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

MBIT = 125_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """The defaults are a kind world: short ways, no loss, fast and equal machines."""

    farthest_s: float = 0.06
    """Latency of the worst pair; most pairs are closer."""
    jitter: float = 0.5
    """A message takes up to this much longer than the latency of its link."""
    loss: float = 0.0
    """Chance that a message must be sent again; on TCP that delays it and all behind it."""
    nat_share: float = 0.0
    """Part of the peers that nobody can dial without help from a third one."""
    drift_ppm: float = 0.0
    """Clocks run faster or slower than time by up to so much."""
    fsync_s: float = 0.0
    compute_s: float = 4.0
    """Inner steps of one round on an average machine."""
    reduce_s: float = 0.6
    """What an all-reduce takes besides its bytes."""
    checkpoint_s: float = 1.5
    state_bytes: int = 1 << 20
    lines_mbit: tuple[tuple[float, float], ...] = ((1000.0, 1000.0),)
    """Upload and download of the kinds of lines that peers have."""
    speed_spread: float = 0.6
    fault_every_s: float = 4.0
    """Mean time from one fault to the next."""


@dataclass(slots=True)
class Machine:
    """One peer's computer and line."""

    natted: bool
    upload: float
    """Bytes per second."""
    download: float
    compute: float
    """Time per unit of work; 1 is the average."""
    clock_rate: float
    clock_offset_s: float
    slowness: float = 1.0
    """Above 1 while something else uses the machine: the GPU, the disk."""
    disk_slowness: float = 1.0

    def clock(self, now: float) -> float:
        """What this machine's monotonic clock says at `now`."""
        return now * self.clock_rate + self.clock_offset_s

    def time_of(self, reading: float) -> float:
        """Inverse of `clock`."""
        return (reading - self.clock_offset_s) / self.clock_rate


def draw_conditions(rng: Random, duration_s: float) -> Conditions:
    """A world as unkind as real ones: from a rack to home lines on several continents."""
    compute_s = rng.uniform(4.0, max(4.0, min(20.0, duration_s / 30)))
    return Conditions(
        farthest_s=rng.choice((0.002, 0.03, 0.08, 0.15)),
        jitter=rng.choice((0.1, 0.5, 1.0)),
        loss=rng.choice((0.0, 0.001, 0.01, 0.03)),
        nat_share=rng.choice((0.0, 0.2, 0.4)),
        drift_ppm=200.0,
        fsync_s=rng.choice((0.0005, 0.004, 0.02)),
        compute_s=compute_s,
        reduce_s=rng.uniform(0.2, 1.0),
        checkpoint_s=rng.uniform(0.5, 3.0),
        state_bytes=int(2 ** rng.uniform(18, 22.5)),
        lines_mbit=((1000.0, 1000.0), (50.0, 250.0), (20.0, 100.0)),
        fault_every_s=rng.choice((6.0, 10.0, 16.0)),
    )


def draw_machine(rng: Random, conditions: Conditions, *, founder: bool) -> Machine:
    """A founder can be dialled: it has made the invite."""
    upload, download = rng.choice(conditions.lines_mbit)
    drift = conditions.drift_ppm * 1e-6
    return Machine(
        natted=not founder and rng.random() < conditions.nat_share,
        upload=upload * MBIT,
        download=download * MBIT,
        compute=1.0 + conditions.speed_spread * (rng.random() - 0.5),
        clock_rate=1.0 + drift * (2 * rng.random() - 1),
        clock_offset_s=1e6 * rng.random() if drift else 0.0,
    )
