"""All-reduce among the members of a view: plans as data, one native engine that executes them.

`Group` starts operations and `Work` is one that runs; `ring` plans who sends what to whom.
"""

from __future__ import annotations

from decentral.collectives.group import CODECS, Group, Stats, Work
from decentral.collectives.plan import Kind, Plan, Segment, Step, ring, validate

__all__ = [
    "CODECS",
    "Group",
    "Kind",
    "Plan",
    "Segment",
    "Stats",
    "Step",
    "Work",
    "ring",
    "validate",
]
