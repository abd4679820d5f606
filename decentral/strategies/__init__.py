"""Training strategies: what is exchanged, when, and what becomes of it."""

from decentral.strategies.asynchronous import AsyncDiLoCo
from decentral.strategies.base import Strategy
from decentral.strategies.data_parallel import DataParallel
from decentral.strategies.decoupled import DecoupledDiLoCo
from decentral.strategies.diloco import DiLoCo
from decentral.strategies.sparseloco import SparseLoCo
from decentral.strategies.streaming import StreamingDiLoCo

__all__ = [
    "AsyncDiLoCo",
    "DataParallel",
    "DecoupledDiLoCo",
    "DiLoCo",
    "SparseLoCo",
    "Strategy",
    "StreamingDiLoCo",
]
