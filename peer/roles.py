"""What a role allows. A credential's role is what its holder may do at most.

    train      all of it
    relay      is linked, follows the log, carries others' links: for who has a good address
    observe    is linked and follows the log

Who does not train is never a member of a view, so it votes on nothing and contributes nothing. An
honest one does not try; the others need not rely on that: what it may not say ends its link.
"""

from __future__ import annotations

from typing import cast

from decentral.peer import messages as m
from decentral.peer.codec import code_of
from decentral.peer.credential import Role

_GUESTS_SAY = frozenset(
    code_of(kind)
    for kind in (m.Hello, m.Refuse, m.Gossip, m.PingReq, m.PingAck, m.Learn, m.JoinRequest)
)


def forbidden(role: Role, payload: bytes) -> str:
    """Why a peer of this role may not send this control message; empty if it may. State transfer
    and revocations, which are no messages of the core, are everybody's."""
    if role == "train":
        return ""
    length = payload[1] & 0x1F if len(payload) > 1 else 0
    code = payload[2 : 2 + length].decode("ascii", "replace")
    if code not in _GUESTS_SAY:
        return f"its role is {role}: it may not send {code[:8]!r}, which is for those who train"
    if code == code_of(m.Hello) and cast(m.Hello, m.unpack(payload)).member:
        return f"its role is {role}, and it calls itself a member"
    return ""
