"""Training as a graph of small committed states, each worked out by whoever has the lease.

    program.py    what a run consists of: cells, what their rounds need, how they are computed
    progress.py   which rounds may be computed now, given those that are committed
    leases.py     which member computes what, given the view
    alone.py      all of it in one process, in any order: the reference
    worker.py     a peer's part in it, over the mesh: what it computes (computing.py), keeps
                  (keeping.py, store.py) and hands over (handover.py)

A cell has rounds; round r of it is a pure function of its round r − 1 and of named rounds of other
cells. So it has the same bits whoever computes it (on equal hardware), and a lease is only a
hint: what the members' log commits, counts.
"""
