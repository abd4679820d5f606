"""Numbers with units, as people write them on a command line: "124M", "100mbit", "20ms", "8GiB".

Strict: a unit that could mean two things ("100mb") is refused rather than guessed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from decentral.errors import ConfigError

COUNTS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9, "t": 1e12}
RATES = {"kbit": 125.0, "mbit": 125e3, "gbit": 125e6}
DURATIONS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
SIZES = {
    **{prefix + "b": 1000.0**power for power, prefix in enumerate("kmgt", 1)},
    **{prefix + "ib": 1024.0**power for power, prefix in enumerate("kmgt", 1)},
}
_NUMBER = re.compile(r"([0-9]+(?:\.[0-9]+)?)([A-Za-z]*)")


def count(text: str) -> int:
    """How many: ``124M``, ``1.3B``, ``7000``. At least 1."""
    return max(1, round(_parse(text, "a number", COUNTS, "124M or 1.3B")))


def bytes_s(text: str) -> float:
    """Bytes per second of a link's rate, which is written in bits: ``100mbit``, ``1gbit``."""
    return _parse(text, "a rate", RATES, "100mbit or 1gbit (bits per second)")


def seconds(text: str) -> float:
    """``20ms``, ``0.5s``, ``200us``."""
    return _parse(text, "a time", DURATIONS, "20ms or 0.5s")


def size_bytes(text: str) -> float:
    """Bytes: ``8GiB``, ``500MB``."""
    return _parse(text, "a size", SIZES, "8GiB or 500MB")


def _parse(text: str, what: str, units: Mapping[str, float], such_as: str) -> float:
    match = _NUMBER.fullmatch(text)
    scale = units.get(match[2].lower()) if match else None
    if match is None or scale is None or not float(match[1]):
        raise ConfigError(f"{text!r} is not {what}: write {such_as}", phase="options")
    return float(match[1]) * scale
