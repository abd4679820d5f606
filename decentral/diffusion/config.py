"""What a diffusion run is: all that its results depend on, besides images and seed."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from torch import nn

from decentral.diffusion.dit import DiT, Transformer
from decentral.diffusion.images import Images
from decentral.diffusion.networks import MLP, ResidualMLP
from decentral.errors import ConfigError

CLUSTERS = ("kmeans", "random")
MAX_EXPERTS = 255
"""An image's cluster is one byte."""

FLOW_MLP = MLP()
"""0.72 M parameters over 64 latents."""
ROUTER_MLP = MLP(width=128, depth=2, condition=64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    experts: int = 4
    """K. 1: a monolith; it has no router."""
    peers: int = 1
    """How many train one expert together, with DiLoCo among them."""
    conditional: bool = True
    """Experts and router know the class."""
    clusters: str = "kmeans"
    """"kmeans" of features, or "random": the control that shows what clusters are for."""
    fine: int = 256
    """Fine centroids."""
    latent: int = 64
    """Principal components that the flow lives in; 0: it lives in the pixels."""
    network: MLP | DiT = FLOW_MLP
    """Of every expert."""
    router: MLP = ROUTER_MLP

    rounds: int = 20
    """Committed rounds of each expert and of the router."""
    steps: int = 300
    """N: inner steps of a round."""
    batch: int = 256
    """Samples of an inner step over all experts and their peers together: it is divided."""
    router_batch: int = 64
    lr: float = 1e-3
    router_lr: float = 1e-3
    warmup: int = 100
    """Inner steps."""
    weight_decay: float = 0.0
    ema: float = 0.999
    """Decay of the average that is sampled from, per inner step."""
    class_dropout: float = 0.1
    """Share of samples that train the null class: what guidance needs."""
    student_rounds: int = 0
    """Of a dense model that is distilled from the finished experts; 0: none."""
    student_batch: int = 64
    outer_lr: float = 0.7
    """η of an expert's outer step, if it has several peers."""
    outer_momentum: float = 0.6
    """μ of the same."""

    def __post_init__(self) -> None:
        if not 1 <= self.experts <= MAX_EXPERTS:
            raise ConfigError(f"experts is from 1 to {MAX_EXPERTS}, not {self.experts!r}")
        for name in ("peers", "fine", "rounds", "steps", "router_batch", "student_batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is at least 1, not {getattr(self, name)!r}")
        if self.clusters not in CLUSTERS:
            raise ConfigError(f"clusters is one of {', '.join(CLUSTERS)}, not {self.clusters!r}")
        if self.latent < 0:
            raise ConfigError(f"latent is 0 or more, not {self.latent!r}")
        if isinstance(self.network, DiT) and self.latent:
            raise ConfigError("a DiT sees pixels: set latent=0")
        if self.batch < 1 or self.batch % (self.experts * self.peers):
            raise ConfigError(
                f"a batch of {self.batch} does not divide among {self.experts} experts "
                f"of {self.peers} peers"
            )
        if self.student_rounds < 0:
            raise ConfigError(f"student_rounds is 0 or more, not {self.student_rounds!r}")
        if not 0 <= self.class_dropout < 1:
            raise ConfigError(f"class_dropout is in [0, 1), not {self.class_dropout!r}")

    @property
    def part_batch(self) -> int:
        """Samples of one peer's inner step."""
        return self.batch // (self.experts * self.peers)

    def facts(self) -> dict[str, object]:
        """For a fingerprint."""
        return asdict(self) | {"network_kind": type(self.network).__name__}

    def dim(self, images: Images) -> int:
        return self.latent or images.shape[0] * images.shape[1]

    def build_expert(self, images: Images) -> nn.Module:
        classes = images.classes if self.conditional else 0
        if isinstance(self.network, DiT):
            return Transformer(self.network, shape=images.shape, classes=classes)
        dim = self.dim(images)
        return ResidualMLP(self.network, dim=dim, classes=classes, out=dim)

    def build_router(self, images: Images) -> nn.Module:
        classes = images.classes if self.conditional else 0
        return ResidualMLP(self.router, dim=self.dim(images), classes=classes, out=self.experts)
