"""What the processes of an island say to each other: small collectives on a gloo group of its own.

It is a group of its own so that waiting for a round (minutes, in a run that is paused) never looks
to torch like a collective of the model that hangs; and gloo, because it is about numbers on the
host. Nothing here is pickled: torch's own object collectives are not used.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist

from decentral.errors import ConfigError, PeerFailedError

if TYPE_CHECKING:
    from decentral.types import Array

_PATIENCE = timedelta(days=30)
"""The others are waited for as long as they live; that they do is what `watch` looks after."""
_LONGEST_NAP_S = 0.005
_BEAT_S = 1.0


class Talk:
    """Made by all processes of the island at the same time. Raises a ConfigError without torch's
    process group.

    Whoever waits wakes up often, so that a signal, or the death of another rank, ends the wait.
    """

    def __init__(self) -> None:
        if not dist.is_available() or not dist.is_initialized():
            raise ConfigError(
                "an island is made of the ranks of torch.distributed: start the script with "
                "torchrun, and call torch.distributed.init_process_group first",
                phase="island",
            )
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.group: Any = dist.new_group(backend="gloo", timeout=_PATIENCE)
        self.on_beat: Callable[[], None] = lambda: None
        """Called about once a second while this rank waits; may raise."""

    def compare(
        self, row: Sequence[int], meanwhile: Callable[[], None] | None = None
    ) -> list[list[int]]:
        """Every rank's row (64-bit integers, equally many), in rank order.

        `meanwhile` is called again and again while the others are not there yet.
        """
        mine = torch.tensor(list(row), dtype=torch.int64)
        rows = [torch.zeros_like(mine) for _ in range(self.size)]
        self._finish(dist.all_gather(rows, mine, self.group, async_op=True), meanwhile)
        return [[int(value) for value in one] for one in rows]

    def share(self, data: bytes | None, root: int = 0) -> bytes:
        """`data` of that rank, on all ranks."""
        size = torch.tensor([len(data or b"")], dtype=torch.int64)
        self._finish(dist.broadcast(size, root, self.group, async_op=True))
        body = torch.zeros(int(size), dtype=torch.uint8)
        if data and self.rank == root:
            body.copy_(torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy()))
        if int(size):
            self._finish(dist.broadcast(body, root, self.group, async_op=True))
        return body.numpy().tobytes()

    def give(self, tensor: torch.Tensor, root: int = 0) -> None:
        """That rank's values of a host tensor, on all ranks."""
        self._finish(dist.broadcast(tensor, root, self.group, async_op=True))

    def send(self, flat: Array, to: int) -> None:
        """A buffer to one rank, which calls `receive`. Gloo's point-to-point work does not say
        when it is done: this waits without waking up."""
        _wait(dist.isend(torch.from_numpy(flat), to, self.group))

    def receive(self, flat: Array, of: int) -> None:
        _wait(dist.irecv(torch.from_numpy(flat), of, self.group))

    def _finish(self, work: Any, meanwhile: Callable[[], None] | None = None) -> None:
        nap_s, beat_at = 0.00005, time.monotonic() + _BEAT_S
        while not work.is_completed():
            if meanwhile is not None:
                meanwhile()
            time.sleep(nap_s)
            nap_s = min(2 * nap_s, _LONGEST_NAP_S)
            if time.monotonic() >= beat_at:
                beat_at += _BEAT_S
                self.on_beat()
        _wait(work)


def _wait(work: Any) -> None:
    try:
        work.wait()
    except RuntimeError as error:  # gloo has no type of its own for a connection that is gone
        raise PeerFailedError(
            f"another rank of this island cannot be reached any more ({_first_line(error)})",
            phase="island",
        ) from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:300] or type(error).__name__
