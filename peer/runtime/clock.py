"""For harnesses: the core's clock jumps ahead, as after a hypervisor's pause."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from decentral.errors import ConfigError
from decentral.peer import protocol

if TYPE_CHECKING:
    from decentral.peer.runtime.node import Node

MAX_STEP_S = 86400.0


def step_clock(node: Node, request: Mapping[str, Any]) -> dict[str, Any]:
    """By a local command."""
    step_s = request.get("step_s")
    if not isinstance(step_s, float) or not 0 <= step_s <= MAX_STEP_S:
        raise ConfigError(f"clock takes step_s: 0 to {MAX_STEP_S:.0f} seconds")
    node.ahead_s += step_s
    node.feed(protocol.Tick())
    return {"ahead_s": node.ahead_s}
