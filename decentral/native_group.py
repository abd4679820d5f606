"""Who reduces together: a group over the mesh's links, which asks for those that it misses."""

from __future__ import annotations

from functools import partial
from typing import Any

from decentral.mesh_port import GroupFactory, MeshPort, Wanted
from decentral.types import PeerId, View


def native_groups(mesh: MeshPort) -> GroupFactory:
    def group(native: Any, view: View, me: PeerId, wanted: Wanted) -> Any:
        from decentral.collectives import Group  # only processes that reduce have this to load

        connect = partial(mesh.connect, wanted=wanted)
        return Group(native, view, me, connect=connect, dense_up_to=mesh.full_mesh_up_to)

    return group
