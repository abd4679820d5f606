"""Whole meshes of peers in one process, with every fault drawn from a seed."""

from __future__ import annotations

from decentral.simulator.command import simulate_command
from decentral.simulator.scenarios import SCENARIOS, Report, simulate

__all__ = ["SCENARIOS", "Report", "simulate", "simulate_command"]
