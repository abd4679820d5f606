"""Bytes from one model: a pure function of model, context, place and seed.

    context ─▶ the last `room` bytes ─▶ logits of the next ─▶ softmax(logits / T) ─▶ one byte ─▶ …

Byte number `place` of a text is drawn with a random number that depends on the seed and on `place`
only: however a text is cut into calls, and whoever answers them, it is the same text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from decentral.dipaco.inner import derived
from decentral.errors import ConfigError

if TYPE_CHECKING:
    from decentral.types import Array

BYTES = 256


def continuation(
    model: nn.Module,
    context: bytes,
    count: int,
    *,
    room: int,
    place: int,
    temperature: float,
    seed: int,
) -> bytes:
    """The next `count` bytes. `room`: how many the model can see; temperature 0: the likeliest."""
    text = bytearray(context)
    with torch.inference_mode():
        for at in range(place, place + count):
            ids = torch.tensor([list(text[-room:])])
            logits = model(ids)[0, -1].numpy()
            text.append(drawn(logits, temperature, derived(seed, "byte", at)))
    return bytes(text[len(context) :])


def drawn(logits: Array, temperature: float, seed: int) -> int:
    """One index of logits float32 [V], with its probability at that temperature; in fp64."""
    if temperature == 0:
        return int(logits.argmax())
    scaled = logits.astype(np.float64) / temperature
    mass = np.exp(scaled - scaled.max()).cumsum()
    chance = np.random.Generator(np.random.Philox(key=seed)).random()
    return min(int(np.searchsorted(mass, chance * mass[-1], side="right")), len(mass) - 1)


def vocabulary_of(model: nn.Module) -> int:
    """How many different bytes a model of bytes knows. ConfigError: it is none."""
    with torch.inference_mode():
        size = int(model(torch.zeros(1, 1, dtype=torch.int64)).shape[-1])
    if size > BYTES:
        raise ConfigError(f"this model's tokens are no bytes: it knows {size} of them")
    return size
