"""Calls between linked peers: one asks, the other answers. Sans-IO: events and time in, actions
out.

    Caller                                          Callee
      │ ── c/call (method, size, body) ──────────────▶ │  a place free? else queued, else "busy"
      │ ◀──────────────────── c/send (key) ─────────── │  its memory is there
      │ ══ the body as a blob ═══════════════════════▶ │  handler, on a thread of its own
      │ ◀─────────── c/answer (size, body), c/failed ─ │  the last word about this call
      │ ── c/fetch (key) ────────────────────────────▶ │
      │ ◀═══════════════════ the answer as a blob ════ │

Bodies of up to `INLINE_BYTES` are in the message itself, and the steps between fall away. A larger
one is announced with its size, and travels once its receiver has made room and chosen a key for it.
"""
