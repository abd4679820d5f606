"""A model whose trainable parameters are views of one flat fp32 tensor, as a `Split` orders them.

flat  | blocks.0.… | blocks.1.… | … | wte | head |        one AdamW step is one pass over it
grad  | the same                                 |
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from decentral.dipaco.split import Split
from decentral.state import aligned_zeros

if TYPE_CHECKING:
    from decentral.types import Array


class FlatModel:
    """`model` is changed in place: its parameters become views of `flat`, gradients of its
    gradient. fp32, on the CPU."""

    def __init__(self, model: nn.Module, split: Split) -> None:
        self.model = model
        self.flat = nn.Parameter(torch.from_numpy(aligned_zeros(split.size)))
        self.flat.grad = torch.zeros_like(self.flat)
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for group in split.groups:
                for slot in group.layout.slots:
                    parameter = parameters[slot.name]
                    start = group.offset + slot.offset
                    view = self.flat.data[start : start + slot.size].view(slot.shape)
                    view.copy_(parameter)
                    parameter.data = view
                    gradient = self.flat.grad[start : start + slot.size]
                    parameter.grad = gradient.view(slot.shape)

    @property
    def theta(self) -> Array:
        """A view: it changes with the model."""
        values: Array = self.flat.detach().numpy()
        return values

    @property
    def gradient(self) -> torch.Tensor:
        assert self.flat.grad is not None
        return self.flat.grad

    def load(self, theta: Array) -> FlatModel:
        """The parameters = theta (float32 [split.size]), copied."""
        self.theta[...] = theta
        return self
