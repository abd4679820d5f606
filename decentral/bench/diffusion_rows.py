"""What ``decentral bench diffusion`` compares: runs at equal training FLOPs, and ways to sample.

monolith      one model, S steps at the total batch
K experts     the batch divided by K, and so many steps fewer as the router costs
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from decentral.diffusion.config import Config
from decentral.diffusion.cost import router_share
from decentral.diffusion.images import Images
from decentral.diffusion.program import DiffusionProgram
from decentral.errors import ConfigError

ROUNDS = 20
OUTER_ROUNDS = 120
"""Of experts that two peers train together: DiLoCo wants many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    name: str
    says: str
    experts: int = 1
    conditional: bool = True
    clusters: str = "kmeans"
    peers: int = 1
    batch_share: float = 1.0
    """Of the monolith's batch."""
    lr_share: float = 1.0
    """Of the monolith's peak learning rate."""
    ways: tuple[str, ...] = ("sticky",)
    """FID is measured for each."""
    against: str = "monolith"
    """The row that its figures are divided by."""
    of: str = ""
    """The row whose experts it samples from or distils; "": it trains its own."""
    dead: bool = False
    """Samples with each expert masked in turn."""

    def config(self, base: Config, images: Images, steps: int) -> Config:
        """With `steps` the monolith's inner steps at `base.batch`."""
        config = replace(
            base,
            experts=self.experts,
            conditional=self.conditional,
            clusters=self.clusters,
            rounds=max(1, min(ROUNDS, steps // 10)),
            batch=int(base.batch * self.batch_share),
        )
        config = replace(config, steps=max(1, steps // config.rounds), lr=base.lr * self.lr_share)
        if self.experts > 1:
            share = router_share(DiffusionProgram(images, config, 0))
            config = replace(config, steps=max(1, int(steps * (1 - share) / config.rounds)))
        if self.peers > 1:
            # Each peer takes a whole expert's batch, so that both make half the steps.
            inner = config.rounds * config.steps // self.peers
            rounds = max(1, min(OUTER_ROUNDS, inner // 5))
            config = replace(
                config,
                peers=self.peers,
                batch=config.batch * self.peers,
                router_batch=config.router_batch * self.peers,
                rounds=rounds,
                steps=max(1, round(inner / rounds)),
                warmup=max(1, config.warmup // self.peers),
            )
        return config


ROWS = (
    Row(name="monolith", says="one class-conditional model"),
    Row(
        name="k4", says="four experts", experts=4,
        ways=("sticky", "full", "top-1", "top-2", "threshold"),
    ),
    Row(name="monolith-u", says="one model without classes", conditional=False),
    Row(
        name="k4-u", says="four experts without classes", experts=4, conditional=False,
        ways=("sticky", "full", "top-1"), against="monolith-u",
    ),
    Row(
        name="random4", says="four experts of random clusters", experts=4, clusters="random",
    ),
    Row(
        name="k4-rate3", says="four experts at the learning rate that suits two peers best",
        experts=4, lr_share=3.0, against="k4",
    ),
    Row(
        name="two-peers", says="four experts, each trained by two peers with DiLoCo", experts=4,
        peers=2, lr_share=3.0, against="k4-rate3",
    ),
    Row(
        name="k8", says="eight experts", experts=8, ways=("sticky", "top-1", "top-2"),
    ),
    Row(
        name="k16", says="sixteen experts", experts=16, ways=("sticky", "top-1", "top-2"),
    ),
    Row(name="quarter", says="one model at a quarter of the batch", batch_share=0.25),
    Row(name="distilled", says="one dense model, distilled from k4", of="k4"),
    Row(
        name="dead", says="k4 with one expert masked, each in turn", of="k4", dead=True,
        ways=("sticky", "full"), against="k4",
    ),
)  # fmt: skip


def chosen(names: Sequence[str]) -> list[Row]:
    known = {row.name: row for row in ROWS}
    for name in names:
        if name not in known:
            raise ConfigError(f"rows are {', '.join(known)}, not {name}", phase="bench")
    return [known[name] for name in names]


def named(name: str) -> Row:
    return chosen([name])[0]
