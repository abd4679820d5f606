"""Hostile bytes: one process that speaks garbage, oversized announcements, replays, stale claims,
and valid handshakes followed by nonsense; nothing of it is accepted and nobody falls.

    behind decryption   mutations.py, forgery.py ─▶ cores.py, replays.py, guests.py, callers.py
                        ─▶ behind.py
    on real sockets     outsiders.py, middleman.py, insiders.py, insider_peer.py ─▶ siege.py
"""
