"""How a training script gets into a run: `join` one, or `start` one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from decentral.options import RunOptions
from decentral.run import Run
from decentral.schedule import Schedule
from decentral.strategies.base import Strategy

if TYPE_CHECKING:
    import torch

Optimizers: TypeAlias = "torch.optim.Optimizer | Sequence[torch.optim.Optimizer]"

R = TypeVar("R", bound=Run)

LISTEN = "[::]:0"
"""All interfaces, any free port."""


def join(
    word: str,
    model: torch.nn.Module,
    optimizer: Optimizers,
    strategy: Strategy,
    schedule: Schedule | None = None,
    scaler: torch.amp.GradScaler | None = None,
    accumulate: int = 1,
    clip_norm: float | None = None,
    target_tokens: int | None = None,
    rounds: int | None = None,
    home: Path | str | None = None,
    name: str | None = None,
    listen: str = LISTEN,
    seed: int = 0,
    keep_inner: bool = True,
) -> Run:
    """Enter the run that `word` leads to (``HOST:PORT[,HOST:PORT…]#INVITE``).

    The options are those of `RunOptions`. The run's own target counts: `rounds` and
    `target_tokens` are a founder's. Raises a ConnectError here; a FingerprintError, where model
    or options are not the run's, at the first `run.data`.
    """
    options = RunOptions(
        schedule=schedule,
        scaler=scaler,
        accumulate=accumulate,
        clip_norm=clip_norm,
        target_tokens=target_tokens,
        rounds=rounds,
        home=home,
        seed=seed,
        keep_inner=keep_inner,
    )
    return open_run(Run, word, model, optimizer, strategy, options, name, listen)


def start(
    model: torch.nn.Module,
    optimizer: Optimizers,
    strategy: Strategy,
    schedule: Schedule | None = None,
    scaler: torch.amp.GradScaler | None = None,
    accumulate: int = 1,
    clip_norm: float | None = None,
    target_tokens: int | None = None,
    rounds: int | None = None,
    home: Path | str | None = None,
    name: str | None = None,
    listen: str = LISTEN,
    seed: int = 0,
    keep_inner: bool = True,
) -> Run:
    """Found a run, alone at first; `run.join_word` lets others in.

    The model's parameters as they are become round 0, or the newest checkpoint under `home` is
    resumed. `rounds` or `target_tokens` end the run for all at one committed round.
    """
    options = RunOptions(
        schedule=schedule,
        scaler=scaler,
        accumulate=accumulate,
        clip_norm=clip_norm,
        target_tokens=target_tokens,
        rounds=rounds,
        home=home,
        seed=seed,
        keep_inner=keep_inner,
    )
    return open_run(Run, None, model, optimizer, strategy, options, name, listen)


def open_run(
    kind: type[R],
    word: str | None,
    model: torch.nn.Module,
    optimizer: Optimizers,
    strategy: Strategy,
    options: RunOptions,
    name: str | None,
    listen: str,
) -> R:
    """A run of this kind on a mesh of its own: founded without a `word`, joined with one."""
    from decentral.peer.runtime import Mesh, MeshConfig

    home = Path(options.home) if options.home is not None else None
    mesh = Mesh(
        MeshConfig(
            home=home,
            name=name or (home.name if home is not None else "peer"),
            listen=listen,
            join=(word,) if word is not None else (),
        )
    )
    try:
        return kind(mesh, model, optimizer, strategy, options, founder=word is None)
    except BaseException:
        mesh.close()
        raise
