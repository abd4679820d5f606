"""What the model has over the committed state.

    own work     = base − θm                    θm: the model; base: where it started from
    adopting     θm, base ← θ                   waiting for it, as in DiLoCo
                 θm ← θ + (θm − base), base ← θ      work that no commit has counted stays on top
                 as the strategy says           overlapped with compute (`decentral.strategies`)

Δ, what a round is offered, is own work and what error feedback adds to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from decentral.compute import Tensors
from decentral.feedback import Feedback
from decentral.state import HeldState, aligned_zeros

if TYPE_CHECKING:
    from decentral.types import Array


class Anchor:
    """Used from the user's thread only."""

    def __init__(self, tensors: Tensors, feedback: Feedback | None = None) -> None:
        self.held: HeldState | None = None
        """The committed state that was adopted last."""
        self._tensors, self._feedback = tensors, feedback
        self._exchanged = slice(0, tensors.layout.exchanged)
        self._base: Array | None = None
        self._offered = aligned_zeros(tensors.layout.exchanged)

    @property
    def delta(self) -> Array:
        """What was offered last. A reduce may borrow it."""
        return self._offered

    @property
    def residual(self) -> Array | None:
        """Of error feedback, if there is any; the array itself."""
        return self._feedback.residual if self._feedback is not None else None

    def local(self) -> Array:
        """θm, in a fresh buffer: the part that is exchanged."""
        local = aligned_zeros(len(self._offered))
        self._tensors.read(local)
        return local

    def own(self) -> Array:
        """base − θm, in a fresh buffer."""
        from decentral import _native

        assert self._base is not None, "no anchor yet"
        local = self.local()
        _native.subtract(self._base[self._exchanged], local, local)
        return local

    def offer(self, own: Array) -> Array | None:
        """Δ from own work; the same buffer until the next offer. None if it is not finite."""
        from decentral import _native

        if not _native.all_finite(own):
            return None
        self._offered[:] = own
        if self._feedback is not None:
            self._feedback.add_to(self._offered)
        return self._offered

    def counted(self) -> None:
        """A commit has counted what was offered."""
        if self._feedback is not None:
            self._feedback.sent(self._offered)
            self._tensors.layout.clear_padding(self._feedback.residual)

    def set(self, held: HeldState, *, write: bool = True) -> None:
        """Hold this state and put it in the model.

        Without `write` the model has these parameters already.
        """
        self.held = held
        if write:
            self._tensors.write(held.theta)
        # bf16 weights cannot hold θ: own work must not contain the rounding, or it is trained away.
        self._base = self._tensors.as_read() if self._tensors.lossy else held.theta

    def rebase(self, held: HeldState) -> None:
        """Hold this state, with all own work on top of it."""
        from decentral import _native

        own = self.own()
        if not _native.all_finite(own):
            own[:] = 0
        moved = aligned_zeros(len(own))
        _native.subtract(held.theta[self._exchanged], own, moved)
        self.place(held, moved)

    def place(self, held: HeldState, local: Array, base: Array | None = None) -> None:
        """Hold this state; θm = `local`, and own work is measured from `base` (None: from θ)."""
        self.held = held
        whole = held.theta.copy()
        whole[self._exchanged] = local
        self._tensors.write(whole)
        from_here = held.theta if base is None else whole
        if base is not None and base is not local:
            from_here = held.theta.copy()
            from_here[self._exchanged] = base
        if self._tensors.lossy:
            # As in `set`: what rounding has moved the model by, the base is moved by, too.
            from_here = from_here + (self._tensors.as_read() - whole)
        self._base = from_here
