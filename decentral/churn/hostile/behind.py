"""What needs no sockets: each layer's own entry, with bytes as they come out of TLS."""

from __future__ import annotations

from typing import Any

from decentral.churn.hostile.callers import attack_calls
from decentral.churn.hostile.cores import attack_cores
from decentral.churn.hostile.guests import attack_admission, attack_transfer
from decentral.churn.hostile.replays import attack_with_replays


def run(
    seed: int = 1,
    *,
    messages: int = 60_000,
    transfers: int = 38_000,
    calls: int = 10_000,
    admissions: int = 2_000,
    replays: int = 10_000,
) -> dict[str, Any]:
    """Attack with so many messages behind decryption."""
    cores = attack_cores(messages, seed)
    again = attack_with_replays(replays, seed)
    admission, transfer = attack_admission(admissions, seed), attack_transfer(transfers, seed)
    called = attack_calls(calls, seed)
    notes = [f"PeerCore.handle: {one}" for one in cores.raised]
    notes += [f"replays to PeerCore.handle: {one}" for one in again.accepted]
    notes += [f"Admission.receive: {one}" for one in admission.raised]
    notes += [f"state transfer: {one}" for one in transfer.raised]
    notes += [f"calls: {one}" for one in called.raised]
    return {
        "PeerCore.handle, mutated": {
            "sent": sum(cores.sent.values()),
            "kinds": len(cores.sent),
            "refused": cores.refused,
            "well-formed": cores.heeded,
            "raised": len(cores.raised),
        },
        "PeerCore.handle, replayed or stale": {
            "sent": sum(again.sent.values()),
            "kinds": len(again.sent),
            "rounds_meanwhile": again.rounds,
            "accepted": len(again.accepted),
        },
        "Admission.receive": {
            "sent": sum(admission.sent.values()),
            "refused": admission.refused,
            "wrong": len(admission.raised),
        },
        "Donor.handle, Fetcher.received": {
            "sent": sum(transfer.sent.values()),
            "refused": transfer.refused,
            "raised": len(transfer.raised),
        },
        "Caller.received, Callee.received": {
            "sent": sum(called.sent.values()),
            "refused": called.refused,
            "raised": len(called.raised),
        },
        "notes": notes,
    }
