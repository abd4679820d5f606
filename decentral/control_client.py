"""Which peer on this machine a command is about, and asking it something."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from decentral.errors import ConfigError
from decentral.peer.control import ControlClient

WISH_TIMEOUT_S = 30.0
"""For commands that wait until the run's members have agreed."""


def homes_root() -> Path:
    """Where peers live that were not given a ``--home``."""
    return Path.home() / ".decentral"


def add_home_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--home", type=Path, help="the peer's home (default: the one that runs on this machine)"
    )


def home_of(args: argparse.Namespace) -> Path:
    """The ``--home`` given, or the only peer that is running; ConfigError if that is not clear."""
    if args.home is not None:
        return Path(args.home)
    root = homes_root()
    homes = sorted(path.parent for path in root.glob("*/lock")) if root.is_dir() else []
    running = [home for home in homes if ControlClient(home).alive()]
    if not running:
        raise ConfigError("no peer runs on this machine: start one with `decentral peer`")
    if len(running) > 1:
        names = ", ".join(str(home) for home in running)
        raise ConfigError(f"several peers run on this machine: say --home, one of {names}")
    return running[0]


def ask(home: Path, command: str, **arguments: Any) -> dict[str, Any]:
    """Send one command to the peer that lives in `home` and return its answer."""
    with ControlClient(home) as client:
        return client.request(command, **arguments)
