"""What `decentral status` tells: one stable object (README, "Status")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from decentral.peer.runtime.node import Node


def status(node: Node, training: Mapping[str, Any]) -> dict[str, Any]:
    """Called on the loop's thread."""
    core = node.core.status() if node.core else None
    members = core.members if core else {}
    names = core.names if core else {}
    return {
        "peer": node.me,
        "name": node.config.name,
        "run": node.card.run.hex() if node.card.run else "",
        "lineage": core.lineage if core else "",
        "epoch": core.epoch if core else 0,
        "round": core.round if core else 0,
        "durable_round": core.durable_round if core else 0,
        "coordinator": core.coordinator if core else None,
        "members": [
            {"peer": peer, "name": names.get(peer, ""), "state": state}
            for peer, state in members.items()
        ],
        "state_hash": node.held.root.hex() if node.held else "",
        "links": [_link(node, link.id, link.peer, link.inbound) for link in node.links.all()],
        "nat": {"mapping": "unknown", "filtering": "unknown", "addresses": node.card.addresses},
        "strategy": training.get("strategy"),
        "loss": training.get("loss"),
        "tokens": training.get("tokens", 0),
    }


def _link(node: Node, number: int, peer: str, inbound: bool) -> dict[str, Any]:
    stats = node.endpoint.stats(number)
    return {
        "peer": peer,
        "class": "direct",
        "how": "inbound" if inbound else "dialled",
        "rtt_ms": round(stats.rtt_us / 1000, 3) if stats.rtt_us else None,
        "tx_mbps": None,
        "rx_mbps": None,
        "relay": None,
        "bytes_sent": stats.control_bytes_sent + stats.bulk_bytes_sent,
        "bytes_received": stats.control_bytes_received + stats.bulk_bytes_received,
    }
