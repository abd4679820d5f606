"""A small convolutional classifier: the feature space that samples are measured in.

    image ─▶ conv 16, every 2nd pixel ─▶ conv 32, every 2nd ─▶ 64 features ─▶ classes

Trained here on the training images, the same for everybody with the same images. About 90 % of
Fashion-MNIST's test images come out right (`accuracy` says it).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from decentral.diffusion.images import Images
from decentral.diffusion.seeds import seed_of, torch_random
from decentral.diffusion.training import one_thread

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from numpy.typing import NDArray

    from decentral.types import Array

FEATURES = 64
BATCH = 128
EPOCHS, LEAST_SAMPLES = 3, 25_000
"""How long it is trained: small sets get more epochs."""


class Classifier:
    """Of images like those that it was trained on."""

    def __init__(self, images: Images) -> None:
        height, width = images.shape
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of("classifier"))
            self._body = nn.Sequential(
                nn.Conv2d(1, 16, 4, stride=2, padding=1), nn.SiLU(),
                nn.Conv2d(16, 32, 4, stride=2, padding=1), nn.SiLU(), nn.Flatten(),
                nn.Linear(32 * (height // 4) * (width // 4), FEATURES), nn.SiLU(),
            )  # fmt: skip
            self._head = nn.Linear(FEATURES, images.classes)

    @classmethod
    def trained(cls, images: Images) -> Classifier:
        made = cls(images)
        parameters = [*made._body.parameters(), *made._head.parameters()]
        steps = max(EPOCHS * len(images.train), LEAST_SAMPLES) // BATCH
        adam = torch.optim.Adam(parameters, lr=2e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
        random = torch_random("classifier", images.digest)
        labels = torch.tensor(images.labels).long()
        with one_thread():
            for _ in range(steps):
                chosen = torch.randint(len(labels), (BATCH,), generator=random)
                logits = made._head(made._body(_floats(images.train[chosen.numpy()])))
                loss = nn.functional.cross_entropy(logits, labels[chosen])
                adam.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                adam.step()
                schedule.step()
        return made

    @torch.inference_mode()
    def features(self, images: NDArray[np.uint8]) -> Array:
        """[n, h, w] → [n, FEATURES]"""
        parts = [self._body(_floats(images[i : i + 512])) for i in range(0, len(images), 512)]
        return torch.cat(parts).numpy()

    @torch.inference_mode()
    def classify(self, images: NDArray[np.uint8]) -> NDArray[np.int64]:
        """The likeliest class of each: [n]"""
        logits: torch.Tensor = self._head(torch.from_numpy(self.features(images)))
        return logits.argmax(dim=1).numpy()

    def accuracy(self, images: Images) -> float:
        """Share of test images that it classifies right."""
        return float((self.classify(images.test) == images.test_labels).mean())

    def tensors(self) -> dict[str, Array]:
        both = nn.ModuleDict({"body": self._body, "head": self._head})
        return {name: one.numpy() for name, one in both.state_dict().items()}

    def load(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        """What `tensors` gave."""
        both = nn.ModuleDict({"body": self._body, "head": self._head})
        both.load_state_dict({name: torch.from_numpy(one) for name, one in tensors.items()})


def _floats(images: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(images.astype(np.float32) / 255)[:, None]
