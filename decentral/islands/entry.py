"""How the ranks of an island get into a run: `decentral.island`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from decentral.entry import LISTEN, Optimizers
from decentral.errors import ConfigError
from decentral.islands.founding import gather_shards
from decentral.islands.pace import Pace
from decentral.islands.shard_save import save_shards
from decentral.islands.shard_tensors import ShardTensors, is_sharded
from decentral.islands.talk import Talk
from decentral.islands.watch import Watch
from decentral.modules import Modules
from decentral.options import RunOptions
from decentral.run import Run
from decentral.schedule import Schedule
from decentral.strategies.base import Strategy

if TYPE_CHECKING:
    import torch


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
) -> Run:
    """Enter the run that `word` leads to, or found one, with all ranks of torch.distributed.

    Called by every rank with the same arguments, after `init_process_group` and `fully_shard`.
    Each rank is a peer that exchanges its shard with the same rank of the other islands, which
    must be as large. Its home is ``home/rank-R``, its port the one of `listen` plus R (0: any free
    one). `batch_size` of `run.data` is a rank's. Options are those of `decentral.start` and `join`.

    Raises a ConfigError for a model that is not sharded over all ranks, a ConnectError as `join`
    does; the first `run.data` a FingerprintError, where this island does not fit the run.
    """
    if not is_sharded(model):
        raise ConfigError(
            "this model is not sharded: apply torch.distributed.fsdp.fully_shard to it, or train "
            "it with decentral.join and decentral.start",
            phase="island",
        )
    talk = Talk()
    folder = Path(home) / f"rank-{talk.rank}" if home is not None else None
    options = RunOptions(
        schedule=schedule,
        scaler=scaler,
        accumulate=accumulate,
        clip_norm=clip_norm,
        target_tokens=target_tokens,
        rounds=rounds,
        home=folder,
        seed=seed,
    )
    called = name or (Path(home).name if home is not None else "island")
    tensors = ShardTensors(model, talk.rank, talk.size)
    given = gather_shards(talk, tensors) if word is None else {}
    tags = shard_tags(talk.size)
    modules = Modules(
        tags=tags,
        held={tags[talk.rank]: tensors},
        given={tags[rank]: shard for rank, shard in given.items()},
    )
    return _open(word, model, optimizer, strategy, options, modules, tensors, talk, called, listen)


def shard_tags(size: int) -> tuple[str, ...]:
    """The tags of a run of islands with so many ranks: part of its fingerprint."""
    return tuple(f"shard-{rank}-of-{size}" for rank in range(size))


def _open(
    word: str | None,
    model: torch.nn.Module,
    optimizer: Optimizers,
    strategy: Strategy,
    options: RunOptions,
    modules: Modules,
    tensors: ShardTensors,
    talk: Talk,
    name: str,
    listen: str,
) -> Run:
    from decentral.peer.runtime import Mesh, MeshConfig

    founds = word is None and talk.rank == 0

    def mesh_of(word: str | None) -> Mesh:
        return Mesh(
            MeshConfig(
                home=Path(options.home) if options.home is not None else None,
                name=f"{name}-{talk.rank}",
                listen=port_of_rank(listen, talk.rank),
                join=(word,) if word is not None else (),
            )
        )

    watch = Watch(talk)
    mesh: Mesh | None = None
    try:
        if word is None:
            mesh = mesh_of(None) if founds else None
            word = talk.share(mesh.join_word.encode() if mesh is not None else None).decode()
        if mesh is None:
            mesh = mesh_of(word)
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
    except BaseException as error:
        watch.close(str(error) or type(error).__name__)
        if mesh is not None:
            mesh.close()
        raise


def port_of_rank(listen: str, rank: int) -> str:
    """Ranks of one machine cannot share a port."""
    host, _, port = listen.rpartition(":")
    if not port.isdigit() or not int(port):
        return listen
    return f"{host}:{int(port) + rank}"
