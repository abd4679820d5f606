"""Is the mesh whole again? If not, what is it waiting for, in words."""

from __future__ import annotations

from decentral.simulator.world import World


def not_whole(world: World) -> str:
    """Empty if all live peers are members of one view, linked, with one state; else why not."""
    alive = world.alive()
    if len(alive) < len(world.nodes):
        down = [node.name for node in world.nodes.values() if not node.up and node.life]
        if down:
            return f"{', '.join(down[:5])} not up"
    outside: list[str] = []
    logs: dict[tuple[str, int, int], list[str]] = {}
    roots: dict[str, tuple[int | None, int]] = {}
    for node in alive:
        assert node.core is not None
        state = node.core.replica.state
        if state is None or not node.core.replica.member:
            outside.append(node.name)
            continue
        view = state.view
        logs.setdefault((view.lineage, view.epoch, len(view.members)), []).append(node.name)
        for scope in state.scopes:
            held = node.trainer.parts[scope.tag].held
            if node.trainer.takes(scope.tag) and held != (scope.round, scope.root):
                roots[node.name] = held[0] if held else None, scope.round
    if outside:
        return f"{', '.join(outside[:8])} ({len(outside)}) not members; views: {_brief(logs)}"
    if len(logs) != 1:
        return f"several views: {_brief(logs)}"
    (size,) = (members for _, _, members in logs)
    if size != len(alive):
        return f"a view of {size} members, {len(alive)} are alive"
    for node in alive:
        assert node.core is not None
        away = [
            one.name for one in alive if one is not node and one.peer not in node.core.ctx.links
        ]
        if away:
            return f"{node.name} has no link to {', '.join(away[:5])}"
    if roots:
        says = [f"{name} holds {held} of {due}" for name, (held, due) in roots.items()]
        return f"states differ: {'; '.join(says[:5])}"
    return ""


def _brief(logs: dict[tuple[str, int, int], list[str]]) -> str:
    says = []
    for (lineage, epoch, members), names in sorted(logs.items()):
        says.append(f"{lineage[:6]}/{epoch} of {members} with {len(names)} ({names[0]} …)")
    return "; ".join(says[:4])
