"""What a person asks of the run through a local command, carried to the log and back."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from decentral.errors import ConfigError
from decentral.peer import protocol
from decentral.peer.credential import ROLES

if TYPE_CHECKING:
    from decentral.peer.runtime.node import Node

#: How often a command that waits for the log looks at it.
WISH_POLL_S = 0.05


async def wish(node: Node, what: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """Have it committed; returns once it is. ConfigError if it cannot be."""
    if node.card.role != ROLES[0]:
        raise ConfigError(f"this peer's role is {node.card.role}: it cannot {what} the run")
    if node.core is None or not node.joined:
        raise ConfigError(f"this peer is in no run yet: it cannot {what} it")
    number, reason = request.get("round", 0), request.get("reason", "")
    tag = request.get("module", "")
    if type(number) is not int or number < 0 or not type(reason) is type(tag) is str:
        raise ConfigError(f"{what} takes a round (an integer), a reason and a module (texts)")
    node.feed(protocol.Ask(what, number, reason, tag))
    while node.core is not None and not node.closed:
        outcome = node.core.wishes.outcome
        if outcome == "done":
            state = node.core.replica.state
            rounds = dict(state.rounds()) if state is not None else {}
            return {"round": rounds.get(tag, node.core.status().round)}
        if outcome:
            raise ConfigError(f"the run was not changed: {outcome}", phase=what)
        await asyncio.sleep(WISH_POLL_S)
    raise ConfigError("this peer has left the run meanwhile", phase=what)
