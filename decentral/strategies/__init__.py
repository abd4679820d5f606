"""Training strategies: what is exchanged, when, and what becomes of it."""

from decentral.strategies.base import Strategy
from decentral.strategies.diloco import DiLoCo

__all__ = ["DiLoCo", "Strategy"]
