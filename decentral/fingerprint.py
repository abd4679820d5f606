"""What all peers of a run must agree on before they train together, and what to say if not.

The model is not in it: a peer may hold a part of it only. A newcomer compares its tensors with the
committed state's before it fetches any, and names the first that differs (`check_schema` in
`decentral.peer.manifest`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from decentral.strategies.base import Strategy


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """`digest` is compared when a peer joins; `facts` are there to name what differs."""

    facts: Mapping[str, str]

    @property
    def digest(self) -> bytes:
        """SHA-256 of the facts in canonical JSON."""
        text = json.dumps(dict(self.facts), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).digest()

    def difference(self, theirs: Mapping[str, str]) -> str:
        """One clause per fact that differs: "strategy.sync_every is 15 here and 100 there"."""
        clauses = []
        for name in sorted(self.facts.keys() | theirs.keys()):
            here, there = self.facts.get(name, "absent"), theirs.get(name, "absent")
            if here != there:
                clauses.append(f"{name} is {here} here and {there} there")
        return "; ".join(clauses)


def fingerprint(
    strategy: Strategy,
    *,
    tags: Sequence[str] = ("",),
    recipe: str = "",
    version: str = "",
    dataset: str = "",
    seed: int = 0,
) -> Fingerprint:
    """Strategy options, the modules' tags, declared versions; never source text."""
    facts = {
        "recipe": recipe,
        "recipe.version": version,
        "modules": ", ".join(tags) or "one",
        "dataset": dataset,
        "seed": str(seed),
        "strategy": strategy.name,
    }
    facts |= {f"strategy.{name}": repr(value) for name, value in strategy.options().items()}
    return Fingerprint(facts)


def dataset_fact(dataset: Any) -> str:
    """Its length, and its own `digest` (a string) where it has one."""
    return f"{len(dataset)} samples {getattr(dataset, 'digest', '')}".strip()
