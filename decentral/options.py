"""The options of a run that are neither its strategy nor its mesh's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from decentral.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from decentral.schedule import Schedule


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """Validated when made."""

    schedule: Schedule | None = None
    """Multiplier of the learning rate on the run's clock (`decentral.schedule`)."""
    scaler: torch.amp.GradScaler | None = None
    """For fp16 autocast. A step that it skips counts no tokens."""
    accumulate: int = 1
    """Calls of `run.step` per optimizer step; their gradients are averaged."""
    clip_norm: float | None = None
    """Upper bound of the gradients' joint 2-norm."""
    target_tokens: int | None = None
    """A founder's: the run ends for all at the first round with so many tokens."""
    rounds: int | None = None
    """A founder's: the run ends for all at this round."""
    home: Path | str | None = None
    """Folder of identity, address book and checkpoints; None: nothing is kept."""
    keep_inner: bool = True
    """Whether the inner optimizer's state goes into this peer's own checkpoints (fp32 copies, twice
    the model for AdamW), so that it goes on from there; else it starts afresh after a restart."""
    seed: int = 0
    """Orders the samples. Part of the fingerprint: peers share samples out by it."""
    recipe: str = ""
    """Name of the recipe, for the fingerprint."""
    recipe_version: str = ""
    """Its declared version, likewise."""
    witness: int = 0
    """How many elements of each array go into this peer's log for an audit (`decentral.witness`);
    0: none, and nothing is written."""

    def __post_init__(self) -> None:
        for name in ("rounds", "target_tokens", "accumulate"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is at least 1, not {value}")
        if self.witness < 0:
            raise ConfigError(f"witness is 0 or more, not {self.witness}")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ConfigError(f"clip_norm is positive, not {self.clip_norm}")

    def checkpoints(self, tag: str = "") -> Path | None:
        """Where states are kept: those of a module in a folder of its own. None: nowhere."""
        if self.home is None:
            return None
        folder = Path(self.home) / "checkpoints"
        return folder / f"module-{quote(tag, safe='')}" if tag else folder
