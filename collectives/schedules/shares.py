"""How much of the buffer each participant of a butterfly should own: water-filling."""

from __future__ import annotations

from collections.abc import Sequence


def shares(bytes_s: Sequence[float]) -> list[float]:
    """Shares w (sum 1, none negative) that minimize max over i of (1 + (n - 2) w_i) / bytes_s[i].

    Participant i sends its contributions to the others' shares, 1 - w_i of the buffer, and its own
    result to n - 1 others: 1 + (n - 2) w_i in all, and receives as much. So `bytes_s` is the
    smaller of what it can send and receive, and the formula its time per byte of the buffer.

    All that own anything finish together, at time t per byte: w_i = (t b_i - 1) / (n - 2). Those
    who would need longer than t for the mere 1 own nothing. With the m fastest as owners, sum w = 1
    gives t = (n - 2 + m) / sum b; the right m is the largest whose slowest owner gets a share above
    zero. The result is the best even below the bound that the slowest peer sets: among the others
    the maximum is smallest, too, which leaves room for other traffic.

    With n = 2 the factor n - 2 is 0: each sends and receives the buffer once whatever the shares.
    They are even then, because adding up is work, too.
    """
    members = len(bytes_s)
    if members <= 2:
        return [1 / members] * members
    fastest = sorted(bytes_s, reverse=True)
    time, total = 0.0, 0.0
    for owners, rate in enumerate(fastest, start=1):
        with_this = (members - 2 + owners) / (total + rate)
        if owners > 1 and with_this * rate <= 1:
            break
        total += rate
        time = with_this
    return [max(0.0, (time * rate - 1) / (members - 2)) for rate in bytes_s]
