"""What `decentral status` tells: one stable object (README, "Status")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from decentral.peer.credential import ROLES
from decentral.peer.runtime.spectator import seen_by

if TYPE_CHECKING:
    from decentral.peer.runtime.link import Link
    from decentral.peer.runtime.node import Node


def status(node: Node, training: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Called on the loop's thread. `training`: by tag, what the trainer shows.

    With several tags ``tags`` tells about each, and what has one value only is of the leading one.
    """
    core = node.core.status() if node.core else None
    leading = node.leading_tag
    scopes = {tag: one for tag, one in _tags(node, training).items() if tag}
    lead = scopes.get(leading, {})
    held, shown = node.held.get(leading), training.get(leading, {})
    members = dict(core.members) if core else {}
    seen = seen_by(node)
    watched = seen.view.members if seen is not None and node.card.role != ROLES[0] else ()
    for peer in watched:
        if members.get(peer, "joining") == "joining":
            members[peer] = "alive"
    names = core.names if core else {}
    return {
        "peer": node.me,
        "name": node.config.name,
        "run": node.card.run.hex() if node.card.run else "",
        "role": node.card.role,
        "lineage": seen.view.lineage if seen else "",
        "epoch": seen.view.epoch if seen else 0,
        "round": lead.get("round", seen.scopes[0].round if seen else 0),
        "durable_round": lead.get("durable_round", seen.scopes[0].durable_round if seen else 0),
        "paused": seen.paused if seen else "",
        "coordinator": core.coordinator if core else None,
        "members": [
            {"peer": peer, "name": names.get(peer, ""), "state": state}
            for peer, state in members.items()
        ],
        "state_hash": held.root.hex() if held else _watched(node),
        "links": [*(_link(node, link) for link in node.links.all()), *_failed(node)],
        "nat": node.reaching.report(),
        "strategy": shown.get("strategy"),
        "loss": shown.get("loss"),
        "tokens": shown.get("tokens", 0),
        **({"tags": scopes} if scopes else {}),
    }


def doctor(node: Node) -> dict[str, Any]:
    """What `decentral doctor` judges by."""
    names = node.core.status().names if node.core else {}
    neighbours = node.reaching.reach.ctx.neighbours
    links = [*(_link(node, link) for link in node.links.all()), *_failed(node)]
    return {
        "peer": node.me,
        "name": node.config.name,
        "port": node.links.listening_port,
        "nat": node.reaching.report(),
        "mapping": node.reaching.mapping_says,
        "relaying": len(node.reaching.reach.service.relaying),
        "links": [
            {
                **link,
                "name": names.get(link["peer"], ""),
                "skew_s": neighbours[link["peer"]].skew_s if link["peer"] in neighbours else None,
            }
            for link in links
        ],
    }


def _watched(node: Node) -> str:
    """Who does not train holds no state, but knows what is committed."""
    seen = seen_by(node) if node.card.role != ROLES[0] else None
    return seen.scopes[0].root.hex() if seen is not None else ""


def _tags(node: Node, training: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What the log says of each tag, and what of it this peer holds (null: no part in it)."""
    state = seen_by(node)
    return {
        scope.tag: {
            "round": scope.round,
            "durable_round": scope.durable_round,
            "state_hash": node.held[scope.tag].root.hex() if scope.tag in node.held else None,
            "loss": training.get(scope.tag, {}).get("loss"),
            "tokens": training.get(scope.tag, {}).get("tokens"),
        }
        for scope in (state.scopes if state is not None else ())
    }


def _link(node: Node, link: Link) -> dict[str, Any]:
    stats, rates = node.endpoint.stats(link.id), node.reaching.rates(link)
    return {
        "peer": link.peer,
        **node.reaching.about(link),
        "rtt_ms": round(stats.rtt_us / 1000, 3) if stats.rtt_us else None,
        "tx_mbps": rates[0],
        "rx_mbps": rates[1],
        "bytes_sent": stats.control_bytes_sent + stats.bulk_bytes_sent,
        "bytes_received": stats.control_bytes_received + stats.bulk_bytes_received,
    }


def _failed(node: Node) -> list[dict[str, Any]]:
    """Peers that no way leads to, and why. Not those that are gone for good as far as we know."""
    opinions = node.core.status().members if node.core else {}
    inside = node.view.members if node.view is not None else ()
    return [
        {
            "peer": peer,
            "class": "failed",
            "how": "; ".join(f"{rung}: {why}" for rung, why in rungs),
            "relay": None,
            "seconds": None,
            "rtt_ms": None,
            "tx_mbps": None,
            "rx_mbps": None,
            "bytes_sent": 0,
            "bytes_received": 0,
        }
        for peer, rungs in node.reaching.reach.caller.failed.items()
        if peer in inside or opinions.get(peer) in ("alive", "suspect", "joining")
    ]
