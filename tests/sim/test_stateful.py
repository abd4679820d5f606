"""Hypothesis writes the story of a small mesh, and shrinks whichever breaks an invariant."""

from __future__ import annotations

import os
from dataclasses import replace

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from decentral.peer.protocol import Ask, Leave
from decentral.simulator.conditions import Conditions
from decentral.simulator.scenarios import simulated_config
from decentral.simulator.world import Node, World
from decentral.types import PeerId

MOST = 8
CONVERGE_S = 30.0
GOODBYE_S = 4.0
"""Whoever was about to leave has left by then, and comes back with the others."""
WHO = st.integers(0, MOST - 1)


class Story(RuleBasedStateMachine):
    """Peers come, go, stop, part and meet again; then all heals, and they must agree."""

    @initialize(
        seed=st.integers(0, 1 << 30), peers=st.integers(1, 6), quorum=st.sampled_from([0, 2])
    )
    def begin(self, seed: int, peers: int, quorum: int) -> None:
        config = replace(simulated_config(), quorum_timeout_s=4.0, min_contributors=quorum)
        self.world = World(seed, config)
        self.world.conditions = Conditions(compute_s=1.0, reduce_s=0.2, checkpoint_s=0.3)
        founder = self.world.add()
        founder.boot(found=True)
        for _ in range(peers - 1):
            self.world.add().boot(entries=(founder.peer,))
        self.world.run(4.0)

    def node(self, who: int) -> Node:
        return self.world.node(who % len(self.world.nodes))

    def doors(self, node: Node) -> tuple[PeerId, ...]:
        """What its join word names: some of the others, whether they live or not."""
        return tuple(peer for peer in self.world.nodes if peer != node.peer)[:3]

    # -------------------------------------------------------------- what may happen

    @rule(seconds=st.sampled_from([0.05, 0.3, 1.0, 3.0, 8.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.run(self.world.now + seconds)

    @rule(who=WHO)
    def dies(self, who: int) -> None:
        self.node(who).crash()

    @rule(who=WHO, step=st.integers(0, 12), power=st.booleans())
    def dies_between_two_actions(self, who: int, step: int, power: bool) -> None:
        node = self.node(who)
        if node.up:
            node.crash_after, node.power_fails = step, power

    @rule(who=WHO)
    def loses_power(self, who: int) -> None:
        self.node(who).power_cut()

    @rule(who=WHO)
    def starts_again(self, who: int) -> None:
        node = self.node(who)
        if not node.up:
            node.boot(entries=self.doors(node))

    @rule(who=WHO, seconds=st.sampled_from([0.5, 4.0, 12.0]))
    def stops_for_a_while(self, who: int, seconds: float) -> None:
        self.node(who).pause(seconds)

    @precondition(lambda self: len(self.world.nodes) < MOST)
    @rule()
    def somebody_joins(self) -> None:
        node = self.world.add()
        node.boot(entries=self.doors(node))

    @rule(who=WHO)
    def leaves(self, who: int) -> None:
        node = self.node(who)
        if node.up and not node.frozen:
            node.deliver(Leave("enough"))

    @rule(mask=st.integers(1, (1 << MOST) - 2))
    def network_splits(self, mask: int) -> None:
        sides = {peer: mask >> index & 1 for index, peer in enumerate(self.world.nodes)}
        self.world.network.partition(sides)

    @rule(a=WHO, b=WHO, both=st.booleans())
    def pair_is_cut(self, a: int, b: int, both: bool) -> None:
        one, other = self.node(a).peer, self.node(b).peer
        if one != other:
            self.world.network.cut(one, other)
            if both:
                self.world.network.cut(other, one)

    @rule()
    def network_heals(self) -> None:
        self.world.network.heal()

    @rule(pick=st.integers(0, 63))
    def a_link_breaks(self, pick: int) -> None:
        links = self.world.network.links()
        if links:
            self.world.network.reset(links[pick % len(links)])

    @rule(who=WHO, what=st.sampled_from(["pause", "resume", "resume"]))
    def somebody_asks(self, who: int, what: str) -> None:
        node = self.node(who)
        if node.up and not node.frozen:
            node.deliver(Ask(what))

    # -------------------------------------------------------------- what must hold

    @invariant()
    def nothing_is_violated(self) -> None:
        if hasattr(self, "world"):
            assert not self.world.checker.violations, self.world.checker.violations[:3]

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        world = self.world
        world.network.heal()
        for node in world.nodes.values():
            node.crash_after = None
            node.wake()
        world.run(world.now + GOODBYE_S)
        for node in world.nodes.values():
            if not node.up:
                node.boot(entries=self.doors(node))
        world.run(world.now + CONVERGE_S, self._agree)
        assert self._agree(), f"no agreement {CONVERGE_S:.0f} s after everything healed"
        for node in world.alive():
            node.deliver(Ask("resume"))
        before = world.checker.rounds_committed
        world.run(world.now + 15.0)
        assert world.checker.rounds_committed > before, "no round commits"
        assert not world.checker.violations, world.checker.violations[:3]

    def _agree(self) -> bool:
        cores = [node.core for node in self.world.alive()]
        states = [core.replica.state for core in cores if core is not None]
        views = {state.view for state in states if state is not None}
        inside = all(core is not None and core.replica.member for core in cores)
        return inside and len(views) == 1 and len(next(iter(views)).members) == len(cores)


FRESH = bool(os.environ.get("DECENTRAL_FRESH"))
"""`make soak-sim` tells new stories; here they are the same each time."""
Story.TestCase.settings = settings(
    derandomize=not FRESH,
    max_examples=200 if FRESH else 40,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
    print_blob=True,
)
TestStory = Story.TestCase


def test_a_newcomer_that_has_missed_an_address_asks_for_it() -> None:
    """Two newcomers, who knew of each other only through a member whose link broke."""
    story = Story()
    story.begin(seed=313, peers=3, quorum=0)
    story.loses_power(who=0)
    for _ in range(3):
        story.somebody_joins()
    story.a_link_breaks(pick=0)
    story.dies(who=4)
    story.time_passes(seconds=3.0)
    story.teardown()
