"""Simulated all-reduces: they need every participant and every link from start to end.

all have joined ──▶ bytes / slowest line ──▶ done on each, at slightly different moments
      └─ a death, a broken link, an abort: fails wherever it is not done yet
      └─ a stopped process, a stalled link: waits
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from decentral.peer.protocol import StartReduce
from decentral.types import Contribution, PeerId

if TYPE_CHECKING:
    from decentral.simulator.node import Node
    from decentral.simulator.world import World

NOTICE_S = 0.3
"""How long native code takes to notice that a participant is gone."""
LOOK_AGAIN_S = 0.25
KEPT = 64


@dataclass(slots=True)
class _Reduce:
    tag: str
    round: int
    attempt: int
    participants: tuple[PeerId, ...]
    contributions: tuple[Contribution, ...]
    joined: dict[PeerId, int] = field(default_factory=dict)
    done: set[PeerId] = field(default_factory=set)
    failed: str = ""
    suspect: PeerId | None = None

    @property
    def running(self) -> bool:
        return not self.failed and len(self.done) < len(self.participants)


class Reduces:
    def __init__(self, world: World) -> None:
        self.world = world
        self._known: dict[tuple[object, ...], _Reduce] = {}

    def join(self, node: Node, action: StartReduce) -> None:
        key = (action.view, action.tag, action.round, action.attempt, action.participants)
        one = self._known.get(key)
        if one is None:
            one = self._known[key] = _Reduce(
                action.tag,
                action.round,
                action.attempt,
                action.participants,
                action.contributions,
            )
            for old in list(self._known)[:-KEPT]:
                del self._known[old]
        one.joined[node.peer] = node.life
        if one.contributions != action.contributions:
            self._fail(one, None, "members disagree about the operation")
        if one.failed:
            self._tell_failure(one, node.peer)
        elif len(one.joined) == len(one.participants):
            self._begin(one)

    def _begin(self, one: _Reduce) -> None:
        nodes = [self.world.nodes[peer] for peer in one.participants]
        full = len(nodes) <= self.world.config.full_mesh_up_to
        for a in nodes:
            for b in nodes if full else ():
                if a is not b and b.peer not in a.links:
                    self._fail(one, b.peer, "no link")
                    return
        world = self.world
        slowest = min(min(node.machine.upload, node.machine.download) for node in nodes)
        parts = 2 * (len(nodes) - 1) / len(nodes)
        takes_s = world.conditions.reduce_s + parts * world.conditions.state_bytes / slowest
        for peer in one.participants:
            world.after(takes_s * (0.9 + 0.2 * world.rng.random()), self._finish, one, peer)
        return

    def _finish(self, one: _Reduce, peer: PeerId) -> None:
        if one.failed:
            return
        node = self.world.nodes[peer]
        held_up = node.frozen or any(
            link.cut_since is not None
            for other, link in node.links.items()
            if other in one.joined and other not in one.done
        )
        if held_up:
            self.world.after(LOOK_AGAIN_S, self._finish, one, peer)
            return
        one.done.add(peer)
        if node.life == one.joined[peer]:
            node.trainer.parts[one.tag].reduced(one.round, one.attempt, one.contributions)

    def gone(self, peer: PeerId) -> None:
        for one in self._known.values():
            if one.running and peer in one.participants:
                self._fail(one, peer, "a participant died")

    def broken(self, a: PeerId, b: PeerId) -> None:
        for one in self._known.values():
            if one.running and a in one.participants and b in one.participants:
                self._fail(one, b, "a link broke")

    def abort(self, peer: PeerId, tag: str, number: int, attempt: int) -> None:
        for one in self._known.values():
            mine = peer in one.joined and peer not in one.done
            if mine and (one.tag, one.round, one.attempt) == (tag, number, attempt):
                self._fail(one, None, "called off")

    def _fail(self, one: _Reduce, suspect: PeerId | None, says: str) -> None:
        if one.failed:
            return
        one.failed, one.suspect = says, suspect
        for peer in one.joined:
            if peer not in one.done:
                self._tell_failure(one, peer)

    def _tell_failure(self, one: _Reduce, peer: PeerId) -> None:
        wait_s = NOTICE_S * (0.5 + self.world.rng.random())
        self.world.after(wait_s, self._failed, one, peer)

    def _failed(self, one: _Reduce, peer: PeerId) -> None:
        node = self.world.nodes[peer]
        if node.life == one.joined[peer]:
            node.trainer.parts[one.tag].reduce_failed(
                one.round, one.attempt, one.suspect, one.failed
            )
