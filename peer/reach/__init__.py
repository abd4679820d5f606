"""Reaching a peer that cannot simply be dialled. Sans-IO: events and time in, actions out.

    want(peer) ─▶ dial its addresses ───────────────────────────────▶ direct, mapped
                  └ call it through a neighbour of both ── answer ─┬▶ it dials us: direct
                                                                   ├▶ both open at once: punched
                                                                   └▶ through a volunteer: relayed
    a relayed link ─ tries again, over itself ─▶ a better one takes its place

There is no special server: who observes our address, carries the signals or relays is any peer of
the run that we are linked to. Whatever way the bytes go, links are TLS from end to end.
"""
