"""A rank's part of a model under FSDP2, to and from the flat fp32 buffers.

    parameter  (5, 4), Shard(0), 2 ranks      rank 0: rows 0 1 2      rank 1: rows 3 4
    parameter  (1, 4)                         rank 0: row 0           rank 1: nothing

What FSDP2 pads for its own collectives is not exchanged. A parameter of which a rank has nothing is
not in that rank's layout. Shard r of one island has the names and shapes of shard r of every other
one whose ranks are equally many: which is all that two of them need to be averaged.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch.distributed.tensor import DTensor

from decentral.errors import ConfigError
from decentral.state import BUFFER, FROZEN, TRAINABLE, Layout, Slot, aligned_zeros

if TYPE_CHECKING:
    from decentral.types import Array


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether some parameter is a DTensor, as `fully_shard` leaves them."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


class ShardTensors:
    """The local shards in model order. Raises a ConfigError for what is not one plain shard each.

    Floating, persistent buffers are every rank's own; rank r's are averaged with those of the other
    islands' ranks r.
    """

    def __init__(self, model: torch.nn.Module, rank: int, size: int) -> None:
        """`rank` of `size`: this process's place in the island."""
        self._model = model
        self.whole: dict[str, DTensor] = {}
        """The sharded parameters by name: of this rank's layout and beyond it."""
        tensors: list[tuple[str, str, torch.Tensor]] = []
        for name, kind, tensor in _tensors(model, size):
            if isinstance(tensor, DTensor):
                self.whole[name] = tensor
            if _local(tensor).numel():
                tensors.append((name, kind, tensor))
        if not any(kind == TRAINABLE for _, kind, _ in tensors):
            raise ConfigError(
                f"rank {rank} has no part of any trainable parameter: this model is too small for "
                f"an island of {size} ranks",
                phase="island",
            )
        self.layout = Layout.of((name, kind, tuple(_local(t).shape)) for name, kind, t in tensors)
        by_name = {name: tensor for name, _, tensor in tensors}
        self._bound: list[tuple[Slot, torch.Tensor]] = [
            (slot, by_name[slot.name]) for slot in self.layout.slots
        ]
        self.lossy = any(t.dtype in (torch.bfloat16, torch.float16) for t in by_name.values())
        """Some parameter cannot hold its fp32 master exactly."""

    def read(self, flat: Array) -> None:
        """flat[:] = this rank's shards, in fp32. A prefix of the layout may be asked for."""
        with torch.no_grad():
            for view, shard in self._views(flat):
                view.copy_(shard)

    def write(self, flat: Array) -> None:
        """This rank's shards = flat, each rounded to its own dtype."""
        self._reshard()
        with torch.no_grad():
            for view, shard in self._views(flat):
                shard.copy_(view)

    def as_read(self) -> Array:
        flat = aligned_zeros(self.layout.total)
        self.read(flat)
        return flat

    def save(self) -> list[torch.Tensor]:
        """Exact copies, for `restore`."""
        return [_local(tensor).clone() for _, tensor in self._bound]

    def restore(self, saved: list[torch.Tensor]) -> None:
        self._reshard()
        with torch.no_grad():
            for (_, tensor), copy in zip(self._bound, saved, strict=True):
                _local(tensor).copy_(copy)

    def _reshard(self) -> None:
        # A forward pass without a backward one leaves the gathered parameters in place, and the
        # next forward pass would take those instead of what is written now.
        from torch.distributed.fsdp import FSDPModule

        for module in self._model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def _views(self, flat: Array) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        whole = torch.from_numpy(flat)
        for slot, tensor in self._bound:
            if slot.offset + slot.size <= whole.numel():
                view = whole[slot.offset : slot.offset + slot.size].view(slot.shape)
                yield view, _local(tensor)


def _tensors(model: torch.nn.Module, size: int) -> Iterator[tuple[str, str, torch.Tensor]]:
    """(name, kind, tensor) in model order. Tied weights appear once."""
    for name, parameter in model.named_parameters():
        if parameter.is_complex() or not parameter.is_floating_point():
            raise ConfigError(f"parameter {name} is {parameter.dtype}, which is not supported")
        if parameter.is_meta:
            raise ConfigError(f"parameter {name} has no data: materialize the model first")
        if isinstance(parameter, DTensor):
            _check_placement(name, parameter, size)
        elif parameter.requires_grad:
            raise ConfigError(
                f"parameter {name} is not sharded, so each rank would train another one: apply "
                "fully_shard to the whole model, too",
                phase="island",
            )
        yield _plain(name), TRAINABLE if parameter.requires_grad else FROZEN, parameter
    persistent = model.state_dict(keep_vars=True).keys()
    for name, buffer in model.named_buffers():
        if name in persistent and buffer.is_floating_point():
            yield _plain(name), BUFFER, buffer


def _check_placement(name: str, parameter: DTensor, size: int) -> None:
    mesh, placements = parameter.device_mesh, parameter.placements
    if mesh.ndim != 1 or mesh.size() != size or not placements[0].is_shard():
        raise ConfigError(
            f"parameter {name} is placed as {placements} on {mesh.size()} devices in {mesh.ndim} "
            f"dimension(s): an island shards every parameter over all its {size} ranks in one "
            "dimension",
            phase="island",
        )


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """Shares its memory; asked for anew each time, as FSDP2 may replace it."""
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local.detach()


def _plain(name: str) -> str:
    return name.replace("_orig_mod.", "")
