"""One round of an expert, of a part of one, or of the router: N inner steps from state to state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from decentral.dataflow.program import Arrays, Computed
from decentral.diffusion import flow
from decentral.diffusion.config import Config
from decentral.diffusion.flat import Descent, Flat, learning_rate
from decentral.diffusion.images import Images
from decentral.diffusion.seeds import seed_of, torch_random
from decentral.diffusion.space import Pixels, Principal
from decentral.diffusion.training import Stretch, train, without_some_classes


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What all rounds of a run share, once its clusters are there."""

    images: Images
    config: Config
    seed: int
    device: str
    x: torch.Tensor
    """Every training image in the flow's space: [n, dim]"""
    labels: torch.Tensor | None
    """Their classes: [n]. None: unconditional."""
    clusters: torch.Tensor
    """Their clusters: [n]"""
    members: Sequence[torch.Tensor]
    """Per cluster, the indices of its images."""

    @classmethod
    def of(
        cls, images: Images, config: Config, seed: int, clustered: Arrays, device: str = "cpu"
    ) -> Task:
        flow_space = Principal(images.shape, clustered) if config.latent else Pixels(images.shape)
        assigned = torch.tensor(clustered["assignment"]).long()
        return cls(
            images=images,
            config=config,
            seed=seed,
            device=device,
            x=torch.from_numpy(flow_space.encode(images.train)),
            labels=torch.tensor(images.labels).long() if config.conditional else None,
            clusters=assigned,
            members=[torch.nonzero(assigned == k)[:, 0] for k in range(config.experts)],
        )

    def classes(self, chosen: torch.Tensor, random: torch.Generator) -> torch.Tensor | None:
        """Of the images `chosen`, some replaced by the null class."""
        if self.labels is None:
            return None
        share = self.config.class_dropout
        return without_some_classes(self.labels[chosen], self.images.classes, share, random).to(
            self.device
        )


def expert_round(
    task: Task, cell: str, round: int, state: Arrays, beat: Callable[[], None]
) -> Computed:
    """`cell`: expert/k, or part/k.i, which makes its share of the same inner steps."""
    config = task.config
    cluster, _, part = cell.partition("/")[2].partition(".")
    members = task.members[int(cluster)]
    flat = Flat(lambda: config.build_expert(task.images), task.device)
    random = torch_random(task.seed, cell, round)

    def loss(indices: torch.Tensor, t: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        chosen = members[indices]
        classes = task.classes(chosen, random)
        x = task.x[chosen].to(task.device)
        return flow.loss(flat.network, x, classes, t.to(task.device), noise.to(task.device))

    stretch = Stretch(
        first=(round - 1) * config.steps,
        steps=config.steps,
        batch=config.part_batch,
        order=seed_of(task.seed, "order", f"expert/{cluster}"),
        part=int(part or 0),
        parts=config.peers,
    )
    return _trained(task, flat, state, stretch, loss, config.lr, len(members), random, beat)


def router_round(task: Task, round: int, state: Arrays, beat: Callable[[], None]) -> Computed:
    config = task.config
    flat = Flat(lambda: config.build_router(task.images), task.device)
    random = torch_random(task.seed, "router", round)

    def loss(indices: torch.Tensor, t: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        classes = task.classes(indices, random)
        x, targets = task.x[indices].to(task.device), task.clusters[indices].to(task.device)
        t, noise = t.to(task.device), noise.to(task.device)
        return flow.router_loss(flat.network, x, classes, targets, t, noise)

    stretch = Stretch(
        first=(round - 1) * config.steps,
        steps=config.steps,
        batch=config.router_batch,
        order=seed_of(task.seed, "order", "router"),
    )
    return _trained(task, flat, state, stretch, loss, config.router_lr, len(task.x), random, beat)


def _trained(
    task: Task,
    flat: Flat,
    state: Arrays,
    stretch: Stretch,
    loss: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
    peak: float,
    samples: int,
    random: torch.Generator,
    beat: Callable[[], None],
) -> Computed:
    config = task.config
    descent = Descent(
        flat, state, stretch.first, weight_decay=config.weight_decay, decay=config.ema
    )
    mean = train(
        descent,
        stretch,
        loss,
        lambda step: learning_rate(step, config.total_steps, peak=peak, warmup=config.warmup),
        samples=samples,
        dim=task.x.shape[1],
        random=random,
        beat=beat,
    )
    return Computed(tensors=descent.state(), tokens=stretch.steps * stretch.batch, loss=mean)
