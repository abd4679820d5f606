"""Packages that decentral works without."""

from __future__ import annotations

import importlib
from typing import Any

from decentral.errors import ConfigError


def need(package: str, what: str) -> Any:
    """The module, or a ConfigError that says what it is needed for and how to get it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(
            f"{what} needs the package {package!r}, which cannot be imported here ({error}): "
            f"pip install {package}",
            phase="text",
        ) from error
