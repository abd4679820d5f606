"""What the audit holds a run to, and what of it the run's own options say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    gap_limit_s: float = 10.0
    """I3: with a healthy quorum there is a commit within so long."""
    return_limit_s: float = 60.0
    """I3: whoever is well for so long at the end takes part in rounds again."""
    skip_rounds: int = 200
    """I7: samples that nobody holds and nobody counted for two to four times so many rounds are
    lost. What a deep rollback returns (64 rounds) takes about as many rounds to be granted."""
    outer_lr: float | None = 0.7
    outer_momentum: float | None = 0.6
    """None: nobody knows, and no sum is checked."""
    staleness_power: float = 0.5
    weights: str = "tokens"
    codec: str = "fp32"
    """Sums are checked only where the wire loses nothing."""

    @staticmethod
    def of(options: Mapping[str, Any]) -> Settings:
        """`options` of the driver's "run" line; others than ours are not looked at."""
        known = {key: options[key] for key in Settings.__slots__ if key in options}
        return Settings(**known)
