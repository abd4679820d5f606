"""How long a suspect has to refute: Lifeguard's formula.

least ──────────────────────────────── most      no confirmation: wait `most`
  ▲ shrinks with log(confirmations) ◀──┘         as many as expected: `least`
"""

from __future__ import annotations

import math

STRETCH = 3.0


def timeout_s(least_s: float, confirmations: int, expected: int, health: int) -> float:
    """Time from first suspicion to death. `health` > 0: we doubt ourselves, so take longer."""
    least_s *= 1 + health
    if expected < 1:
        return least_s
    most_s = STRETCH * least_s
    shrink = math.log(confirmations + 1) / math.log(expected + 1)
    return max(least_s, most_s - (most_s - least_s) * shrink)
