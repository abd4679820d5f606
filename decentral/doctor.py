"""What a peer's facts mean, in words, and what would make it easier to reach.

Pure: facts (what ``doctor`` of the local control gives, see `decentral.peer.runtime.report`) in,
findings out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from decentral.types import short

SKEW_WARN_S = 30.0
SKEW_MOST_S = 600.0
"""Credentials tolerate a clock that is wrong by so much."""
SLOW_RTT_MS = 300.0

#: With which other NATs a hole can be punched, by the name that people know ours by.
OUTLOOK = {
    "public": "anybody can dial this peer",
    "public?": "this peer has an address of its own; whether strangers get in is not known yet",
    "firewall": "holes can be punched through the firewall, except to symmetric NATs that guess",
    "full cone": "anybody can dial this peer at its outer address",
    "address-restricted cone": "holes can be punched to all kinds of NAT",
    "port-restricted cone": "holes can be punched to all kinds of NAT; to symmetric ones by many "
    "tries at once",
    "symmetric": "holes can be punched to all but symmetric NATs, for which a relay is needed",
    "unknown": "not known: nobody has said yet what our address looks like from outside",
}


@dataclass(frozen=True, slots=True)
class Finding:
    id: str
    """Stable, for tools."""
    level: Literal["ok", "info", "warning", "error"]
    says: str
    fix: str = ""
    """What to do about it; "": nothing needs doing."""

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def findings(facts: Mapping[str, Any]) -> list[Finding]:
    """Most pressing ones first."""
    order = ("error", "warning", "info", "ok")
    found = [*_nat(facts), *_port(facts), *_links(facts), *_clock(facts), *_relaying(facts)]
    return sorted(found, key=lambda one: order.index(one.level))


def _open_a_port(facts: Mapping[str, Any]) -> str:
    port = facts["port"]
    return (
        f"switch on UPnP, NAT-PMP or PCP in the router, or forward TCP port {port} to this machine "
        f"and start the peer with --listen 0.0.0.0:{port}; IPv6, where the provider has it, also "
        f"does"
    )


def _nat(facts: Mapping[str, Any]) -> Iterator[Finding]:
    nat = facts["nat"]
    called, at = nat["called"], nat["address"]
    if called == "unknown" and not nat["mapped"]:
        if any(link["class"] != "failed" for link in facts["links"]):
            fix = "wait a moment; one peer that this one can dial gives an address, two tell more"
        else:
            fix = "join a run through a peer with a public address"
        yield Finding("nat-unknown", "info", "The NAT's behaviour is not known yet.", fix)
        return
    says = f"Seen from outside this peer is at {at or nat['mapped']}: {called}; {OUTLOOK[called]}."
    if nat["mapped"] or called in ("public", "full cone"):
        yield Finding("nat", "ok", says)
    elif called == "symmetric":
        yield Finding("nat-symmetric", "warning", says, _open_a_port(facts))
    else:
        yield Finding("nat", "info", says, _open_a_port(facts))


def _port(facts: Mapping[str, Any]) -> Iterator[Finding]:
    nat, mapping = facts["nat"], facts["mapping"]
    if nat["mapped"]:
        yield Finding("port-mapping", "ok", f"The router maps {nat['mapped']} to this peer.")
    elif mapping and nat["called"] not in ("public", "full cone"):
        yield Finding("port-mapping", "info", f"No port mapping: {mapping}.", _open_a_port(facts))


def _links(facts: Mapping[str, Any]) -> Iterator[Finding]:
    for link in facts["links"]:
        who = link["name"] or short(link["peer"])
        match link["class"]:
            case "failed":
                yield Finding(
                    "unreached",
                    "error",
                    f"No way leads to {who} ({link['how']}).",
                    "a peer with a public address that runs with --relay on helps at once; "
                    + _open_a_port(facts),
                )
            case "relayed":
                yield Finding(
                    "relayed",
                    "warning",
                    f"The link to {who} goes {link['how']}: its bandwidth is the relay's.",
                    _open_a_port(facts),
                )
        if (link["rtt_ms"] or 0) > SLOW_RTT_MS:
            yield Finding(
                "far", "info", f"{who} is {link['rtt_ms']:.0f} ms away: more inner steps per round "
                "(a larger H) make that matter less.",
            )  # fmt: skip


def _clock(facts: Mapping[str, Any]) -> Iterator[Finding]:
    """Ours is wrong if most others agree on another time."""
    skews = sorted(link["skew_s"] for link in facts["links"] if link.get("skew_s") is not None)
    if not skews:
        return
    middle = skews[len(skews) // 2]
    says = f"This machine's clock is {abs(middle):.1f} s {'behind' if middle > 0 else 'ahead'}"
    if abs(middle) > SKEW_MOST_S:
        says += ": credentials look stale, or not valid yet"
        yield Finding(
            "clock", "error", f"{says}.", "set the clock (systemctl start systemd-timesyncd)"
        )
    elif abs(middle) > SKEW_WARN_S:
        yield Finding("clock", "warning", f"{says}.", "set the clock, for example with NTP")
    else:
        yield Finding("clock", "ok", "The clock agrees with the other peers' within half a minute.")


def _relaying(facts: Mapping[str, Any]) -> Iterator[Finding]:
    if facts["nat"]["relays"]:
        number = facts["relaying"]
        yield Finding(
            "relay", "ok", f"This peer relays for others (pairs at the moment: {number})."
        )
