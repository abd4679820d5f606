"""Diffusion runs with a name: the demo's, and one that is small enough for a test."""

from __future__ import annotations

from decentral.diffusion.config import Config
from decentral.diffusion.images import installed, shapes
from decentral.diffusion.networks import MLP
from decentral.diffusion.program import DiffusionProgram


def program(seed: int) -> DiffusionProgram:
    """Four class-conditional experts and a router on Fashion-MNIST (or digits), in latents."""
    images = installed()
    small = len(images.train) < 10_000
    config = Config(rounds=24, steps=250, fine=64 if small else 256, latent=32 if small else 64)
    return DiffusionProgram(images, config, seed)


def tiny(seed: int) -> DiffusionProgram:
    """The same on shapes that are drawn here: seconds in all."""
    config = Config(
        latent=16, fine=16, batch=128, router_batch=32, rounds=4, steps=25, warmup=10, ema=0.9,
        network=MLP(width=64, depth=2, condition=32),
        router=MLP(width=32, depth=1, condition=32), lr=3e-3, router_lr=3e-3,
    )  # fmt: skip
    return DiffusionProgram(shapes(2000, 400), config, seed)
