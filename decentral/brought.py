"""What a peer brings into a run: states from its disk, or a founder's own parameters.

resumed     the newest checkpoint of this run, per tag       and what is this peer's alone
initial     a founder's parameters as they are               round 0
given       a founder's, of modules that others will train
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from decentral.checkpoint import Own, load_latest
from decentral.compute import Inner, Tensors
from decentral.errors import ConfigError
from decentral.mesh_port import Holding, MeshPort
from decentral.modules import Modules
from decentral.options import RunOptions
from decentral.outer_round import OuterRounds
from decentral.reporting import Reporter
from decentral.state import HeldState, Meta, aligned_zeros, seal, unseal

if TYPE_CHECKING:
    from decentral.types import Array


class Brought:
    """Used once, while a run begins; and for what a peer keeps for the next time."""

    def __init__(
        self,
        mesh: MeshPort,
        options: RunOptions,
        strategy: str,
        rounds: Mapping[str, OuterRounds],
        reporters: Mapping[str, Reporter],
        inner: Inner,
    ) -> None:
        self._mesh, self._options, self._inner = mesh, options, inner
        self._rounds, self._reporters = rounds, reporters
        self._target = Meta(
            target_rounds=options.rounds or 0,
            target_tokens=options.target_tokens or 0,
            strategy=strategy,
        )
        self.resumed: dict[str, HeldState] = {}
        self._own: dict[str, Own] = {}

    def holdings(self, *, founder: bool, modules: Modules | None) -> dict[str, Holding]:
        """By tag; the model has what this peer trains from. Raises a CorruptCheckpointError where
        there are checkpoints and none can be used."""
        for tag in self._rounds:
            held = self.resume(tag)
            if held is not None:
                self.resumed[tag] = held
        holdings = {tag: self._holding(tag, founder) for tag in self._rounds}
        if founder and modules is not None:
            holdings |= {tag: self._gift(part) for tag, part in modules.given.items()}
        return holdings

    def resume(self, tag: str = "") -> HeldState | None:
        """What this peer's disk has of the tag."""
        directory = self._options.checkpoints(tag)
        if directory is None or not self._mesh.run_id:
            return None
        layout = self._rounds[tag].tensors.layout
        loaded = load_latest(directory, layout.schema(), run=self._mesh.run_id)
        if loaded is None:
            return None
        for error in loaded.passed_over:
            self._reporters[tag].fault("checkpoint", error)
        held = unseal(layout, loaded.state)
        self._own[tag] = loaded.own
        for name in ("target_rounds", "target_tokens"):
            asked, has = getattr(self._target, name), getattr(held.meta, name)
            if asked and asked != has:
                says = f"{name}={asked} is ignored: the run was founded with {has or 'no such end'}"
                self._reporters[tag].fault("option", ConfigError(says, phase="resume"))
        return held

    def recall(self, tag: str) -> None:
        """What is this peer's alone counts again; error feedback only if the run goes on from the
        very state that it was kept with: what has been counted since may not be sent twice."""
        held, own = self.resumed.get(tag), self._own.pop(tag, {})
        outer = self._rounds[tag]
        if held is not None and outer.held.root == held.root:
            outer.recall(own)
        inner = {k.removeprefix("inner/"): v for k, v in own.items() if k.startswith("inner/")}
        if inner and self._options.keep_inner:
            self._inner.load(inner)

    def own(self, tag: str) -> dict[str, Array]:
        """What this peer alone needs to go on from here: kept with the tag's checkpoints, and the
        inner optimizer with those of the first."""
        own = self._rounds[tag].private()
        if self._options.keep_inner and tag == next(iter(self._rounds)):
            own |= {f"inner/{name}": array for name, array in self._inner.state().items()}
        return own

    def _holding(self, tag: str, founder: bool) -> Holding:
        """Of a tag that this peer takes part in; it trains from there."""
        outer, resumed = self._rounds[tag], self.resumed.get(tag)
        initial = None
        if resumed is not None:
            outer.take(resumed, write=True)
        elif founder:
            initial = self._found(outer.tensors)
            outer.take(initial, write=False)
        return Holding(
            schema=outer.tensors.layout.schema(),
            initial=initial.state if initial is not None else None,
            resumed=resumed.state if resumed is not None else None,
        )

    def _gift(self, tensors: Tensors) -> Holding:
        """A founder's initial state of a module that others will train."""
        state = self._found(tensors).state
        return Holding(schema=tensors.layout.schema(), initial=state, takes=False)

    def _found(self, tensors: Tensors) -> HeldState:
        momentum = aligned_zeros(tensors.layout.trainable)
        return seal(tensors.layout, tensors.as_read(), momentum, self._target)
