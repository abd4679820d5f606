"""The committed state in the model, and what the model has over it.

Δ = anchor − θm           own work, as an outer gradient
model = anchor            adopting a state
model = anchor − Δ        adopting one that did not count own work: it stays queued
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from decentral.compute import Tensors
from decentral.state import HeldState, aligned_zeros

if TYPE_CHECKING:
    from decentral.types import Array


class Anchor:
    """Used from the user's thread only."""

    def __init__(self, tensors: Tensors) -> None:
        self.held: HeldState | None = None
        self.delta = aligned_zeros(tensors.layout.exchanged)
        """The outer gradient, always finite. A reduce borrows it and leaves it as it is."""
        self._tensors = tensors
        self._exchanged = slice(0, tensors.layout.exchanged)
        self._base: Array | None = None

    def set(self, held: HeldState, *, keep_own: bool = False, write: bool = True) -> None:
        """Hold this state and put it in the model; `keep_own` leaves `delta` on top of it.

        Without `write` the model has these parameters already.
        """
        from decentral import _native

        self.held = held
        if write:
            self._tensors.write(held.theta)
        # bf16 weights cannot hold θ: Δ must not contain the rounding, or it is trained away.
        self._base = self._tensors.as_read() if self._tensors.lossy else held.theta
        if keep_own:
            moved = held.theta.copy()
            _native.subtract(held.theta[self._exchanged], self.delta, moved[self._exchanged])
            self._tensors.write(moved)

    def take_delta(self) -> bool:
        """delta = anchor − θm. False, and delta is zero, if that is not finite."""
        from decentral import _native

        assert self._base is not None, "no anchor yet"
        local = aligned_zeros(len(self.delta))
        self._tensors.read(local)
        _native.subtract(self._base[self._exchanged], local, self.delta)
        if _native.all_finite(self.delta):
            return True
        self.delta[:] = 0
        return False
