"""Diffusion runs with a name: the demo's, and one that is small enough for a test."""

from __future__ import annotations

from dataclasses import replace

from decentral.diffusion.config import Config
from decentral.diffusion.images import Images, installed, shapes
from decentral.diffusion.networks import MLP
from decentral.diffusion.program import DiffusionProgram
from decentral.recipes import ProgramRecipe


def recipe() -> ProgramRecipe:
    return ProgramRecipe(name="diffusion", build=program)


def tiny_recipe() -> ProgramRecipe:
    return ProgramRecipe(name="diffusion-tiny", build=tiny)


FEW = 10_000
"""Images, below which fewer components and centroids are found."""

TINY = Config(
    latent=16, fine=16, batch=128, router_batch=32, rounds=4, steps=25, warmup=10, ema=0.9,
    network=MLP(width=64, depth=2, condition=32), router=MLP(width=32, depth=1, condition=32),
    lr=3e-3, router_lr=3e-3,
)  # fmt: skip


def suited(images: Images) -> Config:
    """Four class-conditional experts and a router in a latent space: 6,000 inner steps."""
    return Config(latent=32, fine=64) if len(images.train) < FEW else Config()


def program(seed: int) -> DiffusionProgram:
    """On Fashion-MNIST, or on digits where it is not there; rounds of about a second."""
    images = installed()
    return DiffusionProgram(images, replace(suited(images), rounds=24, steps=250), seed)


def tiny(seed: int) -> DiffusionProgram:
    """The same on shapes that are drawn here: seconds in all."""
    return DiffusionProgram(shapes(2000, 400), TINY, seed)
