"""A strategy from one word, as a command line takes it, and back.

async-diloco                                      its defaults
async-diloco,outer_lr=0.5,variant=eager           NAME[,OPTION=VALUE …]
diloco,error_feedback=none                        where an option may be None

Names are the classes' own (`Strategy.name`), options their fields, values read by the field's type.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields
from typing import Any

from decentral.errors import ConfigError
from decentral.strategies.asynchronous import AsyncDiLoCo
from decentral.strategies.data_parallel import DataParallel
from decentral.strategies.decoupled import DecoupledDiLoCo
from decentral.strategies.diloco import DiLoCo
from decentral.strategies.outer import OuterOptimization
from decentral.strategies.sparseloco import SparseLoCo
from decentral.strategies.streaming import StreamingDiLoCo

STRATEGIES: Sequence[type[OuterOptimization]] = (
    DiLoCo,
    StreamingDiLoCo,
    AsyncDiLoCo,
    DecoupledDiLoCo,
    SparseLoCo,
    DataParallel,
)

_BOOLEANS = {"true": True, "on": True, "yes": True, "false": False, "off": False, "no": False}


def parse(
    word: str, known: Sequence[type[OuterOptimization]] = STRATEGIES, **defaults: Any
) -> OuterOptimization:
    """The strategy that `word` names; `defaults` for options that it does not give.

    Raises a ConfigError that says which names, options or values there are.
    """
    name, *settings = word.split(",")
    kind = {one.name: one for one in known}.get(name)
    if kind is None:
        names = ", ".join(one.name for one in known)
        raise ConfigError(f"there is no strategy {name!r}: use {names}", phase="strategy")
    options = _options(kind)
    given: dict[str, Any] = {}
    for setting in settings:
        option, equals, text = setting.partition("=")
        if not equals or option not in options:
            raise ConfigError(
                f"{name} has no option {setting!r}: use OPTION=VALUE with {', '.join(options)}",
                phase="strategy",
            )
        if option in given:
            raise ConfigError(f"{option} is given twice in {word!r}", phase="strategy")
        given[option] = _value(option, options[option][1], text)
    return kind(**{**defaults, **given})


def spell(strategy: OuterOptimization) -> str:
    """The shortest word that `parse` makes this strategy of."""
    words = [strategy.name]
    for option, (field, _) in _options(type(strategy)).items():
        value = getattr(strategy, option)
        if value != field.default:
            words.append(f"{option}={_text(value)}")
    return ",".join(words)


def _options(kind: type[OuterOptimization]) -> Mapping[str, tuple[Field[Any], tuple[type, ...]]]:
    """Each option's field and the types that its value may have."""
    hints = typing.get_type_hints(kind)
    found = {}
    for field in fields(kind):
        assert field.default is not MISSING, f"{kind.name}.{field.name} has no default"
        hint = hints[field.name]
        union = typing.get_origin(hint) in (typing.Union, types.UnionType)
        found[field.name] = (field, typing.get_args(hint) if union else (hint,))
    return found


def _value(option: str, kinds: tuple[type, ...], text: str) -> Any:
    if type(None) in kinds and text.lower() == "none":
        return None
    kind = next(one for one in kinds if one is not type(None))
    try:
        if kind is bool:
            return _BOOLEANS[text.lower()]
        return kind(text)
    except (ValueError, KeyError):
        wanted = {bool: "on or off", int: "a whole number", float: "a number"}[kind]
        optional = " or none" if type(None) in kinds else ""
        says = f"{option} is {wanted}{optional}, not {text!r}"
        raise ConfigError(says, phase="strategy") from None


def _text(value: Any) -> str:
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)
