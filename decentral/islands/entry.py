"""How the ranks of an island get into a run: `decentral.island`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from decentral.entry import LISTEN, Optimizers
from decentral.errors import ConfigError, PeerFailedError
from decentral.inner_step import InnerStep
from decentral.islands.founding import gather_shards
from decentral.islands.pace import Pace
from decentral.islands.replicas import LeaderStep, LeaderTensors, ReplicatedRun
from decentral.islands.shard_save import save_shards
from decentral.islands.shard_tensors import ShardTensors, is_sharded
from decentral.islands.talk import Talk
from decentral.islands.watch import Watch
from decentral.lifetime import in_full
from decentral.modules import Modules
from decentral.options import RunOptions
from decentral.run import Run
from decentral.schedule import Schedule
from decentral.strategies.base import Strategy

if TYPE_CHECKING:
    import torch

    from decentral.peer.runtime import Mesh


def island(
    model: torch.nn.Module,
    optimizer: Optimizers,
    strategy: Strategy,
    word: str | None = None,
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
) -> Run | ReplicatedRun:
    """Enter the run that `word` leads to, or found one, with all ranks of torch.distributed.

    Called by every rank with the same arguments, after `init_process_group`. `batch_size` of
    `run.data` is a rank's. Options are those of `decentral.start` and `join`.

    A model under FSDP2 (`fully_shard`): each rank is a peer that exchanges its shard with the same
    rank of the other islands, which must be as large. Its home is ``home/rank-R``, its port the one
    of `listen` plus R (0: any free one).

    A model under `DistributedDataParallel`: rank 0 is the peer, for all; the result is a
    `ReplicatedRun`.

    Raises a ConfigError for a model that is neither, or not sharded over all ranks; a ConnectError
    as `join` does; the first `run.data` a FingerprintError, where this island does not fit the run.
    """
    from torch.nn.parallel import DistributedDataParallel

    if not isinstance(model, DistributedDataParallel) and not is_sharded(model):
        raise ConfigError(
            "this model is neither sharded nor replicated: apply fully_shard or "
            "DistributedDataParallel to it, or train it with decentral.join and decentral.start",
            phase="island",
        )
    if strategy.overlap != 0 or strategy.fragments != 1:
        raise ConfigError(
            f"{strategy.name} goes on training while a round is reduced, and the processes of an "
            "island must take its outcome in together: use DiLoCo, SparseLoCo or DataParallel",
            phase="island",
        )
    talk = Talk()
    called = name or (Path(home).name if home is not None else "island")
    options = RunOptions(
        schedule=schedule,
        scaler=scaler,
        accumulate=accumulate,
        clip_norm=clip_norm,
        target_tokens=target_tokens,
        rounds=rounds,
        home=home,
        seed=seed,
    )
    watch = Watch(talk)
    with _told(watch):
        if isinstance(model, DistributedDataParallel):
            place = MeshPlace(options.home, called, listen)
            bare: torch.nn.Module = model.module
            return _replicas(talk, watch, place, word, bare, optimizer, strategy, options)
        own = Path(home) / f"rank-{talk.rank}" if home is not None else None
        place = MeshPlace(own, f"{called}-{talk.rank}", port_of_rank(listen, talk.rank))
        options = replace(options, home=own)
        return _shards(talk, watch, place, word, model, optimizer, strategy, options)


@dataclass(frozen=True, slots=True)
class MeshPlace:
    """Where a rank's peer lives."""

    home: Path | str | None
    name: str
    listen: str

    def mesh(self, word: str | None) -> Mesh:
        from decentral.peer.runtime import Mesh, MeshConfig

        return Mesh(
            MeshConfig(
                home=Path(self.home) if self.home is not None else None,
                name=self.name,
                listen=self.listen,
                join=(word,) if word is not None else (),
            )
        )


def _shards(
    talk: Talk,
    watch: Watch,
    place: MeshPlace,
    word: str | None,
    model: torch.nn.Module,
    optimizer: Optimizers,
    strategy: Strategy,
    options: RunOptions,
) -> Run:
    """All ranks are peers. A founding island's rank 0 brings every shard, and the word for the
    others."""
    tensors = ShardTensors(model, talk.rank, talk.size)
    given = gather_shards(talk, tensors) if word is None else {}
    tags = shard_tags(talk.size)
    modules = Modules(
        tags=tags,
        held={tags[talk.rank]: tensors},
        given={tags[rank]: shard for rank, shard in given.items()},
    )
    founds = word is None and talk.rank == 0
    mesh = place.mesh(None) if founds else None
    try:
        if word is None:
            word = talk.share(mesh.join_word.encode() if mesh is not None else None).decode()
        mesh = mesh or place.mesh(word)
        beat = mesh.progress
        pace = Pace(
            talk,
            watch,
            beat=lambda: beat(0),
            save=lambda held, path: save_shards(talk, tensors, held, path),
        )
        return Run(
            mesh,
            model,
            optimizer,
            strategy,
            options,
            founder=founds,
            modules=modules,
            lockstep=pace,
        )
    except BaseException:
        if mesh is not None:
            mesh.close()
        raise


def _replicas(
    talk: Talk,
    watch: Watch,
    place: MeshPlace,
    word: str | None,
    model: torch.nn.Module,
    optimizer: Optimizers,
    strategy: Strategy,
    options: RunOptions,
) -> ReplicatedRun:
    """Rank 0 is the peer."""
    step = (LeaderStep if talk.rank == 0 else InnerStep)(
        optimizer,
        schedule=options.schedule,
        scaler=options.scaler,
        accumulate=options.accumulate,
        clip_norm=options.clip_norm,
    )
    run = tensors = mesh = None
    try:
        if talk.rank == 0:
            tensors, mesh = LeaderTensors(model), place.mesh(word)
            run = Run(mesh, tensors, step, strategy, options, founder=word is None)
        own = talk.share(run.join_word.encode() if run is not None else None).decode()
        return ReplicatedRun(talk, watch, model, step, run, tensors, own)
    except BaseException:
        if mesh is not None:
            mesh.close()
        raise


@contextmanager
def _told(watch: Watch) -> Iterator[None]:
    """The other ranks hear why this one cannot enter, instead of waiting for it."""
    try:
        yield
    except BaseException as error:
        cause = watch.explain(error) if isinstance(error, PeerFailedError) else None
        watch.close(in_full(error))
        if cause is not None and cause is not error:
            raise cause from error
        raise


def shard_tags(size: int) -> tuple[str, ...]:
    """The tags of a run of islands with so many ranks: part of its fingerprint."""
    return tuple(f"shard-{rank}-of-{size}" for rank in range(size))


def port_of_rank(listen: str, rank: int) -> str:
    """Ranks of one machine cannot share a port."""
    host, _, port = listen.rpartition(":")
    if not port.isdigit() or not int(port):
        return listen
    return f"{host}:{int(port) + rank}"
