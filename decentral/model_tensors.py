"""The edge to torch: a model's parameters and buffers, to and from the flat fp32 buffers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from decentral.errors import ConfigError
from decentral.state import BUFFER, FROZEN, TRAINABLE, Layout, Slot, aligned_zeros

if TYPE_CHECKING:
    from decentral.types import Array


class ModelTensors:
    """A model's tensors in the order of its `layout`. Tied weights appear once.

    Floating, persistent buffers (a BatchNorm's statistics) are averaged like parameters but have
    no outer momentum; integer ones (its counter) stay each peer's own.
    """

    def __init__(self, model: torch.nn.Module, names: Sequence[str] | None = None) -> None:
        """`names`: only these tensors, or those of these submodules."""
        tensors = list(_tensors(model))
        if names is not None:
            tensors = _chosen(tensors, names)
        self.layout = Layout.of((name, kind, tuple(t.shape)) for name, kind, t in tensors)
        by_name = {name: tensor for name, _, tensor in tensors}
        self._bound: list[tuple[Slot, torch.Tensor]] = [
            (slot, by_name[slot.name]) for slot in self.layout.slots
        ]
        self.lossy = any(t.dtype in (torch.bfloat16, torch.float16) for t in by_name.values())
        """Some parameter cannot hold its fp32 master exactly."""

    def read(self, flat: Array) -> None:
        """flat[:] = the model's tensors, in fp32. A prefix of the layout may be asked for."""
        with torch.no_grad():
            for view, tensor in self._views(flat):
                view.copy_(tensor)

    def write(self, flat: Array) -> None:
        """The model's tensors = flat, each rounded to its own dtype. Hooks and graphs stay."""
        with torch.no_grad():
            for view, tensor in self._views(flat):
                tensor.copy_(view)

    def as_read(self) -> Array:
        flat = aligned_zeros(self.layout.total)
        self.read(flat)
        return flat

    def save(self) -> list[torch.Tensor]:
        """Exact copies, for `restore`."""
        return [tensor.detach().clone() for _, tensor in self._bound]

    def restore(self, saved: list[torch.Tensor]) -> None:
        with torch.no_grad():
            for (_, tensor), copy in zip(self._bound, saved, strict=True):
                tensor.copy_(copy)

    def _views(self, flat: Array) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        whole = torch.from_numpy(flat)
        for slot, tensor in self._bound:
            if slot.offset + slot.size <= whole.numel():
                yield whole[slot.offset : slot.offset + slot.size].view(slot.shape), tensor


def _tensors(model: torch.nn.Module) -> Iterator[tuple[str, str, torch.Tensor]]:
    """(name, kind, tensor) in model order. A compiled model has the names of the plain one."""
    persistent = model.state_dict(keep_vars=True).keys()
    seen: set[tuple[int, tuple[int, ...], tuple[int, ...]]] = set()
    for name, parameter in model.named_parameters():
        if parameter.is_complex() or not parameter.is_floating_point():
            raise ConfigError(f"parameter {name} is {parameter.dtype}, which is not supported")
        if parameter.is_meta:
            raise ConfigError(f"parameter {name} has no data: materialize the model first")
        storage = (parameter.data_ptr(), tuple(parameter.shape), parameter.stride())
        if parameter.numel() and storage in seen:
            continue
        seen.add(storage)
        yield _plain(name), TRAINABLE if parameter.requires_grad else FROZEN, parameter
    for name, buffer in model.named_buffers():
        if name in persistent and buffer.is_floating_point():
            yield _plain(name), BUFFER, buffer


def _chosen(
    tensors: list[tuple[str, str, torch.Tensor]], names: Sequence[str]
) -> list[tuple[str, str, torch.Tensor]]:
    for wanted in names:
        if not any(_within(name, wanted) for name, *_ in tensors):
            raise ConfigError(f"the model has no tensor and no submodule {wanted!r}")
    return [one for one in tensors if any(_within(one[0], wanted) for wanted in names)]


def _within(name: str, wanted: str) -> bool:
    return name == wanted or name.startswith(f"{wanted}.")


def _plain(name: str) -> str:
    return name.replace("_orig_mod.", "")
