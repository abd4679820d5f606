"""The only package with tasks, clocks and sockets: it drives the sans-IO core in real time."""

from decentral.peer.runtime.config import MeshConfig
from decentral.peer.runtime.mesh import Mesh

__all__ = ["Mesh", "MeshConfig"]
