"""Error feedback: what a coarse codec left out of one contribution goes into the next one.

    c = β e + Δ          offered; a retry offers the same c
    e ← c − D(E(c))      once a committed round has counted it, and only then

(Seide et al. 2014, 1-bit SGD; with a decay β as in SparseLoCo, arXiv 2508.15706.) e is this peer's
own: nobody else ever needs it, and it is lost with the peer, or kept beside its checkpoints.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from decentral.state import aligned_zeros

if TYPE_CHECKING:
    from decentral.types import Array


class Feedback:
    """Used from the user's thread only."""

    def __init__(self, codec: str, decay: float, count: int) -> None:
        """`decay`: β in [0, 1]; `count`: values of a contribution."""
        self.residual = aligned_zeros(count)
        self._codec, self._decay = codec, decay

    def add_to(self, delta: Array) -> None:
        """Δ becomes c, in place."""
        delta += self._decay * self.residual

    def sent(self, contribution: Array) -> None:
        """A commit has counted this c."""
        self.residual[:] = contribution
        self.residual -= as_received(self._codec, contribution)


def as_received(codec: str, contribution: Array) -> Array:
    """D(E(c)): what the others add up of it."""
    from decentral import _native
    from decentral.collectives import topk

    received = aligned_zeros(len(contribution))
    if codec == "topk":
        topk.decode_add(topk.encode(contribution), received)
    else:
        _native.decode(codec, _native.encode(codec, contribution), received)
    return received
