"""One dense model as a file: the student's, or any expert's, under the network's own names.

The file also has the tensors of the flow's space (``space/…``), without which latents are no
images, and as metadata what builds the network: `load` needs nothing else.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import safe_open
from safetensors.numpy import save_file

from decentral.dataflow.program import Arrays
from decentral.diffusion.dit import DiT, Transformer
from decentral.diffusion.flat import Flat
from decentral.diffusion.networks import MLP, ResidualMLP
from decentral.diffusion.program import DiffusionProgram
from decentral.diffusion.space import Pixels, Principal, Space
from decentral.errors import CorruptCheckpointError, DiskError

if TYPE_CHECKING:
    from torch import nn


def export(program: DiffusionProgram, clustered: Arrays, state: Arrays, path: Path) -> Path:
    """Write the average (`ema`) of `state`, an expert's or the student's, and return the path.

    ``.safetensors`` is appended where it is missing. A DiskError where the disk refuses.
    """
    if path.suffix != ".safetensors":
        path = path.with_name(path.name + ".safetensors")
    config, images = program.config, program.images
    flat = Flat(lambda: config.build_expert(images))
    flat.load(state["ema"])
    tensors = {f"network/{name}": one for name, one in flat.named().items()}
    if config.latent:
        tensors |= {name: one for name, one in clustered.items() if name.startswith("space/")}
    network = {"kind": type(config.network).__name__, **asdict(config.network)}
    facts = {
        "network": network,
        "classes": images.classes if config.conditional else 0,
        "dim": config.dim(images),
        "shape": images.shape,
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, temporary, metadata={"diffusion": json.dumps(facts)})
        temporary.replace(path)
    except Exception as error:  # safetensors has its own error type for the disk's refusals
        temporary.unlink(missing_ok=True)
        raise DiskError(f"{path} cannot be written: {error}") from error
    return path


def load(path: Path) -> tuple[nn.Module, Space]:
    """The network, (x [n, dim], t [n], classes [n] or None) → velocity, and its space.

    A CorruptCheckpointError where the file is not one of ours.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})["diffusion"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        options = dict(facts["network"])
        shape = (int(facts["shape"][0]), int(facts["shape"][1]))
        network: nn.Module
        if options.pop("kind") == "DiT":
            network = Transformer(DiT(**options), shape=shape, classes=facts["classes"])
        else:
            dim = facts["dim"]
            network = ResidualMLP(MLP(**options), dim=dim, classes=facts["classes"], out=dim)
        weights = {n.removeprefix("network/"): t for n, t in tensors.items() if "network/" in n}
        network.load_state_dict(weights)
        arrays = {n: t.numpy() for n, t in tensors.items() if n.startswith("space/")}
        return network.eval(), Principal(shape, arrays) if arrays else Pixels(shape)
    except Exception as error:  # whatever a foreign file makes of it
        raise CorruptCheckpointError(f"{path} is no exported diffusion model: {error}") from error
