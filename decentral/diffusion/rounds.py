"""One round of an expert, a part of one, the router or the student: N inner steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from decentral.dataflow.program import Arrays, Computed
from decentral.diffusion import flow
from decentral.diffusion.config import Config
from decentral.diffusion.flat import Descent, Flat, learning_rate
from decentral.diffusion.images import Images
from decentral.diffusion.seeds import seed_of, torch_random
from decentral.diffusion.space import Pixels, Principal
from decentral.diffusion.training import Stretch, train, without_some_classes
from decentral.errors import ConfigError

if TYPE_CHECKING:
    from decentral.types import Array


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
        members = [torch.nonzero(assigned == k)[:, 0] for k in range(config.experts)]
        if not all(len(one) for one in members):
            raise ConfigError("a cluster is empty: ask for fewer experts, or more fine centroids")
        return cls(
            images=images,
            config=config,
            seed=seed,
            device=device,
            x=torch.from_numpy(flow_space.encode(images.train)),
            labels=torch.tensor(images.labels).long() if config.conditional else None,
            clusters=assigned,
            members=members,
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
    total = config.rounds * config.steps
    return _trained(task, flat, state, stretch, total, loss, config.lr, len(members), random, beat)


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
    total, peak = config.rounds * config.steps, config.router_lr
    return _trained(task, flat, state, stretch, total, loss, peak, len(task.x), random, beat)


def student_round(
    task: Task, round: int, state: Arrays, teachers: Sequence[Array], beat: Callable[[], None]
) -> Computed:
    """One dense model learns the ensemble's flow: an image's noisy version asks the expert of the
    image's own cluster (paper, section 3.4). Its mean given x_t is Σ_k p(k | x_t) u_k, so that no
    router is needed, and a sample costs one expert's pass."""
    config = task.config
    flat = Flat(lambda: config.build_expert(task.images), task.device)
    experts = [Flat(lambda: config.build_expert(task.images), task.device) for _ in teachers]
    for expert, param in zip(experts, teachers, strict=True):
        expert.load(param)
    random = torch_random(task.seed, "student", round)

    def loss(indices: torch.Tensor, t: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        classes = task.classes(indices, random)
        x = flow.noisy(task.x[indices], t, noise).to(task.device)
        t = t.to(task.device)
        own = task.clusters[indices]
        wanted = torch.empty_like(x)
        with torch.no_grad():
            for k, expert in enumerate(experts):
                rows = torch.nonzero(own == k)[:, 0].to(task.device)
                some = None if classes is None else classes[rows]
                wanted[rows] = expert.network(x[rows], t[rows], some)
        velocity: torch.Tensor = flat.network(x, t, classes)
        return (velocity - wanted).square().mean()

    stretch = Stretch(
        first=(round - 1) * config.steps,
        steps=config.steps,
        batch=config.student_batch,
        order=seed_of(task.seed, "order", "student"),
    )
    total = config.student_rounds * config.steps
    return _trained(task, flat, state, stretch, total, loss, config.lr, len(task.x), random, beat)


def _trained(
    task: Task,
    flat: Flat,
    state: Arrays,
    stretch: Stretch,
    total: int,
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
        lambda step: learning_rate(step, total, peak=peak, warmup=config.warmup),
        samples=samples,
        dim=task.x.shape[1],
        random=random,
        beat=beat,
    )
    return Computed(tensors=descent.state(), tokens=stretch.steps * stretch.batch, loss=mean)
